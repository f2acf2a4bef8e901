"""One process of W&B's own sync, with a bound.

`wandb beta sync` and not `wandb sync`: measured with 0.24.2, it takes 0.3 s a folder instead of 3.5 s, keeps the exit
code and the word of preemption, and appends behind the rows that the server has instead of overwriting them. Neither
its exit code nor its `.synced` files say what arrived.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

_AT_ONCE = 10
_STREAM = re.compile(r"/([^/]+)/file_stream\Z")

# The process ends with the one that waits for it, and W&B's service ends with the process: what nobody waits for any
# more would be sent beside what the next attempt sends.
_PROGRAM = """
import ctypes, os, runpy, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv.pop(1)):
    sys.exit("the process that started this one has ended")
runpy.run_module("wandb", run_name="__main__")
"""


@dataclass(frozen=True)
class Synced:
    """What a sync process said.

    Attributes:
        timed_out: It was killed because it did not end in time.
        refusals: The last HTTP status that the server refused the rows of a run with, by run id; under the empty id,
            the one for a question of which the log does not say whose it was.
        says: Its last line, for a run of which nothing else is known.
    """

    timed_out: bool
    refusals: dict[str, int] = field(default_factory=dict)
    says: str = ""


def sync_folders(folders: Sequence[Path], timeout_s: float) -> Synced:
    """Pushes offline folders in one process; returns when it has ended or was killed.

    Args:
        folders: The folders; every one must be whole, and no two of one run.
        timeout_s: After how many seconds it is killed.

    Raises:
        OSError: The process cannot be started.
    """
    options = ["--no-skip-synced", "-n", str(_AT_ONCE)]
    command = [sys.executable, "-c", _PROGRAM, str(os.getpid()), "beta", "sync", *options]
    with tempfile.TemporaryDirectory(prefix="wandb-sync-") as own:
        process = subprocess.Popen(
            [*command, *map(str, folders)],
            # Its log goes there.
            env={**os.environ, "WANDB_DIR": own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        timed_out = False
        try:
            output, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            timed_out = True
        finally:
            process.kill()
        if timed_out:
            output, _ = process.communicate()
        lines = output.strip().splitlines()
        return Synced(timed_out, _refusals(Path(own)), lines[-1].removeprefix("wandb: ") if lines else "")


def _refusals(folder: Path) -> dict[str, int]:
    """The statuses in W&B's log; its form is nobody's promise, so what is not understood is passed over."""
    found: dict[str, int] = {}
    for path in folder.glob("wandb/logs/*.log"):
        with path.open(errors="replace") as file:
            for line in file:
                if '"status":40' not in line:
                    continue
                with suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    stream = _STREAM.search(entry["url"])
                    found[stream[1] if stream else ""] = int(entry["status"])
    return found
