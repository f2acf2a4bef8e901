"""What W&B shows of a run beside its rows when another host replays it later: as if it had been there."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tracking.journal.lines import dump, segment_path
from tracking.sync.views.origin import Origin, read_origin

from online_runs import log, online_environment, tracker_for
from wandb_server import WandbClient, WandbServer

__all__ = ["online_environment"]

pytestmark = pytest.mark.wandb

CREATED = 1_700_000_000.25
LOG = "--- segment 0, on node6\nstep 0\n--- segment 1, on node7\nTraceback: it's “over”\n"


def lines_of(segment: int, host: str, commit: str) -> list[bytes]:
    """A segment of three rows, ten seconds apart, whose attempt began an hour after the one before."""
    begin = CREATED + 3600 * segment
    metadata = {
        "git": {"commit": commit * 40, "branch": "work", "dirty": False, "remote": "https://example.org/code.git"},
        "slurm": {"job_id": "12", "nodes": host, "restart_count": segment, "account": None},
        "host": {"name": host, "platform": "Linux-5.14", "cpus": 16},
        "versions": {"python": "3.11.7", "cuda": "12.4"},
        "command": "python train.py --lr 0.1",
        "program": "train.py",
        "arguments": ["--lr", "0.1"],
        "folder": "/home/me/code",
    }
    first = 3 * segment
    rows = [dump("row", n=n, step=n, time=begin + 10 * n, data={"loss": 1 / (n + 1)}) for n in range(first, first + 3)]
    return [
        dump(
            "segment", segment=segment, first_row=first, run_id="ab12cd34", time=begin, host=host,
            job=metadata["slurm"], resumed_step=None, tags=["a"], group=None, job_type="bc", notes="why",
        ),
        dump("config", config={"lr": 0.1}),
        dump("metadata", metadata=metadata),
        *rows,
    ]  # fmt: skip


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two attempts on two nodes, long ago, that ended well."""
    folder = tmp_path / "runs" / "act"
    folder.mkdir(parents=True)
    identity = {"run_id": "ab12cd34", "run_name": "act", "project": "p", "entity": None, "created": CREATED}
    (folder / "run.json").write_text(json.dumps(identity))
    segment_path(folder, 0).write_bytes(b"".join(lines_of(0, "node6", "a")))
    end = dump("end", state="finished", exit_code=0, time=CREATED + 4000)
    segment_path(folder, 1).write_bytes(b"".join([*lines_of(1, "node7", "b"), end]))
    (folder / "output.log").write_text(LOG)
    return folder


def replay(client: WandbClient, run_dir: Path, mode: str) -> None:
    client.work.mkdir(parents=True, exist_ok=True)
    child = [sys.executable, "-m", "tracking.sync.child", str(run_dir), f"--wandb-dir={client.work}", f"--mode={mode}"]
    done = client.run(child)
    assert done.returncode == 0, done.stdout


