"""`once` and `run`: what is there is pushed, once, and what cannot be is named with what to do."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tracking.artifacts import put_config
from tracking.intents import pending_intents, pinned_files
from tracking.sync.claims import Claim, Observer
from tracking.sync.pushed import read_push_state, write_push_state

from support import free_port, wait_until
from sync_runs import (
    begin,
    end,
    fall_silent,
    history,
    hold_from_elsewhere,
    keep,
    log,
    record_offline,
    record_plain,
    run_on_server,
    site,
    sync,
    write_run,
)
from sync_site import PROJECT, Site
from wandb_server.runs import Run

__all__ = ["site"]

pytestmark = pytest.mark.wandb

EVERYTHING = "Everything is on the server already.\n"

# The command line with less patience for others: how long a heart may stand still, how long a folder is waited for.
IMPATIENT = """
import sys
from tracking.sync import claims, foreground
from tracking.sync.__main__ import main
claims._DEAD_S, foreground._HELD_S = float(sys.argv.pop(1)), float(sys.argv.pop(1))
main()
"""

WRITING = """
import time, wandb
from pathlib import Path
run = wandb.init(project="plain", id="script", mode="offline")
run.log({"x": 0})
Path("writes").touch()
while not Path("end").exists():
    time.sleep(0.05)
run.log({"x": 1})
run.finish()
"""


def plain_run(site: Site, name: str) -> Run:
    return site.server.run(site.server.entity, "plain", name)


def impatient(site: Site, dead: float, held: float, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", IMPATIENT, str(dead), str(held), *map(str, arguments)]
    return subprocess.run(
        command, cwd=site.folder, env=site.environment(), check=False, capture_output=True, text=True, timeout=60
    )


def let_settle(run_dir: Path) -> None:
    """Makes a run's push one of two minutes ago."""
    state = read_push_state(run_dir)
    assert state is not None
    write_push_state(run_dir, replace(state, time=time.time() - 120))


def test_whatever_is_there_is_pushed_and_a_broken_run_holds_nobody_up(site: Site) -> None:
    shown = {"finished": "finished", "preempted": "preempted", "crashed": "failed", "killed": "failed"}
    write_run(site.root / "finished", 20)
    write_run(site.root / "preempted", 20, "preempted")
    write_run(site.root / "crashed", 20, "crashed")
    killed = begin(site.root / "killed")
    log(killed, 1, 20)
    fall_silent(site.root / "killed")
    grouped = write_run(site.root / "a group" / "grouped", 10)
    live = begin(site.root / "live")
    log(live, 1, 20)
    broken = write_run(site.root / "broken", 20)
    journal = broken / "journal-000.jsonl"
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[1:]))

    done = sync(site, "once", "--root", site.root)

    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "5 on the server, 1 on the server as far as written, 1 not pushed"
    assert done.stderr == f"error: {broken}: {journal} does not begin with a segment line\n"
    for name in [*shown, "live"]:
        tally = site.tally(name)
        assert tally.is_whole
        assert (tally.there, tally.state) == (20, shown.get(name, "running"))
    assert len(run_on_server(site, grouped).history) == 10
    assert site.state("broken") == "absent"

    # The broken one is taken away, the live one ends, and the one that was thought to be dead goes on.
    (broken / "run.json").unlink()
    log(live, 21, 30)
    end(live)
    log(killed, 21, 25)
    done = sync(site, "once", "--root", site.root)
    last = "1 on the server, 1 on the server as far as written"
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, last)
    assert site.tally("live").is_whole
    assert site.tally("killed").is_whole
    assert (site.tally("live").there, site.state("live")) == (30, "finished")
    assert (site.tally("killed").there, site.state("killed")) == (25, "running")
    end(killed)
    assert sync(site, "once", "--root", site.root).returncode == 0

    asked = len(site.server.requests)
    done = sync(site, "once", "--root", site.root)
    assert (done.returncode, done.stdout) == (0, EVERYTHING)
    assert len(site.server.requests) == asked
    assert site.server.errors() == []


