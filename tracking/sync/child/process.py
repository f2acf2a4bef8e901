"""Starting the sync child from the training process, and waiting for it with a bound."""

from __future__ import annotations

import contextlib
import json
import os
import select
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from tracking.sync.child.task import Task
from tracking.sync.probe import Verdict

# Slurm sends them to every process of a job's step; the child ends when the journal does.
_HELD_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class SyncProcess:
    """A running child.

    Attributes:
        log: What it says goes there.
    """

    def __init__(self, task: Task) -> None:
        """Starts a child and returns at once.

        Args:
            task: What it does; its parent is this process.

        Raises:
            OSError: No process can be started or the log cannot be written.
        """
        self.log = task.run_dir / "sync-child.log"
        # Read and write end; a child that asks nobody has none.
        pipe = os.pipe() if task.mode == "probe" else None
        task = replace(task, parent=os.getpid(), verdict_fd=pipe[1] if pipe else None)
        command = [sys.executable, "-P", "-m", "tracking.sync.child", *task.arguments()]
        package_root = str(Path(__file__).resolve().parents[3])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        # A child inherits the mask, so that no signal can reach it before it has imported anything.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=pipe[1:] if pipe else (),
                )
        finally:
            if pipe:
                os.close(pipe[1])
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)
        assert self._process.stdin is not None
        self._wake = self._process.stdin.fileno()
        self._verdict = pipe[0] if pipe else None

    def verdict(self, deadline: float) -> Verdict | None:
        """Waits for what the probe found.

        Args:
            deadline: On `time.monotonic()`'s clock.

        Returns:
            The verdict, or None when the child was not asked to probe or has not said anything by then.
        """
        if self._verdict is None:
            return None
        ready, _, _ = select.select([self._verdict], [], [], max(0.0, deadline - time.monotonic()))
        line = os.read(self._verdict, 65536) if ready else b""
        os.close(self._verdict)
        self._verdict = None
        return Verdict(**json.loads(line)) if line.endswith(b"\n") else None

    def wait(self, timeout: float, *, has_end: bool = True) -> int | None:
        """Tells the child that there is something to read and waits for its end.

        Args:
            timeout: Seconds.
            has_end: Whether the journal says that the segment has ended. Where a full disk took that line, the child
                is told that there comes nothing more.

        Returns:
            Its exit code, or None when it was still at work; it then goes on by itself.
        """
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            if has_end:
                os.write(self._wake, b"\n")
            elif self._process.stdin is not None:
                self._process.stdin.close()
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None


def push_command(run_dir: Path) -> str:
    """The command that pushes a run from a host with internet, ready to be pasted into a shell."""
    return shlex.join(["python", "-m", "tracking.sync", "run", str(run_dir)])