def assert_shows_the_original(server: WandbServer) -> None:
    run = server.run(server.entity, "p", "ab12cd34")
    assert run.values["host"] == "node7"
    assert run.values["commit"] == "b" * 40
    assert run.values["jobRepo"] == "https://example.org/code.git"
    assert (run.values["notes"], run.values["jobType"], run.tags) == ("why", "bc", ["a"])
    assert [row["_timestamp"] for row in run.history] == [CREATED + 3600 * (n // 3) + 10 * n for n in range(6)]
    files = server.files(run)
    assert files["output.log"].decode() == LOG
    assert json.loads(files["wandb-metadata.json"]) == {
        "os": "Linux-5.14",
        "python": "CPython 3.11.7",
        "startedAt": "2023-11-14T22:13:20.250000Z",
        "program": "train.py",
        "args": ["--lr", "0.1"],
        "git": {"remote": "https://example.org/code.git", "commit": "b" * 40},
        "root": "/home/me/code",
        "host": "node7",
        "cpu_count": 16,
        "cudaVersion": "12.4",
        "slurm": {"job_id": "12", "nodes": "node7", "restart_count": "1"},
    }
    assert run.state == "finished"


def test_a_replay_on_another_host_shows_the_one_that_trained(
    wandb_server: WandbServer, wandb_client: WandbClient, run_dir: Path
) -> None:
    replay(wandb_client, run_dir, "online")

    assert_shows_the_original(wandb_server)
    assert wandb_server.run(wandb_server.entity, "p", "ab12cd34").values["jobProgram"] == "train.py"


def test_an_offline_folder_shows_the_same_when_the_run_folder_has_moved(
    wandb_server: WandbServer, wandb_client: WandbClient, run_dir: Path
) -> None:
    replay(wandb_client, run_dir, "offline")
    run_dir.rename(run_dir.with_name("elsewhere"))
    (folder,) = (wandb_client.work / "wandb").glob("offline-run-*")
    folder = folder.rename(wandb_client.work / folder.name)

    done = wandb_client.wandb("sync", str(folder))

    assert done.returncode == 0, done.stdout
    assert_shows_the_original(wandb_server)


def test_a_run_of_which_nothing_is_known_is_shown_too(
    wandb_server: WandbServer, wandb_client: WandbClient, run_dir: Path
) -> None:
    """GIVEN journals of an earlier version, without metadata and without a log."""
    for number in (0, 1):
        path = segment_path(run_dir, number)
        path.write_bytes(b"".join(line for line in path.open("rb") if b'"kind":"metadata"' not in line))
    (run_dir / "output.log").unlink()

    replay(wandb_client, run_dir, "online")

    run = wandb_server.run(wandb_server.entity, "p", "ab12cd34")
    assert len(run.history) == 6
    assert run.values["host"] == "node7"
    assert "output.log" not in wandb_server.files(run)


def test_a_growing_log_is_uploaded_when_it_has_grown(
    wandb_server: WandbServer, wandb_client: WandbClient, run_dir: Path
) -> None:
    uploads: Any = wandb_client.python(
        """
        import json, sys, time, urllib.request
        from pathlib import Path
        from tracking.identity import read_identity
        from tracking.labels import NO_LABELS
        from tracking.sync.views.engine import Replay, open_run
        run_dir = Path(sys.argv[1])
        run = open_run(read_identity(run_dir), NO_LABELS, mode="online", directory=Path.cwd())
        files = Replay(run, run_dir).files
        files.advance()
        with (run_dir / "output.log").open("a") as log:
            log.write("more\\n")
        files.advance()
        answer = [Path(run.dir, "output.log").read_text()]
        files.upload()
        answer.append(Path(run.dir, "output.log").read_text())
        Path(run.dir, "output.log").write_text("not copied again")
        files.upload()
        answer.append(Path(run.dir, "output.log").read_text())
        Path(run.dir, "output.log").write_text(answer[1])
        run.finish()
        """,
        str(run_dir),
    )

    run = wandb_server.run(wandb_server.entity, "p", "ab12cd34")
    assert uploads == [LOG, LOG + "more\n", "not copied again"]
    assert wandb_server.files(run)["output.log"].decode() == LOG + "more\n"


@pytest.mark.usefixtures("online_environment")
def test_the_log_of_a_tracked_run_holds_every_segment(
    wandb_server: WandbServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (1, 2):
        tracker = tracker_for(tmp_path / "run")
        log(tracker, step, step)
        print("trained", step)
        tracker.finish()

    printed = capsys.readouterr().out
    assert printed.count("rows at http") == 2
    run = wandb_server.run(wandb_server.entity, "vla-lego", tracker.get_run_id() or "")
    uploaded = wandb_server.files(run)["output.log"].decode()
    assert uploaded == (tmp_path / "run" / "output.log").read_text()
    assert [line for line in uploaded.splitlines() if line.startswith("trained")] == ["trained 1", "trained 2"]
    assert run.values["host"] == os.uname().nodename


def test_the_newest_segment_that_says_something_is_the_origin(run_dir: Path) -> None:
    assert read_origin(run_dir).host == "node7"
    segment_path(run_dir, 2).write_bytes(b"")
    assert read_origin(run_dir).commit == "b" * 40
    segment_path(run_dir, 2).write_bytes(lines_of(2, "node8", "c")[0] + b'{"kind":"metadata","meta')
    assert read_origin(run_dir).host == "node8"
    assert read_origin(run_dir).commit is None
    assert read_origin(run_dir).overview["startedAt"] == "2023-11-14T22:13:20.250000Z"
    assert read_origin(run_dir.parent) == Origin()
