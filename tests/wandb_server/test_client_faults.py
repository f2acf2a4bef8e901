"""The real client in faults: what it does where the server refuses, loses, hangs or comes back."""

from __future__ import annotations

import pytest
from support import wait_until
from wandb_server import WandbClient, WandbServer

pytestmark = pytest.mark.wandb

QUICK = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "0.1", "WANDB__FILE_STREAM_RETRY_WAIT_MIN_SECONDS": "0.1"}

LOG = """
import sys, wandb
run = wandb.init(project="p", id="r")
for step in range(50):
    run.log({"a": step})
run.finish()
"""


@pytest.mark.parametrize(("kind", "status"), [("http", 500), ("http", 429), ("drop", 0), ("lose", 0)])
def test_rows_arrive_once_after_a_passing_fault(
    wandb_server: WandbServer, wandb_client: WandbClient, kind: str, status: int
) -> None:
    """GIVEN a stream that fails twice THEN the client sends the rows again and each stands there once."""
    fault = wandb_server.faults.add("file_stream/r", kind, status=status, after=1, times=2)  # type: ignore[arg-type]
    wandb_client.python(LOG, **QUICK)
    run = wandb_server.run("lab", "p", "r")
    assert fault.hits == 2
    assert [row["a"] for row in run.history] == list(range(50))
    assert sum(upload.changed for upload in run.history_file.uploads) == 0
    assert (sum(upload.overwritten for upload in run.history_file.uploads) > 0) == (kind == "lose")


@pytest.mark.parametrize("status", [401, 404])
def test_a_refused_stream_is_only_a_warning(wandb_server: WandbServer, wandb_client: WandbClient, status: int) -> None:
    wandb_server.faults.add("file_stream", status=status, after=1)
    wandb_client.python(LOG, **QUICK)
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
        run.log({"a": 0})
        run.log({"a": 1})
        while not os.path.exists("away"):
            time.sleep(0.02)
        for step in range(2, 50):
            run.log({"a": step})
        open("logged", "w").close()
        run.finish()
        """,
        **QUICK,
    )
    wait_until(lambda: wandb_server.rows("lab", "p", "r"), 60, "the first row")
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


def test_a_black_hole_holds_init_until_its_timeout(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    fault = wandb_server.faults.add("UpsertBucket", "hang")
    answer = wandb_client.python(
        """
        import wandb
        try:
            wandb.init(project="p", id="r", settings=wandb.Settings(init_timeout=1))
        except wandb.errors.CommError as error:
            answer = str(error)
        wandb.teardown()
        """
    )
    assert "1" in answer
    assert fault.hits >= 1
    assert wandb_server.runs("lab", "p") == []


def test_an_artifact_whose_answers_are_lost_is_made_once(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    for operation in ("CreateArtifact", "CommitArtifact", "upload"):
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
