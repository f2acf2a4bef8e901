"""Starting the sync child from the training process, and waiting for it with a bound."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from tracking.sync.engine import SyncMode

# Slurm sends them to every process of a job's step; the child ends when the journal does.
_HELD_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


class SyncProcess:
    """A running child.

    Attributes:
        log: What it says goes there.
    """

    def __init__(self, run_dir: Path, wandb_dir: Path, mode: SyncMode, segment: int) -> None:
        """Starts a child and returns at once.

        Args:
            run_dir: The run folder.
            wandb_dir: The folder that holds W&B's `wandb`.
            mode: Where the rows go.
            segment: The segment that this process writes.

        Raises:
            OSError: No process can be started or the log cannot be written.
        """
        self.log = run_dir / "sync-child.log"
        command = [sys.executable, "-P", "-m", "tracking.sync.child", str(run_dir), "--wandb-dir", str(wandb_dir)]
        command += ["--mode", mode, "--parent", str(os.getpid()), "--segment", str(segment)]
        package_root = str(Path(__file__).resolve().parents[2])
        paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
        # A child inherits the mask, so that no signal can reach it before it has imported anything.
        previous = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD_SIGNALS)
        try:
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.PIPE,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            assert self._process.stdin is not None
            self._wake = self._process.stdin.fileno()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, previous)

    def wait(self, timeout: float) -> int | None:
        """Tells the child that there is something to read and waits for its end.

        Args:
            timeout: Seconds.

        Returns:
            Its exit code, or None when it was still at work; it then goes on by itself.
        """
        with contextlib.suppress(BrokenPipeError):  # it may have ended already
            os.write(self._wake, b"\n")
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
