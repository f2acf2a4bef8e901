"""Trials of what hosts and disks do to pushing: damaged files, folders that go, clocks that jump, disks that fill."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tracking.journal.lines import segment_path

from support import wait_until
from sync_play import ALL, HALF, Play, Trials
from sync_site import kill, tree

TRIALS = Trials()


# Damaged


@TRIALS.enter("a torn journal line")
def _torn(play: Play) -> None:
    job = play.site.job("run")
    job.log(1, HALF)
    job.kill()
    with segment_path(play.site.root / "run", 0).open("ab") as file:
        file.write(b'{"kind":"row","n":40,"st')
    play.once()
    play.site.train("run", HALF + 1, ALL)
    play.once()


@TRIALS.enter("an empty and a 7-byte .wandb beside")
def _damaged_beside(play: Play) -> None:
    for name, content in (("empty", b""), ("header", b":W&B\x48\x6f\x00")):
        folder = play.site.root / "wandb" / f"offline-run-20260101_000000-{name}"
        folder.mkdir(parents=True)
        (folder / f"run-{name}.wandb").write_bytes(content)
        # Not of a run that has just begun.
        os.utime(folder / f"run-{name}.wandb", (1e9, 1e9))
    play.site.train("run", 1, ALL)
    done = play.site.once()
    for name in ("empty", "header"):
        play.check(f"-{name}" in done.stdout, f"nothing is said of the folder of {name}: {done.stdout}")


def _removed(folder: Path) -> bool:
    """Removes a folder, into which the daemon may be writing at this moment; whether nothing is left."""
    shutil.rmtree(folder, ignore_errors=True)
    return not folder.exists()


@TRIALS.enter("a run folder that disappears while it is pushed")
def _disappears(play: Play) -> None:
    daemon = play.site.daemon()
    job = play.half_pushed("gone")
    other = play.half_pushed("other")
    job.say("log", HALF + 1, ALL, 0.02)
    play.site.wait_rows("gone", HALF + 1)
    job.kill()
    wait_until(lambda: _removed(play.site.root / "gone"), 30, "the run folder to be gone")
    other.log(HALF + 1, ALL)
    other.finish()
    play.site.wait_whole(["other"])
    play.check(daemon.poll() is None, f"the daemon ended with {daemon.poll()}")
    play.check(not (play.site.root / "gone").exists(), "the folder was made again")
    play.site.stop(daemon)


# The clock


@TRIALS.enter("the node's clock jumps")
def _node_clock(play: Play) -> None:
    daemon = play.site.daemon()
    job = play.half_pushed()
    for number, jump in enumerate((86400, -86400, 3e7, -3e7)):
        job.do("clock", jump)
        job.log(HALF + 1 + 10 * number, HALF + 10 + 10 * number)
        path = segment_path(play.site.root / "run", 0)
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime + jump))
        play.site.wait_rows("run", HALF + 10 + 10 * number)
    job.finish()
    play.site.wait_whole()
    play.site.stop(daemon)


@TRIALS.enter("the login node's clock jumps")
def _login_clock(play: Play) -> None:
    play.site.set_clock(0.0)
    daemon = play.site.daemon()
    job = play.half_pushed()
    for number, jump in enumerate((86400, -86400, 3e7, -3e7)):
        play.site.set_clock(jump)
        job.log(HALF + 1 + 10 * number, HALF + 10 + 10 * number)
        play.site.wait_rows("run", HALF + 10 + 10 * number)
    job.finish()
    play.site.wait_whole()
    play.site.stop(daemon)
    play.once()


# The disk


def _small_disk(folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(folder)], check=True)


def _fill(folder: Path) -> Path:
    path = folder / "filler"
    with path.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"0" * 4096)
        except OSError:
            return path


def _outage_of_disk(play: Play, disk: Path) -> None:
    daemon = play.site.daemon()
    job = play.half_pushed()
    filler = _fill(disk)
    job.log(HALF + 1, ALL, play.site.outage / HALF)
    kill(tree(daemon.pid))
    play.note(f"`once` with the disk full: exit {play.site.once().returncode}")
    daemon = play.site.daemon()
    filler.unlink()
    job.finish()
    play.site.stop(daemon)
    play.once()


@TRIALS.enter("disk full: /tmp and home of the login node", isolated=True)
def _login_disk(play: Play) -> None:
    disk = play.site.folder / "login"
    _small_disk(disk)
    play.site.variables |= {"TMPDIR": str(disk), "HOME": str(disk)}
    play.site.variables |= {f"WANDB_{name}_DIR": str(disk / name) for name in ("CACHE", "DATA", "CONFIG", "ARTIFACT")}
    _outage_of_disk(play, disk)


@TRIALS.enter("disk full: the run folders' disk", isolated=True)
def _run_disk(play: Play) -> None:
    _small_disk(play.site.root)
    _outage_of_disk(play, play.site.root)