def test_segments_with_a_roll_back_and_a_writer_that_comes_back_are_one_run(site: Site) -> None:
    run_dir = site.root / "run"
    first = begin(run_dir)
    log(first, 1, 30)
    second = begin(run_dir)
    log(first, 31, 35)
    log(second, 21, 50)
    end(second, "preempted")
    done = sync(site, "once", "--root", site.root)
    assert done.returncode == 0, done.stderr
    assert site.state("run") == "preempted"
    third = begin(run_dir)
    log(third, 51, 60)
    end(third)
    done = sync(site, "once", "--root", site.root)
    assert done.returncode == 0, done.stderr

    rows = site.server_rows("run")
    assert [row["train/step"] for row in rows] == [*range(1, 31), *range(21, 61)]
    assert site.tally("run").is_whole
    assert site.state("run") == "finished"
    # The second push began behind the first one.
    assert sum(upload.overwritten for upload in history(site, run_dir).uploads) == 0


def test_what_was_lost_on_the_server_after_the_push_is_pushed_again(site: Site) -> None:
    """GIVEN runs that were pushed a while ago WHEN the server has less or another state THEN they are mended."""
    kept, reopened, shortened, deleted = names = ["kept", "reopened", "shortened", "deleted"]
    for name in names:
        write_run(site.root / name, 10)
    assert sync(site, "once", "--root", site.root).returncode == 0
    run_on_server(site, site.root / reopened).declared_state = "running"
    keep(history(site, site.root / shortened), 7)
    site.server.store.delete_run(run_on_server(site, site.root / deleted).id, with_artifacts=False)
    uploads = len(history(site, site.root / kept).uploads)
    assert sync(site, "once", "--root", site.root).stdout == EVERYTHING
    for name in names:
        let_settle(site.root / name)

    done = sync(site, "once", "--root", site.root)

    assert done.returncode == 0, done.stderr
    assert "shortened: the server has 7 rows, finished: pushing again" in done.stdout
    assert [(site.tally(name).is_whole, site.state(name)) for name in names] == [(True, "finished")] * 4
    assert len(history(site, site.root / kept).uploads) == uploads


def test_folders_of_scripts_and_of_journals_in_one_wandb_folder_are_told_apart(site: Site) -> None:
    """GIVEN ./runs and ./wandb, which are looked after by themselves, WHEN pushed THEN each row is sent once."""
    run_dir = write_run(site.root / "run", 20)
    own, plain = record_offline(site, run_dir), record_plain(site, "script", 15)
    assert own.parent == plain.parent == site.folder / "wandb"

    done = sync(site, "once")

    assert done.returncode == 0, done.stderr
    assert [row["x"] for row in plain_run(site, "script").history] == list(range(15))
    assert site.tally("run").is_whole
    assert sum(upload.count for upload in history(site, run_dir).uploads) == 20
    assert len(site.server.runs(site.server.entity, PROJECT)) == 1
    assert list((site.folder / "wandb").glob("offline-run-*")) == []
    assert {path.name for path in (site.folder / "wandb" / "pushed").iterdir()} == {own.name, plain.name}
    assert sync(site, "once").stdout == EVERYTHING


def test_a_folder_that_a_script_still_writes_is_left_until_it_is_over(site: Site) -> None:
    running = site.client.start_python(WRITING, WANDB_DIR=str(site.folder))
    try:
        wait_until((site.client.work / "writes").exists, 60, "the script to write")
        done = sync(site, "once")
        assert (done.returncode, done.stdout) == (0, "1 left until nobody writes it\n")
        assert "it may still be written; next try in " in sync(site, "status").stdout
        assert site.server.runs(site.server.entity, "plain") == []
    finally:
        (site.client.work / "end").touch()
        running.communicate(timeout=60)
    done = sync(site, "once")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 on the server")
    assert [row["x"] for row in plain_run(site, "script").history] == [0, 1]


