"""What every stage program does with its run folder."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.files import write_json

DONE_FILE = "done.json"


def make_run_folder(run_dir: Path) -> None:
    """Makes the run folder, and makes sure that it can be written, before anything is computed.

    Raises:
        UserError: It cannot be made or written.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run_dir):
            pass
    except OSError as error:
        raise UserError(
            f"the run folder {run_dir} cannot be written: {error.strerror}."
            " Give a folder of yours on the shared disk: --run-dir, or run_root in the cluster profile"
        ) from error


def write_done(run_dir: Path, step: int, **facts: Any) -> None:
    """Writes the done record, which says that the run is complete.

    Args:
        run_dir: The run folder.
        step: How much was done (optimizer steps, episodes).
        **facts: What else a reader wants to know.
    """
    write_json(run_dir / DONE_FILE, {"step": step, "outcome": "finished", "time": time.time(), **facts})
