"""Offline runs and plain `wandb sync` as it is: what it repeats, overwrites and calls a success must show here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from support import wait_until
from wandb_server import WandbClient, WandbServer

pytestmark = pytest.mark.wandb

LOG = """
import sys, wandb
answer = []
for segment in sys.argv[1:]:
    name, begin, end = segment.split(":")
    run = wandb.init(project="p", id=name, mode="offline", config={"begin": begin})
    run.define_metric("*", step_metric="train/step")
    for step in range(int(begin), int(end)):
        run.log({"train/step": step})
    run.finish()
    answer.append(run.settings.sync_dir)
"""


def record(client: WandbClient, *segments: str) -> list[str]:
    """Makes an offline run for each `ID:BEGIN:END` and gives their folders."""
    return list(client.python(LOG, *segments))


def synced(folder: str) -> bool:
    return bool(list(Path(folder).glob("*.synced")))


def steps(server: WandbServer, name: str) -> list[int]:
    return [row["train/step"] for row in server.rows("lab", "p", name)]


def test_sync_sends_every_row_again_the_second_time(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    (folder,) = record(wandb_client, "r:0:20")
    assert wandb_server.requests == []
    for _ in range(2):
        assert wandb_client.wandb("sync", folder).returncode == 0
    run = wandb_server.run("lab", "p", "r")
    assert steps(wandb_server, "r") == list(range(20))
    assert (run.state, run.config, synced(folder)) == ("finished", {"begin": "0"}, True)
    assert len(run.raw_config["_wandb"]["value"]["m"]) >= 1
    assert sum(upload.count for upload in run.history_file.uploads) == 40
    assert sum(upload.overwritten for upload in run.history_file.uploads) == 20
    assert wandb_server.errors() == []


def test_a_second_segment_overwrites_the_first_unless_it_is_appended(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    folders = record(wandb_client, "r:0:15", "r:10:20")
    for folder in folders:
        assert wandb_client.wandb("sync", folder).returncode == 0
    assert steps(wandb_server, "r") == [*range(10, 20), *range(10, 15)]
    assert sum(upload.changed for upload in wandb_server.run("lab", "p", "r").history_file.uploads) == 10
    for folder in folders:
        assert wandb_client.wandb("sync", "--append", "--id", "appended", folder).returncode == 0
    assert steps(wandb_server, "appended") == [*range(15), *range(10, 20)]


def test_history_refused_is_exit_0_and_marked_as_synced(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    (folder,) = record(wandb_client, "r:0:5")
    with wandb_server.faults.during("file_stream", status=403) as fault:
        done = wandb_client.wandb("sync", folder)
    assert fault.hits > 0
    assert (done.returncode, synced(folder)) == (0, True)
    assert steps(wandb_server, "r") == []
    assert wandb_server.run("lab", "p", "r").state == "running"


@pytest.mark.parametrize("status", [401, 403])
def test_everything_refused_is_exit_0_and_marked_as_synced(
    wandb_server: WandbServer, wandb_client: WandbClient, status: int
) -> None:
    (folder,) = record(wandb_client, "r:0:5")
    with wandb_server.faults.during("*", status=status):
        done = wandb_client.wandb("sync", folder)
    assert (done.returncode, synced(folder)) == (0, True)
    assert wandb_server.runs("lab", "p") == []


def test_a_killed_run_is_synced_as_finished(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    process = wandb_client.start_python(
        """
        import signal, wandb
        run = wandb.init(project="p", id="r", mode="offline")
        for step in range(1000):
            run.log({"train/step": step, "padding": "-" * 100})
        signal.pause()
        """
    )
    written = "wandb/offline-run-*-r/run-r.wandb"
    wait_until(
        lambda: any(b"train/step" in path.read_bytes() for path in wandb_client.work.glob(written)), 60, "rows on disk"
    )
    wandb_client.kill(process)
    (path,) = wandb_client.work.glob(written)
    assert wandb_client.wandb("sync", str(path.parent)).returncode == 0
    assert wandb_server.run("lab", "p", "r").state == "finished"
    assert not synced(str(path.parent))


def test_beta_sync_pushes_several_runs_in_one_process_and_appends_a_second_time(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    folders = record(wandb_client, "a:0:10", "b:0:10")
    done = wandb_client.wandb("beta", "sync", "--no-skip-synced", *folders)
    assert done.returncode == 0, done.stdout
    for name in ("a", "b"):
        assert steps(wandb_server, name) == list(range(10))
        assert wandb_server.run("lab", "p", name).state == "finished"
    wandb_client.wandb("beta", "sync", "--no-skip-synced", folders[0])
    assert steps(wandb_server, "a") == [*range(10), *range(10)]


@pytest.mark.parametrize("length", [0, 7])
def test_a_file_without_a_record_is_passed_over(
    wandb_server: WandbServer, wandb_client: WandbClient, length: int
) -> None:
    folders = record(wandb_client, "a:0:3", "b:0:3")
    (path,) = Path(folders[0]).glob("*.wandb")
    path.write_bytes(path.read_bytes()[:length])
    assert wandb_client.wandb("sync", *folders).returncode == 0
    assert [synced(folder) for folder in folders] == [False, True]
    assert [run.name for run in wandb_server.runs("lab", "p")] == ["b"]


def test_sync_waits_while_the_server_fails_and_ends_when_it_is_back(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    (folder,) = record(wandb_client, "r:0:5")
    fault = wandb_server.faults.add("UpsertBucket", status=500)
    process = wandb_client.start([sys.executable, "-m", "wandb", "sync", folder])
    wait_until(lambda: fault.hits >= 2, 60, "a second try")
    assert process.poll() is None
    wandb_server.faults.lift(fault)
    process.communicate(timeout=60)
    assert (process.returncode, steps(wandb_server, "r")) == (0, list(range(5)))


def test_offline_artifacts_arrive_unless_their_files_are_gone(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    """GIVEN one artifact whose file is still there and one whose file is not THEN the sync calls both a success."""
    folder = wandb_client.python(
        """
        import os, wandb
        run = wandb.init(project="p", id="r", mode="offline")
        for name in ("kept", "gone"):
            with open(f"{name}.bin", "w") as file:
                file.write(name)
            artifact = wandb.Artifact(name, "model", metadata={"step": 3})
            artifact.add_file(f"{name}.bin", policy="immutable")
            run.log_artifact(artifact, aliases=["best"])
        run.finish()
        os.remove("gone.bin")
        answer = run.settings.sync_dir
        """
    )
    assert wandb_client.wandb("sync", folder).returncode == 0
    assert synced(folder)
    artifact = wandb_server.artifact("lab", "p", "kept:best")
    assert (artifact.state, artifact.version_index, list(artifact.entries)) == ("COMMITTED", 0, ["kept.bin"])
    states = {found.sequence.name: found.state for found in wandb_server.store.artifacts.values()}
    assert states == {"kept": "COMMITTED", "gone": "PENDING"}
    assert wandb_server.errors() == []