def test_an_upload_that_the_server_does_not_take_stays_put_aside(site: Site) -> None:
    run_dir = write_run(site.root / "run", 10)
    put_config(run_dir, "run", {"lr": 0.5})
    (intent,) = pending_intents(run_dir)
    pinned = pinned_files(run_dir)
    with site.server.faults.during("CommitArtifact", status=400) as fault:
        done = sync(site, "once", "--root", site.root)
    assert fault.hits > 0
    assert done.returncode == 1
    assert f"error: {run_dir}: {intent.name} is not uploaded" in done.stderr
    # The rows are not held up.
    assert (site.tally("run").there, site.state("run")) == (10, "finished")
    assert pending_intents(run_dir) == [intent]
    assert pinned_files(run_dir) == pinned
    (line,) = json.loads(sync(site, "status", "--json", "--root", site.root).stdout)["runs"]
    assert line["waiting"] == 1
    assert line["error"].startswith(f"{intent.name} is not uploaded")
    assert line["next_try"] > time.time()

    done = sync(site, "once", "--root", site.root)

    assert done.returncode == 0, done.stderr
    assert pending_intents(run_dir) == []
    assert pinned_files(run_dir) == set()
    assert site.tally("run").is_whole  # one version, too
    assert site.server.collection(site.server.entity, PROJECT, "run-config").versions == 1
    (line,) = json.loads(sync(site, "status", "--json", "--root", site.root).stdout)["runs"]
    assert (line["waiting"], line["error"], line["state"]) == (0, None, "finished")


def test_a_key_that_is_refused(site: Site) -> None:
    write_run(site.root / "run", 10)
    done = sync(site, "once", "--root", site.root, WANDB_API_KEY="f" * 40)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: the key was refused: {site.server.url} refused the API key (401)",
        "  next: `wandb login`, or set WANDB_API_KEY",
    ]
    site.client.settings["WANDB_API_KEY"] = ""
    done = sync(site, "run", site.root / "run")
    assert done.returncode == 2
    assert "there is no API key" in done.stderr
    assert site.state("run") == "absent"


def test_a_server_that_is_away(site: Site) -> None:
    write_run(site.root / "run", 10)
    site.server.stop_listening()
    begun = time.monotonic()
    done = sync(site, "once", "--root", site.root)
    assert time.monotonic() - begun < 15
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: {site.server.url} cannot be reached: Connection refused; nothing is lost",
        "  next: the same command where there is internet",
    ]
    site.server.resume_listening()
    with site.server.faults.during("*", status=502):
        done = sync(site, "once", "--root", site.root)
    assert (done.returncode, "answers with status 502" in done.stderr) == (2, True)
    assert sync(site, "once", "--root", site.root).returncode == 0
    assert site.tally("run").is_whole


def test_named_runs_of_every_kind_are_pushed(site: Site) -> None:
    run_dir = write_run(site.root / "run", 10)
    other = write_run(site.root / "other", 12)
    unnamed = write_run(site.root / "unnamed", 5)
    own, plain = record_offline(site, other), record_plain(site, "script", 15)
    elsewhere = record_plain(site, "elsewhere", 4)

    done = sync(site, "run", os.path.relpath(run_dir, site.folder), own, plain)

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "3 on the server"
    assert (site.tally("run").there, site.tally("other").there) == (10, 12)
    assert site.tally("other").is_whole
    assert len(plain_run(site, "script").history) == 15
    assert (site.state(unnamed.name), elsewhere.exists()) == ("absent", True)
    assert sync(site, "run", site.folder / "wandb").returncode == 0
    assert len(plain_run(site, "elsewhere").history) == 4
    assert not elsewhere.exists()


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("runs/missing", "there is no such folder\n  next: python -m tracking.sync status"),
        ("runs", "is neither a run folder (with run.json) nor one of W&B's offline folders"),
        ("runs/file", "there is no such folder"),
    ],
)
def test_a_path_that_is_no_run(site: Site, path: str, words: str) -> None:
    (site.root / "file").touch()
    done = sync(site, "run", path)
    assert done.returncode == 2
    assert f"error: {site.folder / path}" in done.stderr
    assert words in done.stderr


