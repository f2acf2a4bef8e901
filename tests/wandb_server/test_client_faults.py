"""The real client in faults: what it does where the server refuses, loses, hangs or comes back."""

from __future__ import annotations

import subprocess

import pytest

from support import wait_until
from wandb_server import WandbClient, WandbServer

pytestmark = pytest.mark.wandb

LOG = """
import wandb
run = wandb.init(project="p", id="r")
for step in range(50):
    run.log({"a": step})
run.finish()
"""


def test_rows_arrive_once_after_a_passing_fault(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    """GIVEN streams that fail twice, each in its way, THEN the client sends the rows again and each stands once."""
    faults = [
        wandb_server.faults.add("file_stream/500", status=500, after=1, times=2),
        wandb_server.faults.add("file_stream/429", status=429, after=1, times=2),
        wandb_server.faults.add("file_stream/drop", "drop", after=1, times=2),
        wandb_server.faults.add("file_stream/lose", "lose", after=1, times=2),
    ]
    wandb_client.python(
        """
        import threading, wandb
        runs = [wandb.init(project="p", id=name, reinit="create_new") for name in ("500", "429", "drop", "lose")]
        for run in runs:
            for step in range(50):
                run.log({"a": step})
        ends = [threading.Thread(target=run.finish) for run in runs]
        for end in ends:
            end.start()
        for end in ends:
            end.join()
        """
    )
    assert [fault.hits for fault in faults] == [2, 2, 2, 2]
    overwritten = {}
    for run in wandb_server.runs("lab", "p"):
        assert [row["a"] for row in run.history] == list(range(50)), run.name
        assert sum(upload.changed for upload in run.history_file.uploads) == 0, run.name
        overwritten[run.name] = sum(upload.overwritten for upload in run.history_file.uploads) > 0
    assert overwritten == {"500": False, "429": False, "drop": False, "lose": True}


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_stream_is_only_a_warning(wandb_server: WandbServer, wandb_client: WandbClient, status: int) -> None:
    wandb_server.faults.add("file_stream", status=status, after=1)
    wandb_client.python(LOG)
    assert wandb_server.rows("lab", "p", "r") == []
    assert wandb_server.run("lab", "p", "r").exit_code is None


def test_a_wrong_key_ends_init(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    with pytest.raises(AssertionError, match=r"401|invalid"):
        wandb_client.python(LOG, WANDB_API_KEY="f" * 40)
    assert wandb_server.runs("lab", "p") == []


def test_a_server_that_is_away_in_the_middle_of_a_run(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    """GIVEN a run that logs while the server refuses connections THEN it ends well once the server is back."""
    process = wandb_client.start_python(
        """
        import os, time, wandb
        run = wandb.init(project="p", id="r")
        while not os.path.exists("away"):
            time.sleep(0.02)
        for step in range(50):
            run.log({"a": step})
        open("logged", "w").close()
        run.finish()
        """
    )
    wait_until(lambda: wandb_server.count("file_stream"), 60, "the run to begin")
    wandb_server.stop_listening()
    (wandb_client.work / "away").touch()
    wait_until((wandb_client.work / "logged").exists, 60, "all rows to be logged without a server")
    assert process.poll() is None
    wandb_server.resume_listening()
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0, output
    run = wandb_server.run("lab", "p", "r")
    assert [row["a"] for row in run.history] == list(range(50))
    assert (run.state, run.history_file.gaps()) == ("finished", [])


def test_a_black_hole_ends_init_in_time_but_not_the_process(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    """`init_timeout` bounds `wandb.init`; at exit the process waits for wandb's service, which waits for the server."""
    fault = wandb_server.faults.add("UpsertBucket", "hang")
    process = wandb_client.start_python(
        """
        import wandb
        try:
            wandb.init(project="p", id="r", settings=wandb.Settings(init_timeout=1))
        except wandb.errors.CommError as error:
            open("error", "w").write(str(error))
        """
    )
    wait_until((wandb_client.work / "error").exists, 60, "init to give up")
    assert "timed out after 1.0 sec" in (wandb_client.work / "error").read_text()
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=3)
    wandb_server.faults.lift(fault)
    process.communicate(timeout=60)
    assert process.returncode == 0


def test_an_artifact_whose_answers_are_lost_is_made_once(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    for operation in ("CreateArtifact", "CommitArtifact"):
        wandb_server.faults.add(operation, "lose", times=1)
    wandb_client.python(
        """
        import wandb
        run = wandb.init(project="p", id="r")
        open("w.bin", "w").write("weights")
        artifact = wandb.Artifact("act", "model")
        artifact.add_file("w.bin")
        run.log_artifact(artifact, aliases=["best"]).wait()
        run.finish()
        """
    )
    assert [found.version for found in wandb_server.collection("lab", "p", "act").memberships] == ["v0"]
    assert wandb_server.artifact("lab", "p", "act:best").commits == 2
