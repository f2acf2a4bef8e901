"""Online against the loopback W&B with the real client: nothing lost, nothing twice, and training never held."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracking import Image, Table, read_journal
from tracking.intents import pending_intents
from tracking.mode import decide_mode
from tracking.sync.child.status import read_status

from online_runs import given, log, online_environment, server_rows, tracker_for
from runs import history_of, offline_folders, rows_of
from support import free_port, wait_until
from wandb_file import read_offline_run
from wandb_server import WandbServer
from wandb_server.client import WandbClient

__all__ = ["online_environment"]

pytestmark = [pytest.mark.wandb, pytest.mark.usefixtures("online_environment")]


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("argument", "variable", "expected"),
    [(None, None, "online"), (None, "offline", "offline"), ("offline", "online", "offline"),
     ("online", "disabled", "online"),
     ("disabled", "online", "disabled"), (None, "disabled", "disabled"), (None, "", "online")],
)  # fmt: skip
def test_an_argument_beats_the_variable_and_the_variable_beats_the_default(
    argument: str | None, variable: str | None, expected: str
) -> None:
    assert decide_mode(argument, {} if variable is None else {"WANDB_MODE": variable}) == expected


def test_every_row_arrives_live_and_once(
    wandb_server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = tracker_for(tmp_path / "run", config={"lr": 0.5}, name="a 'name'", group="g", job_type="train", notes="n")
    assert not tracker.is_offline()
    log(tracker, 1, 5)
    run_id = tracker.get_run_id()
    wait_until(lambda: len(server_rows(wandb_server, run_id)) == 5, 30, "rows while the run goes on")
    log(tracker, 6, 20)
    tracker.finish()

    run = wandb_server.run(wandb_server.entity, "vla-lego", str(run_id))
    assert server_rows(wandb_server, run_id) == rows_of(tmp_path / "run")
    assert run.state == "finished"
    assert tracker.get_run_url() == f"{wandb_server.url}/lab/vla-lego/runs/{run_id}"
    assert wandb_server.errors() == []
    assert offline_folders(tmp_path / "run") == []
    out = capfd.readouterr().out
    assert f"Online: run {run_id} at {wandb_server.url}" in out
    assert f"20 rows at {tracker.get_run_url()}" in out


def test_resumed_segments_are_one_run(wandb_server: WandbServer, tmp_path: Path) -> None:
    # W&B's name for a run that ended with an exit code is "failed".
    shown = {"preempted": "preempted", "crashed": "failed", None: "finished"}
    for first, last, state in ((1, 15, "preempted"), (11, 30, "crashed"), (21, 40, None)):
        tracker = tracker_for(tmp_path / "run")
        log(tracker, first, last)
        tracker.finish(exit_code=int(state == "crashed"), state=state)  # type: ignore[arg-type]
        run = wandb_server.run(wandb_server.entity, "vla-lego", str(tracker.get_run_id()))
        assert run.state == shown[state]
    assert [row["train/step"] for row in server_rows(wandb_server, tracker.get_run_id())] == list(range(1, 41))
    assert server_rows(wandb_server, tracker.get_run_id()) == rows_of(tmp_path / "run")


def test_an_offline_segment_is_pushed_by_an_online_one(wandb_server: WandbServer, tmp_path: Path) -> None:
    first = tracker_for(tmp_path / "run", mode="offline")
    log(first, 1, 10)
    first.finish()
    assert len(offline_folders(tmp_path / "run")) == 1
    second = tracker_for(tmp_path / "run")
    log(second, 11, 20)
    second.finish()
    assert server_rows(wandb_server, second.get_run_id()) == rows_of(tmp_path / "run")
    assert offline_folders(tmp_path / "run") == []


def test_media_and_artifacts_arrive(wandb_server: WandbServer, tmp_path: Path) -> None:
    tracker = tracker_for(tmp_path / "run", config={"lr": 0.5})
    tracker.log_metrics({"view": Image(np.zeros((3, 4)), caption="c"), "table": Table(["a"], [[1]])}, 1)
    tracker.log_metrics({"weights": np.arange(100.0)}, 2)
    tracker.log_config({"lr": 0.5, "api_key": "hidden"})
    tracker.finish()

    rows = server_rows(wandb_server, tracker.get_run_id())
    assert [row["_step"] for row in rows] == [0, 1]
    assert (rows[0]["view"]["_type"], rows[0]["view"]["caption"]) == ("image-file", "c")
    assert rows[0]["table"]["_type"] == "table-file"
    assert sum(rows[1]["weights"]["values"]) == 100
    assert pending_intents(tmp_path / "run") == []
    (done,) = [path for path in (tmp_path / "run" / "intents").glob("*-config.done.json")]
    assert json.loads(done.read_text())["version"] == "v0"


def test_artifacts_wait_offline_and_a_later_online_segment_uploads_them(
    wandb_server: WandbServer, tmp_path: Path
) -> None:
    first = tracker_for(tmp_path / "run", mode="offline")
    first.log_config({"lr": 0.5})
    first.finish()
    assert len(pending_intents(tmp_path / "run")) >= 1
    tracker_for(tmp_path / "run").finish()
    assert pending_intents(tmp_path / "run") == []


def test_an_offline_folder_is_uploaded_whole_by_wandb_sync(
    wandb_server: WandbServer, wandb_client: WandbClient, tmp_path: Path
) -> None:
    """GIVEN a run of two offline segments with a roll-back WHEN the printed command runs THEN W&B shows it once."""
    for first, last in ((1, 15), (11, 30)):
        tracker = tracker_for(tmp_path / "run", mode="offline")
        log(tracker, first, last)
        tracker.log_metrics({"view": Image(np.zeros((3, 4)))}, last)
        tracker.finish(state="preempted" if last == 15 else None)
    for _ in range(2):
        done = wandb_client.wandb("sync", *map(str, offline_folders(tmp_path / "run")))
        assert done.returncode == 0, done.stdout
    rows = server_rows(wandb_server, tracker.get_run_id())
    assert [row["train/step"] for row in rows] == [*range(1, 16), 15, *range(16, 31), 30]
    assert [row["_step"] for row in rows] == list(range(32))
    assert rows[15]["view"]["_type"] == "image-file"
    expected = rows_of(tmp_path / "run")
    assert [row.get("loss/total") for row in rows] == [row.get("loss/total") for row in expected]
    run = wandb_server.run(wandb_server.entity, "vla-lego", str(tracker.get_run_id()))
    assert run.state == "finished"


def check_fallback(run_dir: Path, out: str, reason: str) -> None:
    assert reason in out
    assert "[ExperimentTracker] Offline mode. Run 'wandb sync' to upload later.\n  wandb sync " in out
    (folder,) = offline_folders(run_dir)
    assert history_of(folder) == rows_of(run_dir)
    assert len(rows_of(run_dir)) == 3


@pytest.mark.parametrize(
    "answer",
    [(401, "refused the API key (401)", None), (403, "refused the API key (403)", "online"), (404, "status 404", None),
     (429, "answers with status 429", None), (500, "answers with status 500", "online")],
)  # fmt: skip
def test_a_server_that_refuses_at_the_start_means_offline(
    wandb_server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], answer: tuple[int, str, str | None]
) -> None:
    status, reason, asked_for = answer
    wandb_server.faults.add(status=status)
    tracker = tracker_for(tmp_path / "run", mode=asked_for)
    assert tracker.is_offline()
    log(tracker, 1, 3)
    tracker.finish()
    check_fallback(tmp_path / "run", capfd.readouterr().out, reason)


@pytest.mark.parametrize("case", ["closed port", "black hole", "wrong key", "no key", "no name", "dead proxy"])
def test_a_server_that_cannot_be_reached_means_offline_within_three_seconds(
    wandb_server: WandbServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    case: str,
) -> None:
    reason = {
        "closed port": "cannot be reached: Connection refused",
        "black hole": "did not answer within 1.5 s",
        "wrong key": "refused the API key (401)",
        "no key": "there is no API key",
        "no name": "cannot be reached: ",
        "dead proxy": "cannot be reached: Connection refused",
    }[case]
    if case == "closed port":
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    elif case == "black hole":
        wandb_server.faults.add(kind="hang")
    elif case == "wrong key":
        monkeypatch.setenv("WANDB_API_KEY", "f" * 40)
    elif case == "no key":
        monkeypatch.delenv("WANDB_API_KEY")
    elif case == "no name":
        monkeypatch.setenv("WANDB_BASE_URL", "http://nowhere.invalid")
    elif case == "dead proxy":
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free_port()}")
        monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
    began = time.monotonic()
    tracker = tracker_for(tmp_path / "run", probe_timeout=1.5)
    held = time.monotonic() - began
    log(tracker, 1, 3)
    tracker.finish()
    assert held < 3.5
    check_fallback(tmp_path / "run", capfd.readouterr().out, reason)


def test_a_portal_that_answers_with_a_page_is_not_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Portal(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>please log in</html>")

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Portal) as url:
        monkeypatch.setenv("WANDB_BASE_URL", url)
        tracker = tracker_for(tmp_path / "run")
        log(tracker, 1, 3)
        tracker.finish()
    check_fallback(tmp_path / "run", capfd.readouterr().out, f"what answers at {url} is not W&B")


def test_a_key_in_netrc_is_enough(wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    netrc = tmp_path / "home" / ".netrc"
    netrc.write_text(f"machine 127.0.0.1:{wandb_server.port}\n  login user\n  password {wandb_server.api_key}\n")
    netrc.chmod(0o600)
    tracker = tracker_for(tmp_path / "run")
    assert not tracker.is_offline()
    log(tracker, 1, 3)
    tracker.finish()
    assert server_rows(wandb_server, tracker.get_run_id()) == rows_of(tmp_path / "run")


def test_the_server_behind_a_proxy_is_reached(
    wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with proxy_to(wandb_server.url) as (proxy, seen):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("WANDB_BASE_URL", "http://wandb.invalid")
        tracker = tracker_for(tmp_path / "run")
        assert not tracker.is_offline()
        log(tracker, 1, 3)
        tracker.finish()
    assert seen[0] == "http://wandb.invalid/graphql"
    assert server_rows(wandb_server, tracker.get_run_id()) == rows_of(tmp_path / "run")


@pytest.mark.parametrize(
    "fault",
    [("UpsertBucket", "http", 403), ("file_stream", "http", 403), ("file_stream", "http", 404),
     ("file_stream", "http", 401), ("file_stream", "hang", 0), ("file_stream", "http", 500)],
)  # fmt: skip
def test_what_the_server_does_not_take_ends_in_an_offline_folder(
    wandb_server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], fault: tuple[str, Any, int]
) -> None:
    """GIVEN a server that answers the probe and takes no rows THEN the end is bounded and says where all of it is."""
    operation, kind, status = fault
    wandb_server.faults.add(operation, kind, status=status)
    tracker = tracker_for(tmp_path / "run", finish_timeout=8.0)
    assert not tracker.is_offline()
    log(tracker, 1, 3)
    began = time.monotonic()
    tracker.finish()
    took = time.monotonic() - began
    assert took < 9
    wait_until(lambda: offline_folders(tmp_path / "run"), 40, "the offline folder")
    wait_until(lambda: (s := read_status(tmp_path / "run")) and s.state == "done", 10, "the child's last word")
    (folder,) = offline_folders(tmp_path / "run")
    assert history_of(folder) == rows_of(tmp_path / "run")
    assert read_offline_run(folder).exit_code == 0
    out = capfd.readouterr().out
    assert "An offline folder has all of it:\n  wandb sync " in out or "All 3 rows are in" in out


def test_an_outage_in_the_middle_loses_nothing_and_holds_nothing(wandb_server: WandbServer, tmp_path: Path) -> None:
    tracker = tracker_for(tmp_path / "run")
    log(tracker, 1, 5)
    wait_until(lambda: len(server_rows(wandb_server, tracker.get_run_id())) == 5, 30, "the first rows")
    wandb_server.stop_listening()
    began = time.monotonic()
    log(tracker, 6, 20)
    assert time.monotonic() - began < 0.5
    wait_until(lambda: given(tmp_path / "run") == 20, 30, "the rows to be given to W&B's client")
    wandb_server.resume_listening()
    tracker.finish()
    assert server_rows(wandb_server, tracker.get_run_id()) == rows_of(tmp_path / "run")


_TRAIN = """
import sys, time
from pathlib import Path
from tracking import ExperimentTracker
tags = {"model": "act", "dataset": "lift", "objective": "bc", "experiment_group": "demo"}
tracker = ExperimentTracker(tags=tags, run_dir=Path(sys.argv[1]), probe_timeout=10.0)
print("ready", flush=True)
for step in range(1, 100_000):
    tracker.log_metrics({"x": step}, step)
    time.sleep(0.002)
