"""Trials of pushing: segments, killed processes, a server that fails, several who push at once."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tracking.journal.lines import segment_path

from support import wait_until
from sync_play import ALL, HALF, Play, Trials
from sync_site import LOST_S, kill, tree
from wandb_server import WandbServer

TRIALS = Trials()
OTHER_HOST = ["--user", "--map-root-user", "--uts", "--pid", "--fork", "--mount", "--mount-proc", "--kill-child"]


# Segments


def _segments(play: Play, order: tuple[int, ...] = (0, 1, 2)) -> None:
    for number in order:
        play.site.train("run", 1 + 30 * number, 40 + 30 * number, state="finished" if number == 2 else "preempted")


@TRIALS.enter("three offline segments, requeued, each rolled back by 10 steps")
def _requeued(play: Play) -> None:
    _segments(play)
    play.once()


@TRIALS.enter("the same while they run, with the daemon")
def _requeued_live(play: Play) -> None:
    daemon = play.site.daemon()
    for number in range(3):
        job = play.site.job("run")
        job.log(1 + 30 * number, 40 + 30 * number)
        play.site.wait_rows("run", 40 + 30 * number)
        play.check(play.site.state("run") == "running", f"segment {number} runs, W&B says {play.site.state('run')}")
        job.finish("finished" if number == 2 else "preempted")
        wait_until(
            lambda: play.site.state("run") not in ("running", "preempting"),
            60,
            f"segment {number} to end on the server",
        )
        expected = "finished" if number == 2 else "preempted"
        play.check(play.site.state("run") == expected, f"after segment {number} W&B says {play.site.state('run')}")
    play.site.stop(daemon)


@TRIALS.enter("an offline segment followed by an online one")
def _offline_then_online(play: Play) -> None:
    play.site.train("run", 1, HALF, state="preempted")
    play.site.train("run", HALF + 1, ALL, mode="online")
    play.once()


@TRIALS.enter("segments in the wrong order on disk")
def _wrong_order(play: Play) -> None:
    _segments(play)
    run_dir = play.site.root / "run"
    for number in range(3):
        # Listed and dated the other way round, as a copy to another disk leaves them.
        path = segment_path(run_dir, 2 - number)
        shutil.copy(path, path.with_suffix(".copy"))
        path.with_suffix(".copy").replace(path)
        os.utime(path, (1e9 + number, 1e9 + number))
    play.once()


# Killed


@TRIALS.enter("job killed with everything (kill -9)")
def _killed_job(play: Play) -> None:
    job = play.site.job("run")
    job.log(1, HALF)
    job.kill()
    play.once()
    play.check(
        play.site.state("run") == "running", f"nothing tells that the job ended, W&B says {play.site.state('run')}"
    )
    # Without Slurm's word it counts as dead when nothing was written for two minutes.
    for path in (play.site.root / "run").glob("*.json*"):
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 300))
    play.once()
    play.states["run"] = "failed"


@TRIALS.enter("the job's online child killed with rows unpushed")
def _killed_child(play: Play) -> None:
    job = play.half_pushed(mode="online")
    kill(job.children())
    job.log(HALF + 1, ALL)
    daemon = play.site.daemon()
    play.site.wait_rows("run", ALL)
    play.check(play.site.state("run") == "running", f"the job runs, W&B says {play.site.state('run')}")
    job.finish()
    play.site.wait_whole()
    play.site.stop(daemon)


@TRIALS.enter("the pusher killed in the middle of a push, twice")
def _killed_pusher(play: Play) -> None:
    daemon = play.site.daemon()
    job = play.half_pushed()
    kill(tree(daemon.pid)[1:])
    job.log(HALF + 1, ALL)
    play.site.wait_rows("run", ALL)
    kill(tree(daemon.pid)[1:])
    job.finish()
    play.site.wait_whole()
    play.site.stop(daemon)


# The server


def _outage(title: str, begin: Callable[[WandbServer], None], lift: Callable[[WandbServer], None]) -> None:
    @TRIALS.enter(f"{title}, in the middle of a push")
    def play_it(play: Play) -> None:
        daemon = play.site.daemon()
        job = play.half_pushed()
        begin(play.site.server)
        arrived = len(play.site.server.requests)
        job.log(HALF + 1, ALL, play.site.outage / HALF)
        job.finish()
        if title != "server down":
            wait_until(lambda: any(r.fault for r in play.site.server.requests[arrived:]), 60, "the fault to be hit")
        lift(play.site.server)
        play.site.wait_whole(timeout=LOST_S)
        play.site.stop(daemon)


def _refused(status: int) -> None:
    @TRIALS.enter(f"{status} until the key is mended, in the middle of a push")
    def play_it(play: Play) -> None:
        daemon = play.site.daemon()
        job = play.half_pushed()
        with play.site.server.faults.during("*", status=status):
            job.log(HALF + 1, ALL)
            job.finish()
            code = daemon.wait(LOST_S)
        play.check(code != 0 and "key" in play.site.said(), f"the daemon ended with {code}: {play.site.said()}")
        play.note(f"the daemon ends with {code} and says why; started again")
        daemon = play.site.daemon()
        play.site.wait_whole()
        play.site.stop(daemon)


def _fault(operation: str, kind: str, status: int = 500) -> Callable[[WandbServer], None]:
    return lambda server: server.faults.add(operation, kind, status=status) and None  # type: ignore[arg-type, func-returns-value]


def _clear(server: WandbServer) -> None:
    server.faults.clear()


_outage("server down", WandbServer.stop_listening, WandbServer.resume_listening)
_outage("hang", _fault("*", "hang"), _clear)
_outage("connection dropped", _fault("*", "drop"), _clear)
_outage("answer lost", _fault("*", "lose"), _clear)
for _status in (429, 500, 401, 403):
    _outage(f"{_status}", _fault("*", "http", _status), _clear)
_outage("403 on the rows alone", _fault("file_stream", "http", 403), _clear)
for _status in (401, 403):
    _refused(_status)


# Several at once


@TRIALS.enter("a second daemon on the same host")
def _second_daemon(play: Play) -> None:
    daemon = play.site.daemon()
    job = play.half_pushed()
    before = len(play.site.said())
    second = play.site.daemon()
    code = second.wait(60)
    said = play.site.said()[before:]
    play.check(code != 0 and str(daemon.pid) in said, f"the second one ended with {code}: {said}")
    play.note(f"refused with exit code {code}")
    job.log(HALF + 1, ALL)
    job.finish()
    play.site.wait_whole()
    play.site.stop(daemon)


def _elsewhere(play: Play) -> list[str]:
    """Runs what follows on another host, as others see it: with a name, a process table and a /tmp of its own."""
    # Of a host's own disk the lock matters; the project may stand below /tmp too.
    own_locks = 'own=$(mktemp) && for lock in /tmp/gilbreth-sync-*.lock; do mount --bind "$own" "$lock"; done'
    script = f'hostname login2 && {own_locks} && exec "$@"'
    return [shutil.which("unshare") or "unshare", *OTHER_HOST, "sh", "-c", script, str(play.site.folder)]


@TRIALS.enter("a second daemon on another host")
def _daemon_elsewhere(play: Play) -> None:
    here = play.site.daemon()
    wait_until(lambda: list(play.site.root.glob(".sync/daemon-*.pid")), 60, "the first daemon to begin")
    there = play.site.daemon(before=_elsewhere(play))
    job = play.half_pushed()
    job.log(HALF + 1, ALL, 0.05)
    for daemon in (here, there):
        play.check(daemon.poll() is None, f"a daemon ended with {daemon.poll()}: {play.site.said()}")
    job.finish()
    play.site.wait_whole()
    for daemon in (here, there):
        kill(tree(daemon.pid))


@TRIALS.enter("the daemon's host dies, and a daemon is started on another one")
def _host_dies(play: Play) -> None:
    there = play.site.daemon(before=_elsewhere(play))
    job = play.half_pushed()
    kill(tree(there.pid))
    job.log(HALF + 1, ALL)
    job.finish()
    here = play.site.daemon()
    # The heartbeat must have stood still for half a minute.
    play.site.wait_whole()
    play.site.stop(here)


@TRIALS.enter("the daemon while the job's child is online")
def _daemon_beside_child(play: Play) -> None:
    job = play.site.job("run", "online")
    daemon = play.site.daemon()
    job.log(1, ALL, 0.05)
    play.check(play.site.state("run") == "running", f"the job runs, W&B says {play.site.state('run')}")
    job.finish()
    play.site.wait_whole()
    play.site.stop(daemon)


@TRIALS.enter("pushed a second time")
def _twice(play: Play) -> None:
    play.site.train("run", 1, ALL)
    for _ in range(2):
        play.once()


@TRIALS.enter("`wandb sync` by hand before, during and after")
def _by_hand(play: Play) -> None:
    def sync() -> list[Path]:
        folders = sorted((play.site.root / "run" / "wandb").glob("offline-run-*"))
        if folders:
            command = [sys.executable, "-m", "wandb", "sync", *map(str, folders)]
            # It may find them moved: the daemon was faster.
            subprocess.run(command, cwd=play.site.folder, env=play.site.environment(), check=False, capture_output=True)
        return folders

    play.site.train("run", 1, HALF, state="preempted")
    play.check(len(sync()) == 1, "there was no offline folder to be uploaded by hand")
    daemon = play.site.daemon()
    job = play.site.job("run")
    job.log(HALF + 1, ALL)
    sync()
    play.site.wait_rows("run", ALL)
    job.finish()
    sync()
    play.site.wait_whole()
    play.site.stop(daemon)
    play.once()
    play.check(sync() == [], "an offline folder is still where `wandb sync` finds it")


@TRIALS.enter("`wandb sync` by hand that ends after the daemon's push")
def _late_by_hand(play: Play) -> None:
    folder = play.site.train("run", 1, HALF, state="preempted")
    (offline,) = (folder / "wandb").glob("offline-run-*")
    late = play.site.server.faults.add("file_stream", "slow", seconds=LOST_S, times=1)
    by_hand = play.site.start([sys.executable, "-m", "wandb", "sync", str(offline)], "by-hand.log")
    wait_until(lambda: late.hits, 60, "the upload by hand to send its rows")
    daemon = play.site.daemon()
    play.site.train("run", HALF + 1, ALL)
    play.site.wait_whole()
    play.site.server.faults.lift(late)
    play.check(by_hand.wait(60) == 0, "the upload by hand failed")
    tally = play.site.tally("run")
    play.note(f"until the daemon asks again: '{tally.state}', {tally.stale} values of the summary old")
    play.site.wait_whole(timeout=LOST_S, state="finished")
    play.site.stop(daemon)
