"""A file that only one process can create, on a disk that several hosts share."""

from __future__ import annotations

import os
from pathlib import Path

from tracking.files import beside, fsync_dir, named


def create_exclusive(path: Path, content: bytes) -> bool:
    """Creates a file with its content in one move, unless it is there already.

    A link is made to a temporary file that is written and synced before: readers see the whole content or no file, and
    of two writers that create the same name exactly one succeeds: threads, processes, hosts, and also over NFS.

    Args:
        path: The file to create; its folder must exist.
        content: What it holds.

    Returns:
        True when this call created it, False when it was there.

    Raises:
        OSError: The folder cannot be written.
    """
    temporary = beside(path, "new")
    try:
        with named(path), temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            path.hardlink_to(temporary)
        except FileExistsError:
            # NFS repeats a request whose answer was lost, and hears that the link is there: it is this call's own.
            if temporary.stat().st_nlink != 2:
                return False
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
    return True