"""


def start_training(run_dir: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", _TRAIN, str(run_dir)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None
    return process


@pytest.mark.parametrize("seed", [1, 2])
def test_sigkill_of_training_leaves_a_crashed_run_with_every_row(
    wandb_server: WandbServer, tmp_path: Path, seed: int
) -> None:
    process = start_training(tmp_path)
    time.sleep(random.Random(seed).uniform(0.0, 0.9))
    process.kill()
    process.wait()
    wait_until(lambda: (s := read_status(tmp_path)) and s.state == "done", 40, "the child to end by itself")
    segment = read_journal(tmp_path).segments[0]
    assert server_rows(wandb_server, segment.run_id) == rows_of(tmp_path)
    assert wandb_server.run(wandb_server.entity, "vla-lego", segment.run_id).state == "failed"


def test_wandbs_service_may_die(wandb_server: WandbServer, tmp_path: Path) -> None:
    """GIVEN Slurm's TERM to every process THEN a fresh service goes on behind what the server has."""
    process = start_training(tmp_path)
    wait_until(lambda: given(tmp_path) > 0, 30, "the first rows to be given")
    (child,) = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    services = [int(pid) for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
    for pid in [*services, child]:
        os.kill(pid, signal.SIGTERM)
    before = len(read_journal(tmp_path).rows)
    wait_until(lambda: len(read_journal(tmp_path).rows) > before + 200, 30, "training to go on")
    process.terminate()
    process.wait()
    wait_until(lambda: (s := read_status(tmp_path)) and s.state == "done", 40, "the child to end by itself")
    assert server_rows(wandb_server, read_journal(tmp_path).segments[0].run_id) == rows_of(tmp_path)


@contextmanager
def proxy_to(target: str) -> Iterator[tuple[str, list[str]]]:
    """A plain HTTP proxy that hands every request to one server, and the URLs that it was asked for."""
    seen: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def forward(self) -> None:
            seen.append(self.path)
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = {
                name: value for name, value in self.headers.items() if name.lower() not in ("host", "proxy-connection")
            }
            # As a server behind a proxy does, W&B's names itself by the name that clients know.
            url = target + self.path.removeprefix("http://wandb.invalid")
            request = urllib.request.Request(url, body or None, headers, method=self.command)
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            try:
                with opener.open(request, timeout=20) as answer:
                    status, content = answer.status, answer.read()
            except urllib.error.HTTPError as error:
                status, content = error.code, error.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = forward

        def log_message(self, *_: Any) -> None:
            pass

    with serving(Proxy) as url:
        yield url, seen