def test_a_run_folder_that_is_broken_is_named(site: Site) -> None:
    run_dir = write_run(site.root / "run", 10)
    (run_dir / "run.json").write_text("{}")
    done = sync(site, "run", run_dir)
    assert done.returncode == 2
    assert f"{run_dir / 'run.json'} does not describe a run" in done.stderr


def test_the_end_of_a_job(site: Site, weird_tmp_path: Path) -> None:
    """GIVEN no internet THEN the line that a job prints at its end pushes the run, pasted into a shell."""
    run_dir = write_run(weird_tmp_path / "run", 10)
    arguments = ["run", "run", "--closing"]
    away = sync(site, *arguments, cwd=weird_tmp_path, WANDB_BASE_URL=f"http://127.0.0.1:{free_port()}")
    assert (away.returncode, away.stderr) == (0, "")
    words, _, command = away.stdout.partition("to push this run, on a login node: ")
    assert words.endswith("cannot be reached: Connection refused; nothing is lost\n")
    done = subprocess.run(["bash", "-c", command], env=site.environment(), check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(run_on_server(site, run_dir).history) == 10
    again = sync(site, *arguments, cwd=weird_tmp_path)
    assert (again.returncode, again.stdout, again.stderr) == (0, "", "")


def test_the_end_of_a_job_with_internet(site: Site) -> None:
    """GIVEN folders of every kind THEN what is not over is named in the line, and nothing holds up the others."""
    finished, live = write_run(site.root / "finished", 10), write_run(site.root / "live", 10, None)
    offline = write_run(site.root / "offline", 10)
    own = record_offline(site, offline)
    done = sync(site, "run", finished, live, site.root / "missing", own, "--closing")
    assert (done.returncode, done.stderr) == (0, "")
    assert [site.tally(name).is_whole for name in ("finished", "live", "offline")] == [True] * 3
    first, *_, last = done.stdout.splitlines()
    assert first == f"[sync] {site.root / 'missing'}: there is no such folder"
    assert last.endswith(f" -m tracking.sync run {shlex.quote(str(live))}")
    assert "login node" not in done.stdout.removesuffix(f"{last}\n")


def test_a_run_that_another_process_pushes_is_left_to_it(site: Site) -> None:
    run_dir = write_run(site.root / "run", 10)
    held = Claim.take(run_dir, "daemon", Observer())
    assert held is not None
    done = impatient(site, 30.0, 0.0, "once", "--root", site.root)
    assert (done.returncode, done.stdout) == (0, "1 pushed by another process\n")
    assert held.is_mine()
    assert site.state("run") == "absent"


def test_a_holder_on_another_host_that_shows_no_life_is_replaced(site: Site) -> None:
    run_dir = write_run(site.root / "run", 10)
    hold_from_elsewhere(run_dir)
    done = impatient(site, 1.0, 20.0, "once", "--root", site.root)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "1 on the server")
    assert site.tally("run").is_whole


def test_ctrl_c_leaves_at_once_and_says_so(site: Site) -> None:
    """GIVEN rows that do not arrive WHEN interrupted THEN it ends soon, names the run, and the next one goes on."""
    live = write_run(site.root / "live", 10, None)
    fault = site.server.faults.add("file_stream", "hang")
    command = [sys.executable, "-m", "tracking.sync", "once", f"--root={site.root}"]
    with subprocess.Popen(
        command, env=site.environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as once:
        wait_until(lambda: fault.hits, 30, "the rows to be sent")
        once.send_signal(signal.SIGINT)
        _, said = once.communicate(timeout=10)
    assert once.returncode == 1
    assert f"error: {live}: interrupted; the same command goes on from there" in said
    site.server.faults.clear()
    assert sync(site, "once", "--root", site.root).returncode == 0
    assert site.tally("live").is_whole
    assert site.state("live") == "running"
