"""The callable that submitit pickles. It imports nothing but the standard library until it runs.

Python dies of USR2 until submitit has loaded this and installed its handler, so loading must be quick. A requeued job
may find the first pickle instead of the last, so it holds no state: what a run has reached is in its run folder.
"""

from __future__ import annotations

import runpy
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

REFUSED = 2
"""A program's exit code for input that no requeue can mend."""


@dataclass(frozen=True)
class StageTask:
    """Runs one stage program as `python -m module --run-dir RUN …` would.

    Attributes:
        module: The program's module.
        run_dir: The run folder, given to the program as `--run-dir`.
        argv: The program's other arguments.
    """

    module: str
    run_dir: str
    argv: tuple[str, ...] = ()

    def __call__(self) -> None:
        """Runs the program to its end.

        Raises:
            SystemExit: The program ended with a code other than 0. submitit does not catch it, so the task's process
                ends with that very code, from which the batch script tells refused input from a crash. Where one
                rank alone refuses, srun kills the others and returns their 137 instead: hence the file `refused`
                in the run folder.
        """
        sys.argv = [self.module, f"--run-dir={self.run_dir}", *self.argv]
        try:
            runpy.run_module(self.module, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            if end.code == REFUSED:
                with suppress(OSError):  # a folder that cannot be written may be what is refused
                    (Path(self.run_dir) / "refused").touch()
            if end.code not in (None, 0):
                raise

    def checkpoint(self) -> DelayedSubmission:
        """What submitit is to run after a requeue: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
