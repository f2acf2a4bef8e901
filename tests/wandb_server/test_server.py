"""Listening, faults and the end of the server, with plain HTTP."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from support import wait_until
from wandb_server import API_KEY, WandbServer

VIEWER = {"query": "query Viewer { viewer { entity } }"}
UPSERT = {
    "query": """mutation UpsertBucket($name: String) {
        upsertBucket(input: {name: $name, modelName: "p", entityName: "lab"}) { inserted } }""",
    "variables": {"name": "r"},
}


def post(server: WandbServer, path: str, body: Any, key: str = API_KEY, timeout: float = 10.0) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=timeout)
    try:
        headers = {"Authorization": f"Basic {b64encode(f'api:{key}'.encode()).decode()}"}
        connection.request("POST", path, json.dumps(body), headers)
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def viewer(server: WandbServer, **arguments: Any) -> int:
    return post(server, "/graphql", VIEWER, **arguments)[0]


def stream(server: WandbServer, offset: int, rows: list[dict[str, Any]]) -> int:
    part = {"offset": offset, "content": [json.dumps(row) for row in rows]}
    return post(server, "/files/lab/p/r/file_stream", {"files": {"wandb-history.jsonl": part}})[0]


def test_the_right_key_is_let_in_and_another_is_not(wandb_server: WandbServer) -> None:
    assert viewer(wandb_server) == 200
    assert viewer(wandb_server, key="f" * 40) == 401


def test_a_question_that_is_not_understood_shows(wandb_server: WandbServer) -> None:
    status, answer = post(wandb_server, "/graphql", {"query": "query Weather { weather }"})
    assert (status, "data" in answer) == (200, False)
    assert "weather" in wandb_server.errors()[0]


def test_a_stream_to_an_unknown_run_is_404(wandb_server: WandbServer) -> None:
    assert stream(wandb_server, 0, []) == 404


@pytest.mark.parametrize("status", [401, 403, 404, 409, 429, 500])
def test_http_fault(wandb_server: WandbServer, status: int) -> None:
    wandb_server.faults.add("Viewer", status=status)
    assert viewer(wandb_server) == status
    assert post(wandb_server, "/graphql", UPSERT)[0] == 200


def test_a_fault_begins_after_n_requests_and_ends_after_m(wandb_server: WandbServer) -> None:
    fault = wandb_server.faults.add("graphql", status=500, after=2, times=3)
    assert [viewer(wandb_server) for _ in range(7)] == [200, 200, 500, 500, 500, 200, 200]
    assert (fault.seen, fault.hits) == (7, 3)


def test_a_fault_of_one_run_leaves_others_alone(wandb_server: WandbServer) -> None:
    post(wandb_server, "/graphql", UPSERT)
    wandb_server.faults.add("file_stream/other")
    assert stream(wandb_server, 0, [{"a": 1}]) == 200
    wandb_server.faults.add("file_stream/r")
    assert stream(wandb_server, 1, [{"a": 2}]) == 500


def test_drop_does_nothing_and_lose_does_it_without_an_answer(wandb_server: WandbServer) -> None:
    post(wandb_server, "/graphql", UPSERT)
    wandb_server.faults.add("file_stream", "drop", times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        stream(wandb_server, 0, [{"a": 1}])
    assert wandb_server.rows("lab", "p", "r") == []
    wandb_server.faults.add("file_stream", "lose", times=1)
    with pytest.raises(http.client.RemoteDisconnected):
        stream(wandb_server, 0, [{"a": 1}])
    assert wandb_server.rows("lab", "p", "r") == [{"a": 1}]
    assert [(request.status, request.fault) for request in wandb_server.requests[1:]] == [(0, "drop"), (0, "lose")]


def test_slow_answers_late(wandb_server: WandbServer) -> None:
    wandb_server.faults.add("Viewer", "slow", seconds=0.2)
    begin = time.monotonic()
    assert viewer(wandb_server) == 200
    assert time.monotonic() - begin >= 0.2


def test_a_black_hole_takes_connections_and_never_answers(wandb_server: WandbServer) -> None:
    fault = wandb_server.faults.add(kind="hang")
    with pytest.raises(TimeoutError):
        viewer(wandb_server, timeout=0.2)
    wandb_server.faults.lift(fault)
    assert viewer(wandb_server) == 200


def test_refused_while_it_does_not_listen_and_back_on_the_same_port(wandb_server: WandbServer) -> None:
    port = wandb_server.port
    kept = socket.create_connection(("127.0.0.1", port))
    assert viewer(wandb_server) == 200
    wandb_server.stop_listening()
    assert kept.recv(1) == b""
    with pytest.raises(ConnectionRefusedError):
        viewer(wandb_server)
    wandb_server.resume_listening()
    assert (wandb_server.port, viewer(wandb_server)) == (port, 200)
    kept.close()


def test_close_ends_every_thread_within_two_seconds() -> None:
    before = set(threading.enumerate())
    server = WandbServer()
    server.faults.add("Viewer", "hang")
    server.faults.add("UpsertBucket", "slow", seconds=60.0)
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    with ThreadPoolExecutor(10) as pool:
        hanging = [pool.submit(post, server, "/graphql", body) for body in [VIEWER, UPSERT] * 5]
        wait_until(lambda: len(set(threading.enumerate()) - before) >= 41, 5, "all connections to be served")
        begin = time.monotonic()
        server.close()
        assert time.monotonic() - begin < 2.0
        assert all(future.exception() for future in hanging)
    for connection in idle:
        connection.close()
    assert set(threading.enumerate()) <= before


def test_a_hundred_thousand_rows_in_seconds(wandb_server: WandbServer) -> None:
    post(wandb_server, "/graphql", UPSERT)
    begin = time.monotonic()
    for offset in range(0, 100_000, 10_000):
        stream(
            wandb_server, offset, [{"_step": step, "loss": 1 / (step + 1)} for step in range(offset, offset + 10_000)]
        )
    assert [row["_step"] for row in wandb_server.rows("lab", "p", "r")] == list(range(100_000))
    assert time.monotonic() - begin < 10.0


def test_by_hand_it_prints_what_to_export(tmp_path: Path) -> None:
    folder = Path(__file__).parent.parent
    command = [sys.executable, "-m", "wandb_server", "--port", "0"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env={**os.environ}) as process:
        assert process.stdout
        line = process.stdout.readline()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
    assert line.startswith("export WANDB_BASE_URL=http://127.0.0.1:")
    assert API_KEY in line
