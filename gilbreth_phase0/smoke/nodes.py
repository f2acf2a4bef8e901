"""Level 4: DeepSpeed over several nodes, which must see each other and one disk."""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.checks import Look, check
from gilbreth_phase0.smoke.collectives import check_all_reduce
from gilbreth_phase0.smoke.zero import SHARED_DISK, train_save_load

# A client of a network file system may not see a new file for as long as it keeps a folder's names.
_DISK_SECONDS = 60.0


def run(arguments: Arguments, job: Job) -> tuple[str, ...]:
    """Runs the checks of several nodes and returns the lines behind PASSED."""
    fix = "sbatch --nodes=4; with launch.submit: --set resources.nodes=4"
    with check(job, "the ranks are on several nodes", fix) as look:
        look_at_nodes(job, look)
    fix = (
        "names of interfaces differ from node to node: take NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME out of"
        " cluster.environment and of your shell's start-up files"
    )
    with check(job, "the settings of NCCL suit each node, and are the same on all", fix) as look:
        look_at_settings(job, os.environ, look)
    check_all_reduce(job)
    with check(job, "every rank sees the files of every other", SHARED_DISK) as look:
        look_at_disk(job, look, _DISK_SECONDS)
    return train_save_load(arguments, job)


def look_at_nodes(job: Job, look: Look) -> None:
    """Counts the ranks of each node."""
    ranks = Counter(job.gathered(os.uname().nodename))
    look.seen = ", ".join(f"{count} on {node}" for node, count in ranks.items())
    if len(ranks) == 1:
        look.fault = f"all {job.ranks.world_size} on one"


def look_at_settings(job: Job, environ: Mapping[str, str], look: Look) -> None:
    """Compares the variables of NCCL and gloo between the ranks, and with the interfaces of this node."""
    own = {name: value for name, value in environ.items() if name.startswith(("NCCL_", "GLOO_"))}
    others = job.gathered(own)
    look.seen = ", ".join(f"{name}={value}" for name, value in sorted(own.items())) or "none"
    interfaces = [name for _, name in socket.if_nameindex()]
    for name in ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME"):
        if name in own and not has_interface(own[name], interfaces):
            look.fault = f"{name}={own[name]}, and this node has {', '.join(interfaces)}"
    if not look.fault and own != others[0]:
        look.fault = f"{look.seen}, and rank 0 has another set"


def has_interface(wanted: str, interfaces: Iterable[str]) -> bool:
    """Whether a node has what NCCL is told to take: prefixes, `=` and names, or `^` and what it must not be."""
    if wanted.startswith("^"):
        return True
    parts = wanted.removeprefix("=").split(",")
    if wanted.startswith("="):
        return bool(set(parts) & set(interfaces))
    return any(name.startswith(part) for part in parts for name in interfaces)


def look_at_disk(job: Job, look: Look, seconds: float) -> None:
    """Writes a file from each rank and waits until this rank sees all of them."""
    folder = job.run_dir / f"shared-disk-{job.agreed(secrets.token_hex(4))}"
    folder.mkdir(exist_ok=True)
    (folder / str(job.ranks.rank)).write_text(os.uname().nodename)
    nodes = job.gathered(os.uname().nodename)
    start = time.monotonic()
    missing = list(range(job.ranks.world_size))
    while missing and time.monotonic() - start < seconds:
        missing = [rank for rank in missing if not _holds(folder / str(rank), nodes[rank])]
        if missing:
            time.sleep(0.2)
    look.seen = f"{job.ranks.world_size} files in {job.run_dir}"
    if missing:
        look.fault = f"not those of rank {', '.join(map(str, missing))} in {folder}, after {seconds:g} s"
    job.gathered(None)  # all have looked
    shutil.rmtree(folder, ignore_errors=True)


def _holds(path: Path, text: str) -> bool:
    try:
        return path.read_text() == text
    except OSError:
        return False
