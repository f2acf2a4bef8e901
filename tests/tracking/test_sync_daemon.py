"""The daemon: a small process that looks, another one that pushes, and both leave when they should."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from tracking.artifacts import put_config
from tracking.sync.child.status import read_status
from tracking.sync.daemon import DaemonState, read_daemons
from tracking.sync.pushed import PushState, journal_position, read_push_state, write_push_state
from tracking.sync.scan import Scanner

from runs import offline_folders
from support import wait_until
from sync_runs import begin, end, hold_from_elsewhere, log, site, sync, write_run
from sync_site import Site, kill, tree

__all__ = ["site"]

pytestmark = pytest.mark.wandb

INTERVAL = "--interval=0.5"

# The daemon with less patience for a server that is away.
IMPATIENT = """
import sys
from tracking.sync import daemon
from tracking.sync.__main__ import main
daemon._FIRST_PAUSE_S = 2.0
main()
"""


def start(site: Site, *arguments: str, code: str | None = None, **variables: str) -> subprocess.Popen[Any]:
    """A daemon, which is ended with the site; its words are in `daemon.log`."""
    program = ["-m", "tracking.sync"] if code is None else ["-c", code]
    with (site.folder / "daemon.log").open("ab") as said:
        process = subprocess.Popen(
            [sys.executable, *program, "daemon", f"--root={site.root}", INTERVAL, *arguments],
            cwd=site.folder,
            env=site.environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=said,
        )
    site.processes.append(process)
    wait_for(site, lambda state: state.pid == process.pid and state.looked > 0)
    return process


def wait_for(site: Site, holds: Callable[[DaemonState], bool], timeout: float = 30.0) -> DaemonState:
    """Waits until the daemon says something of itself."""

    def found() -> DaemonState | None:
        return next((state for state in read_daemons(site.root) if holds(state)), None)

    state = wait_until(found, timeout, f"the daemon to say so: {site.said()}")
    assert state is not None
    return state


def pushers(daemon: psutil.Process | int) -> list[psutil.Process]:
    pid = daemon if isinstance(daemon, int) else daemon.pid
    return [process for process in tree(pid)[1:] if "tracking.sync.pushing" in process.cmdline()]


def all_gone(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def status(site: Site) -> dict[str, Any]:
    done = sync(site, "status", "--json", f"--root={site.root}")
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_what_is_due(tmp_path: Path) -> None:
    """Pushed at once, looked at once more a minute after the end, tried again in time, and then left in peace."""
    root = tmp_path / "runs"
    for name in ("settled", "ended", "failed", "grown", "uploads", "new"):
        run_dir = write_run(root / name, 3)
        state = PushState(rows=3, confirmed=3, seen=journal_position(run_dir), closed="finished", settled=True)
        if name in ("ended", "failed"):
            state = replace(state, settled=False)
        if name == "failed":
            state = state.failed("away")
        if name != "new":
            write_push_state(run_dir, state)
    end(begin(root / "grown"))
    put_config(root / "uploads", "uploads", {"lr": 1})
    (root / "empty").mkdir()
    held = hold_from_elsewhere(root / "grown")
    scanner = Scanner([root])

    def due(*, again: bool = False) -> list[str]:
        return [path.name for path in scanner.due(again=again)]

    assert due() == ["new", "uploads"]
    assert due(again=True) == ["failed", "grown", "new", "uploads"]
    held.release()
    for name, seconds in (("ended", 61), ("failed", 31)):
        state = read_push_state(root / name) or PushState()
        later = state.next_try - seconds if state.next_try is not None else None
        write_push_state(root / name, replace(state, time=state.time - seconds, next_try=later))
    assert due() == ["ended", "failed", "grown", "new", "uploads"]
    # What was settled before is looked at again when anything in its folder changes.
    log(begin(root / "settled"), 4, 4)
    assert "settled" in due()


def test_the_pause_after_a_fault_doubles_up_to_an_hour() -> None:
    state, pauses = PushState(), []
    for _ in range(10):
        now = time.time()
        state = state.failed("away")
        pauses.append(round((state.next_try or 0) - now))
    assert pauses == [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]


def test_it_looks_cheaply_and_its_pusher_comes_and_goes(site: Site) -> None:
    daemon = start(site)
    maps = Path(f"/proc/{daemon.pid}/maps").read_text()
    assert sys.version.split()[0].rpartition(".")[0] in maps
    for library in ("wandb", "numpy", "pydantic", "google"):
        assert library not in maps
    assert psutil.Process(daemon.pid).memory_info().rss < 30e6
    assert tree(daemon.pid)[1:] == []
    assert site.server.requests == []

    live = begin(site.root / "live")
    log(live, 1, 10)
    write_run(site.root / "finished", 10)
    site.wait_whole(["finished"])
    site.wait_rows("live", 10)
    log(live, 11, 20)
    site.wait_rows("live", 20)
    assert site.state("live") == "running"
    assert pushers(daemon.pid) != []
    assert wait_for(site, lambda state: state.pushing).ended is None
    end(live)
    site.wait_whole(["live"])
    assert site.state("live") == "finished"

    wait_until(lambda: tree(daemon.pid)[1:] == [], 20, "the pushing process to leave")
    wait_for(site, lambda state: not state.pushing)
    assert psutil.Process(daemon.pid).memory_info().rss < 30e6
    assert site.stop(daemon) == 0
    assert wait_for(site, lambda state: state.pid == daemon.pid).ended == "a signal"
    assert list((site.root / ".sync").glob("*.pid")) == []
    assert site.server.errors() == []


def test_a_second_one_on_a_root_is_refused_and_told_of_the_first(site: Site) -> None:
    first = start(site)
    link = site.folder / "link"
    link.symlink_to(site.root)
    other = site.folder / "other"
    other.mkdir()
    for roots in ([site.root], [link], [other, site.root]):
        begun = time.monotonic()
        done = sync(site, "daemon", *[f"--root={root}" for root in roots])
        assert time.monotonic() - begun < 10
        assert done.returncode == 2
        assert done.stderr.startswith(f"error: a daemon looks after {roots[-1]} on {os.uname().nodename} already: ")
        assert f"process {first.pid}, since " in done.stderr
        assert f"kill {first.pid}" in done.stderr
    # One that was killed leaves nothing that stands in the way.
    first.kill()
    first.wait()
    site.stop(start(site))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_when_it_ends_runs_stay_open_and_the_next_one_goes_on(site: Site, number: signal.Signals) -> None:
    """GIVEN a live run WHEN the daemon ends or is killed THEN its pusher leaves, and the run still runs."""
    daemon = start(site)
    live = begin(site.root / "live")
    log(live, 1, 10)
    site.wait_rows("live", 10)
    processes = tree(daemon.pid)[1:]
    assert len(processes) >= 2  # W&B's service is among them
    daemon.send_signal(number)
    daemon.wait(30)
    wait_until(lambda: all_gone(processes), 30, "the pushing process to leave")
    assert site.state("live") == "running"

    log(live, 11, 20)
    end(live)
    daemon = start(site)
    site.wait_whole(["live"])
    assert site.state("live") == "finished"
    assert site.stop(daemon) == 0


def test_detached_it_survives_the_logout(site: Site) -> None:
    command = shlex.join([sys.executable, "-m", "tracking.sync", "--detach", f"--root={site.root}", INTERVAL])
    # A terminal of its own, which hangs up when the command has ended.
    login = subprocess.run(
        [shutil.which("script") or "script", "--quiet", "--return", "--command", command, os.devnull],
        cwd=site.folder,
        env=site.environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert login.returncode == 0
    words = re.fullmatch(
        rf"The daemon runs as process (\d+) on {os.uname().nodename}\.\n  log: (.+)\n  end it: kill \1\n",
        login.stdout.replace("\r\n", "\n"),
    )
    assert words is not None, login.stdout
    daemon, said = psutil.Process(int(words[1])), Path(words[2])
    try:
        assert read_pid(site) == daemon.pid
        write_run(site.root / "run", 10)
        site.wait_whole(["run"])
        wait_until(lambda: "run: 10 rows on the server, finished" in said.read_text(), 20, "the log to say so")
        processes = tree(daemon.pid)
        daemon.terminate()
        wait_until(lambda: all_gone(processes), 30, "the daemon and its pusher to end")
    finally:
        kill(tree(daemon.pid))
    assert said.read_text().endswith(" the daemon ends: a signal\n")
    assert wait_for(site, lambda state: state.pid == daemon.pid).ended == "a signal"


def read_pid(site: Site) -> int:
    path = site.root / ".sync" / f"daemon-{os.uname().nodename}.pid"
    return int(wait_until(lambda: path.exists() and path.read_text(), 10, "the daemon's process number") or 0)


def test_it_ends_by_itself_after_max_hours(site: Site) -> None:
    daemon = start(site, f"--max-hours={2 / 3600}")
    assert daemon.wait(15) == 0
    assert wait_for(site, lambda state: state.pid == daemon.pid).ended == "--max-hours"
    assert site.said().endswith("the daemon ends: --max-hours\n")


def test_a_server_that_is_away_is_tried_less_and_less_often(site: Site) -> None:
    write_run(site.root / "run", 10)
    site.server.stop_listening()
    daemon = start(site, code=IMPATIENT)
    reason = f"{site.server.url} cannot be reached: Connection refused"
    wait_until(lambda: f"{reason}; next try in 4 s" in site.said(), 60, "the second try")
    assert site.said().index(f"{reason}; next try in 2 s") < site.said().index(f"{reason}; next try in 4 s")
    assert pushers(daemon.pid) == []
    (shown,) = status(site)["daemons"]
    assert (shown["error"], shown["ended"]) == (reason, None)
    assert shown["next_try"] > time.time()
    table = sync(site, "status", f"--root={site.root}").stdout
    assert f"{reason}; next try in " in table.splitlines()[0]
    site.server.resume_listening()
    site.wait_whole(["run"])
    assert wait_for(site, lambda state: state.error is None).next_try is None
    assert site.stop(daemon) == 0


def test_a_refused_key_ends_it_with_the_words(site: Site) -> None:
    write_run(site.root / "run", 10)
    daemon = start(site, WANDB_API_KEY="f" * 40)
    assert daemon.wait(30) == 2
    words = f"W&B does not take the key, so nothing can be pushed: {site.server.url} refused the API key (401)"
    assert f"error: {words}\n  next: `wandb login` (or WANDB_API_KEY), then start the daemon again\n" in site.said()
    assert wait_for(site, lambda state: state.pid == daemon.pid).ended == words
    assert f"has ended: {words}." in sync(site, "status", f"--root={site.root}").stdout
    # With a key that is good it goes on from there.
    daemon = start(site)
    site.wait_whole(["run"])
    assert site.stop(daemon) == 0


def test_an_online_job_leaves_its_run_to_the_daemon_that_pushes_it(site: Site) -> None:
    """GIVEN an offline segment that the daemon follows THEN the next one's child waits, and says whose it is."""
    daemon = start(site)
    log(begin(site.root / "run"), 1, 10)
    site.wait_rows("run", 10)
    job = site.job("run", "online")
    job.log(11, 20)
    site.wait_rows("run", 20)
    (pusher,) = pushers(daemon.pid)
    job.finish()
    site.wait_whole(["run"])
    assert site.state("run") == "finished"
    told = read_status(job.run_dir)
    assert told is not None
    holder = f"daemon on {os.uname().nodename}, process {pusher.pid}"
    assert (told.state, told.rows) == ("left", 20)
    assert holder in (told.error or "")
    assert holder in (site.folder / "run.log").read_text()
    assert offline_folders(job.run_dir) == []
    assert site.stop(daemon) == 0


def test_what_a_killed_child_has_left_is_taken_over(site: Site) -> None:
    job = site.job("run", "online")
    job.log(1, 10)
    site.wait_rows("run", 10)
    daemon = start(site)
    (line,) = status(site)["runs"]
    assert line["by"].startswith(f"child on {os.uname().nodename}, process ")
    assert pushers(daemon.pid) == []
    kill(job.children())
    job.log(11, 20)
    site.wait_rows("run", 20)
    (line,) = status(site)["runs"]
    assert line["by"].startswith(f"daemon on {os.uname().nodename}, process ")
    assert site.state("run") == "running"
    job.finish("preempted")
    # W&B calls it preempting until its end is there.
    site.wait_whole(["run"], state="preempted")
    assert site.stop(daemon) == 0
