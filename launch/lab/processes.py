"""Daemons that outlive the command which started them."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from tracking.files import read_json, write_json

# Every daemon carries it in its environment, with the lab's folder as the value.
MARKER = "GILBRETH_LAB_DAEMON"


def start(command: list[str], *, pid_file: Path, output: Path, environment: dict[str, str]) -> None:
    """Starts a program in a session of its own and records which process it is.

    Args:
        command: The program, which stays in the foreground, and its arguments.
        pid_file: Where to record the process.
        output: What it prints is appended to this file.
        environment: The whole environment of the program.
    """
    # The shell ends at once, so that init becomes the parent and no caller has to reap the daemon.
    script = 'output=$1; shift; setsid "$@" </dev/null >>"$output" 2>&1 & echo $!'
    shell = ["/bin/sh", "-c", script, "sh", str(output), *command]
    started = subprocess.run(shell, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    pid = int(started.stdout)
    write_json(pid_file, {"pid": pid, "identity": _identity(pid)})


def running(pid_file: Path) -> int | None:
    """The process that a record names, or None if that very process does not run any more."""
    record = read_json(pid_file)
    if record is None or record["identity"] is None or record["identity"] != _identity(record["pid"]):
        return None
    return int(record["pid"])


def stop(pid_file: Path, *, grace: float = 15.0) -> None:
    """Ends a daemon by SIGTERM, or by SIGKILL after `grace` seconds; returns when it is gone."""
    if (pid := running(pid_file)) is not None:
        _signal(pid, signal.SIGTERM)
        if not _wait_gone(pid, pid_file, grace):
            kill(pid_file)
    pid_file.unlink(missing_ok=True)


def kill(pid_file: Path) -> None:
    """Ends a daemon and all of its children by SIGKILL; returns when they are gone."""
    if (pid := running(pid_file)) is not None:
        # The first process of a namespace takes all others with it, and its parent ends when the last one has.
        for victim in [*_children(pid), pid]:
            _signal(victim, signal.SIGKILL)
        _wait_gone(pid, pid_file, 30.0)
    pid_file.unlink(missing_ok=True)


def strays(folder: Path) -> Iterator[int]:
    """Finds daemons of the lab in a folder by their environment, whether or not a record names them."""
    wanted = f"{MARKER}={folder}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                # Another user's process, or one that has just ended.
                continue
            if wanted in variables:
                yield int(entry.name)


def kill_strays(folder: Path) -> None:
    """Ends every daemon of the lab in a folder that still runs."""
    deadline = time.monotonic() + 30.0
    while (found := list(strays(folder))) and time.monotonic() < deadline:
        for pid in found:
            _signal(pid, signal.SIGKILL)
        time.sleep(0.02)


def _identity(pid: int) -> str | None:
    """What tells a process from another one that got the same number later, or after a reboot; None if it is dead."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    # The name in parentheses may hold spaces. After it: the state first, the start time (in ticks since boot) 20th.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {fields[19]}"


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def _wait_gone(pid: int, pid_file: Path, timeout: float) -> bool:
    deadline = time.monotonic() + timeout
    while running(pid_file) == pid:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
