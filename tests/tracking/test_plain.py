"""Offline folders of anybody's scripts: every row once on the server, or a reason that names what stands against it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import wandb

from tracking.sync.plain.folders import PlainOutcome, is_quiet, offline_folders, push_folders, run_id_of

from support import wait_until
from wandb_server import WandbClient, WandbServer

pytestmark = pytest.mark.wandb

# ID:ROWS:END, where the end is an exit code, `preempted`, or `killed` for a run that goes on until it is killed.
RECORD = """
import signal, sys, wandb
answer = []
for segment in sys.argv[1:]:
    name, rows, end = segment.split(":")
    run = wandb.init(project="p", id=name, mode="offline", reinit="create_new", config={segment: 1}, tags=[segment])
    for row in range(int(rows)):
        run.log({"x": row, "of": segment, "padding": "-" * 100})
    answer.append(run.settings.sync_dir)
    if end == "preempted":
        run.mark_preempting()
        run.finish(exit_code=143)
    elif end == "killed":
        signal.pause()
    else:
        run.summary["only " + segment] = 1
        run.finish(exit_code=int(end))
"""

PUSH = """
import json, sys
from pathlib import Path
from tracking.sync.plain.folders import push_folders
push_folders([Path(folder) for folder in sys.argv[1:]], timeout_s=120)
"""


@pytest.fixture
def pusher(wandb_client: WandbClient, monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbClient]:
    """Makes this process one that pushes to the loopback server."""
    for name in list(os.environ):
        if name.startswith("WANDB_") or name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    for name, value in wandb_client.environment().items():
        monkeypatch.setenv(name, value)
    yield wandb_client
    # W&B keeps the settings that it began with.
    wandb.teardown()


def record(client: WandbClient, *segments: str) -> list[Path]:
    return [Path(folder) for folder in client.python(RECORD, *segments)]


def record_killed(client: WandbClient, name: str, rows: int) -> Path:
    process = client.start_python(RECORD, f"{name}:{rows}:killed")
    pattern = f"wandb/offline-run-*/run-{name}.wandb"
    wait_until(lambda: any(b"padding" in path.read_bytes() for path in client.work.glob(pattern)), 60, "rows on disk")
    client.kill(process)
    (path,) = client.work.glob(pattern)
    return path.parent


def push(*folders: Path, timeout_s: float = 60.0) -> dict[str, PlainOutcome]:
    said: list[str] = []
    outcomes = push_folders(folders, timeout_s=timeout_s, say=said.append)
    assert sorted(outcome.folder for outcome in outcomes) == sorted(folders)
    assert len(said) == len(folders)
    return {outcome.folder.name: outcome for outcome in outcomes}


def rows(server: WandbServer, name: str) -> list[dict[str, Any]]:
    return server.rows("lab", "p", name)


def of(server: WandbServer, name: str) -> list[tuple[str, int]]:
    return [(row["of"], row["x"]) for row in rows(server, name)]


def logged(segment: str) -> list[tuple[str, int]]:
    return [(segment, row) for row in range(int(segment.split(":")[1]))]


def wandb_file(folder: Path) -> Path:
    return folder / f"run-{run_id_of(folder)}.wandb"


def cut(folder: Path, size: int) -> None:
    os.truncate(wandb_file(folder), size)


def is_pushed(folder: Path) -> bool:
    assert not (folder.parent / "pushing").exists()
    moved = (folder.parent / "pushed" / folder.name).is_dir()
    assert moved != folder.exists()
    return moved


def test_broken_folders_hold_nobody_up_and_are_named(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN three healthy folders and an empty, a 7-byte, a cut and a damaged one THEN all that can arrive does."""
    names = ["a:20:0", "b:30:3", "c:10:preempted", "empty:5:0", "header:5:0", "cut:600:0", "damaged:600:0"]
    folders = record(pusher, *names)
    a, b, c, empty, header, half, damaged = folders
    cut(empty, 0)
    cut(header, 7)
    cut(half, wandb_file(half).stat().st_size // 2)
    with wandb_file(damaged).open("r+b") as file:
        file.seek(50_000)
        file.write(b"not what stood here")

    assert offline_folders(a.parent) == sorted(folders)
    outcomes = push(*folders)

    for folder, name in zip((a, b, c), names[:3], strict=True):
        assert outcomes[folder.name].pushed
        assert of(wandb_server, name.split(":")[0]) == logged(name)
    runs = {run.name: run for run in wandb_server.runs("lab", "p")}
    assert {name: runs[name].state for name in "abc"} == {"a": "finished", "b": "failed", "c": "preempted"}
    assert (runs["b"].exit_code, runs["c"].exit_code) == (3, 143)
    assert "empty" in str(outcomes[empty.name].reason)
    assert "header" in str(outcomes[header.name].reason)
    assert of(wandb_server, "cut") == logged("cut:600:0")[: outcomes[half.name].rows]
    assert 200 < outcomes[half.name].rows < 400
    survivors = of(wandb_server, "damaged")
    assert survivors == [row for row in logged("damaged:600:0") if row in survivors]
    assert 400 < len(survivors) == outcomes[damaged.name].confirmed < 600
    assert (runs["cut"].state, runs["damaged"].state) == ("failed", "finished")
    assert [is_pushed(folder) for folder in folders] == [True, True, True, False, False, True, True]
    assert wandb_server.errors() == []


def test_what_is_already_there_is_only_moved(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN a folder that somebody has pushed by hand, with W&B's sync of either kind THEN no row is sent again."""
    old, new = record(pusher, "old:20:0", "new:20:0")
    pusher.wandb("sync", str(old))
    pusher.wandb("beta", "sync", str(new))
    sent = [len(wandb_server.run("lab", "p", name).history_file.uploads) for name in ("old", "new")]
    outcomes = push(old, new)
    assert [outcome.confirmed for outcome in outcomes.values() if outcome.pushed] == [20, 20], outcomes
    assert sent == [len(wandb_server.run("lab", "p", name).history_file.uploads) for name in ("old", "new")]
    assert is_pushed(old)


def test_a_state_that_was_pushed_wrongly_is_put_right(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN a failed run that `wandb sync` has shown as finished THEN its state is put right, and no row is sent."""
    (folder,) = record(pusher, "r:20:3")
    pusher.wandb("sync", str(folder))
    run = wandb_server.run("lab", "p", "r")
    assert run.state == "finished"
    assert push(folder)[folder.name].pushed
    assert (run.state, run.exit_code, len(run.history)) == ("failed", 3, 20)
    assert sum(upload.count for upload in run.history_file.uploads) == 20


@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_is_called_that(wandb_server: WandbServer, pusher: WandbClient, status: int) -> None:
    folders = record(pusher, "a:5:0", "b:5:0")
    with wandb_server.faults.during("*", status=status):
        outcomes = push(*folders)
    for outcome in outcomes.values():
        assert (outcome.pushed, outcome.refused, outcome.confirmed) == (False, True, 0)
        assert "refused the API key" in str(outcome.reason)
    assert all(outcome.pushed for outcome in push(*folders).values())


def test_history_that_is_refused_is_not_taken_for_pushed(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN 403 for the rows of one run alone, which W&B's sync calls a success THEN the other arrives."""
    a, b = record(pusher, "a:5:0", "b:5:0")
    with wandb_server.faults.during("file_stream/a", status=403):
        outcomes = push(a, b)
    assert outcomes[b.name].pushed
    refused = outcomes[a.name]
    assert (refused.pushed, refused.refused, refused.confirmed) == (False, True, 0)
    assert "status 403" in str(refused.reason)
    assert (is_pushed(a), is_pushed(b)) == (False, True)
    assert push(a)[a.name].pushed
    assert of(wandb_server, "a") == logged("a:5:0")


def test_a_stream_that_hangs_holds_its_own_folder_only(wandb_server: WandbServer, pusher: WandbClient) -> None:
    a, b = record(pusher, "a:5:0", "b:5:0")
    with wandb_server.faults.during("file_stream/a", "hang"):
        outcomes = push(a, b, timeout_s=6)
    assert outcomes[b.name].pushed
    assert "in time" in str(outcomes[a.name].reason)
    assert push(a)[a.name].pushed
    assert of(wandb_server, "a") == logged("a:5:0")


def test_a_server_that_is_gone_is_named_once_and_quickly(wandb_server: WandbServer, pusher: WandbClient) -> None:
    folders = record(pusher, "a:5:0", "b:5:0")
    wandb_server.close()
    begun = time.monotonic()
    outcomes = push(*folders)
    assert time.monotonic() - begun < 15
    assert all("cannot be reached" in str(outcome.reason) for outcome in outcomes.values())
    assert not any(outcome.refused for outcome in outcomes.values())


def test_a_check_that_fails_is_followed_by_one_more_attempt(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN 404 for the first requests of the stream THEN the second attempt pushes what is missing."""
    a, b = record(pusher, "a:20:0", "b:5:0")
    wandb_server.faults.add("file_stream/a", status=404, times=1)
    outcomes = push(a, b)
    assert [outcome.pushed for outcome in outcomes.values()] == [True, True]
    assert of(wandb_server, "a") == logged("a:20:0")


def test_a_killed_run_arrives_and_does_not_count_as_finished(wandb_server: WandbServer, pusher: WandbClient) -> None:
    folder = record_killed(pusher, "r", 3000)
    assert not is_quiet(folder)
    assert is_quiet(folder, 0.0)
    assert push(folder)[folder.name].pushed
    run = wandb_server.run("lab", "p", "r")
    arrived = of(wandb_server, "r")
    assert arrived == logged("r:3000:killed")[: len(arrived)]
    assert len(arrived) >= 50
    assert (run.state, run.exit_code) == ("failed", 1)


def test_segments_of_one_run_become_one_run_in_order(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN three folders with one id, the later ones first by name THEN every row is there once, in order."""
    segments = ["r:15:1", "r:10:1", "r:20:0"]
    folders = record(pusher, *segments)
    renamed = []
    for folder, name in zip(folders, ("3", "2", "1"), strict=True):
        renamed.append(folder.rename(folder.parent / f"offline-run-2026010{name}_120000-r"))
    outcomes = push(*sorted(renamed))
    assert [outcome.reason for outcome in outcomes.values()] == [None] * len(outcomes)
    run = wandb_server.run("lab", "p", "r")
    assert of(wandb_server, "r") == [row for segment in segments for row in logged(segment)]
    assert [row["_step"] for row in run.history] == list(range(45))
    assert sum(upload.overwritten for upload in run.history_file.uploads) == 0
    assert (run.state, set(run.config)) == ("finished", set(segments))
    assert (run.summary["_step"], set(run.tags)) == (44, set(segments))
    assert {f"only {segment}" for segment in segments} <= set(run.summary)


def test_a_segment_that_comes_later_is_put_behind(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN a first folder that is long pushed and removed THEN the next one is appended, once."""
    (first,) = record(pusher, "r:15:1")
    assert push(first)[first.name].pushed
    (second,) = record(pusher, "r:10:0")
    for _ in range(2):
        assert push(second)[second.name].pushed
        second = (second.parent / "pushed" / second.name).rename(second)
    assert of(wandb_server, "r") == logged("r:15:1") + logged("r:10:0")
    assert [row["_step"] for row in rows(wandb_server, "r")] == list(range(25))


def test_segments_that_overwrote_each_other_by_hand_are_mended(wandb_server: WandbServer, pusher: WandbClient) -> None:
    """GIVEN `wandb sync` of both by hand, which destroys rows THEN the rows that are missing come back."""
    folders = record(pusher, "r:15:1", "r:10:0")
    pusher.wandb("sync", *map(str, folders))
    assert len(rows(wandb_server, "r")) == 15
    assert all(outcome.pushed for outcome in push(*folders).values())
    assert sorted(of(wandb_server, "r")) == sorted(logged("r:15:1") + logged("r:10:0"))


def test_a_segment_waits_for_the_one_before_it(wandb_server: WandbServer, pusher: WandbClient) -> None:
    first, second = record(pusher, "r:15:1", "r:10:0")
    with wandb_server.faults.during("file_stream", status=403):
        outcomes = push(first, second)
    assert "waits for" in str(outcomes[second.name].reason)
    assert all(outcome.pushed for outcome in push(first, second).values())
    assert of(wandb_server, "r") == logged("r:15:1") + logged("r:10:0")


def test_media_of_a_copied_folder_arrive(wandb_server: WandbServer, pusher: WandbClient) -> None:
    folders = [
        Path(folder)
        for folder in pusher.python(
            """
            import numpy, wandb
            answer = []
            for number in range(2):
                run = wandb.init(project="p", id="r", mode="offline", reinit="create_new")
                run.log({"x": number, "image": wandb.Image(numpy.full((8, 8, 3), number * 99, dtype="uint8"))})
                run.finish()
                answer.append(run.settings.sync_dir)
            """
        )
    ]
    assert all(outcome.pushed for outcome in push(*folders).values())
    paths = [row["image"]["path"] for row in rows(wandb_server, "r")]
    files = wandb_server.files(wandb_server.run("lab", "p", "r"))
    assert len(set(paths)) == 2
    assert set(paths) <= set(files)


def test_a_folder_that_grew_meanwhile_stays_and_its_rest_comes_later(
    wandb_server: WandbServer, pusher: WandbClient
) -> None:
    """GIVEN a file of which the first half is on the disk when it is read THEN the rest is pushed next time."""
    (folder,) = record(pusher, "r:600:0")
    whole = wandb_file(folder).read_bytes()
    cut(folder, len(whole) // 2)
    fault = wandb_server.faults.add("file_stream/r", "slow", seconds=3.0, times=1)
    process = pusher.start_python(PUSH, str(folder), PYTHONPATH=str(Path.cwd()))
    wait_until(lambda: fault.hits, 60, "the push to begin")
    wandb_file(folder).write_bytes(whole)
    output, _ = process.communicate(timeout=60)
    assert "grown" in output, output
    assert not is_pushed(folder)
    assert push(folder)[folder.name].pushed
    assert of(wandb_server, "r") == logged("r:600:0")
    assert wandb_server.run("lab", "p", "r").state == "finished"


@pytest.mark.parametrize("after", [0, 1, 2, 4])
def test_kill_9_in_the_middle_of_a_push(wandb_server: WandbServer, pusher: WandbClient, after: int) -> None:
    """GIVEN a push that is killed with rows on the server, twice THEN the next one brings exactly the rest."""
    folders = record(pusher, "a:2000:0", "b:20:2", "b:30:0")
    for _ in range(2):
        kill_a_push(wandb_server, pusher, folders, after)
        folders = [folder for folder in folders if folder.exists()]
    outcomes = push(*folders)
    assert [outcome.reason for outcome in outcomes.values()] == [None] * len(folders)
    assert of(wandb_server, "a") == logged("a:2000:0")
    assert of(wandb_server, "b") == logged("b:20:2") + logged("b:30:0")
    assert {run.state for run in wandb_server.runs("lab", "p")} == {"finished"}
    for name in ("a", "b"):
        assert sum(upload.changed for upload in wandb_server.run("lab", "p", name).history_file.uploads) == 0


def kill_a_push(server: WandbServer, client: WandbClient, folders: list[Path], after: int) -> None:
    """Starts a push and kills it when the server has taken so many requests of rows."""
    with server.faults.during("file_stream*", "hang") as fault:
        fault.after = after
        process = client.start_python(
            PUSH, *map(str, folders), PYTHONPATH=str(Path.cwd()), WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL="0.1"
        )
        wait_until(lambda: fault.hits or process.poll() is not None, 60, "the push to be held")
        process.kill()
        process.communicate()
        wait_until(lambda: not syncing(folders[0].parent), 10, "W&B's sync to end with the one that started it")


def syncing(wandb_dir: Path) -> list[int]:
    """The processes whose command line names a folder in there."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(wandb_dir).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("name", ["plain", "sp ace", "quo'te", "new\nline", "-n"])
def test_odd_paths(wandb_server: WandbServer, pusher: WandbClient, name: str, tmp_path: Path) -> None:
    (folder,) = record(pusher, "r:5:0")
    odd = tmp_path / name / "wandb"
    odd.mkdir(parents=True)
    folder = folder.rename(odd / folder.name)
    assert push(folder)[folder.name].pushed
    assert of(wandb_server, "r") == logged("r:5:0")
