"""Which folders of this host every node is likely to see, told by their file systems; a job makes sure (`check`)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm")
"""Folders that every node has for itself."""

# Where sites say that a user's shared folder is, the larger disks first.
_VARIABLES = ("SCRATCH", "CLUSTER_SCRATCH", "RCAC_SCRATCH", "PSCRATCH", "WORK", "WORKDIR", "PROJECT")
_NETWORK = {"9p", "afs", "beegfs", "ceph", "cifs", "gpfs", "lustre", "nfs", "nfs4", "orangefs", "panfs", "pvfs2"}
_NETWORK |= {"smb3", "smbfs", "virtiofs", "vastfs", "wekafs", "beegfs_nodev", "ocfs2", "gfs2"}
_NETWORK_FUSE = {"ceph", "ceph-fuse", "glusterfs", "juicefs", "s3fs", "sshfs", "moosefs", "mfs", "lizardfs"}
_MANY = 50
_MEMORY = {"tmpfs", "ramfs", "devtmpfs"}


@dataclass(frozen=True)
class Root:
    """A folder that could hold runs and data.

    Attributes:
        path: The folder.
        origin: How it was found: `$SCRATCH`, `home`.
        file_system: The kernel's name of its file system.
        shared: Whether other nodes see it; None where its file system does not tell.
    """

    path: Path
    origin: str
    file_system: str
    shared: bool | None


def roots(environ: Mapping[str, str], user: str, mounts: str) -> list[Root]:
    """Finds the folders of a user that could be shared, likely ones first.

    Args:
        environ: The environment.
        user: The user's name.
        mounts: The text of `/proc/mounts`.
    """
    found: dict[Path, Root] = {}
    for origin, folder in _candidates(environ, user):
        if folder.is_dir() and os.access(folder, os.W_OK | os.X_OK) and "$" not in str(folder):
            found.setdefault(folder.resolve(), inspect(folder, origin, mounts))
    # Stable: among equals the order of the candidates stays.
    return sorted(found.values(), key=lambda root: (True, None, False).index(root.shared))


def inspect(folder: Path, origin: str, mounts: str) -> Root:
    """Tells what is known of a folder, which need not exist."""
    kind = file_system(folder, mounts)
    name, _, fuse = kind.partition(".")
    shared: bool | None = None
    if name in _NETWORK or (name == "fuse" and fuse in _NETWORK_FUSE):
        shared = True
    elif name in _MEMORY or any(folder.resolve().is_relative_to(local) for local in NODE_LOCAL):
        shared = False
    return Root(folder, origin, kind, shared)


def file_system(folder: Path, mounts: str) -> str:
    """The kernel's name of the file system of a folder, from the text of `/proc/mounts`; `?` where it does not say."""
    place, best, kind = folder.resolve(), -1, "?"
    for line in mounts.splitlines():
        fields = line.split()
        if len(fields) < 3:
            continue
        # Blanks in the name of a mount point are written as octal numbers.
        point = Path(re.sub(r"\\(\d{3})", lambda octal: chr(int(octal[1], 8)), fields[1]))
        # Of two mounts on one point, the later one is seen.
        if place.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind


def _candidates(environ: Mapping[str, str], user: str) -> Iterator[tuple[str, Path]]:
    for name in _VARIABLES:
        if environ.get(name, "").startswith("/"):
            yield f"${name}", Path(environ[name])
    scratch = Path("/scratch")
    yield str(scratch / user), scratch / user
    try:
        clusters = sorted(entry for entry in scratch.iterdir() if entry.name != user)
    except OSError:
        clusters = []
    if len(clusters) > _MANY:
        clusters = []  # it holds the users themselves, and a look into each takes long on a busy disk
    for cluster in clusters:
        yield str(cluster / user), cluster / user
    yield "home", Path.home()
