"""Do the ranks add up right, and how fast? The same for one node and for several."""

from __future__ import annotations

import time

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.checks import check
from tracking.words import size

_ELEMENTS = (1, 1000, 1_000_003)  # the last one is not a multiple of anything
_ROUNDS = 5


def check_ranks(job: Job, ranks: int) -> None:
    """Makes sure that there are ranks enough for what follows."""
    gpus, key = (f"--gpus-per-node={ranks} ", "gpus_per_node") if job.device == "cuda" else ("", "tasks_per_node")
    fix = f"sbatch {gpus}--ntasks-per-node={ranks}; with launch.submit: --set resources.{key}={ranks}"
    with check(job, f"there are {ranks} ranks or more", fix) as look:
        look.seen = str(job.ranks.world_size)
        if job.ranks.world_size < ranks:
            look.fault = f"{job.ranks.world_size} rank"


def check_all_reduce(job: Job) -> None:
    """Adds up tensors over the ranks, compares the sums, and says how fast it was."""
    import torch
    import torch.distributed as dist

    fix = (
        "run with NCCL_DEBUG=INFO: one node should say SHM/direct/direct or P2P, several NET/IB or NET/Socket;"
        " requeue on other nodes (sbatch --exclude=NODE)"
    )
    count = job.ranks.world_size
    expected = count * (count + 1) // 2
    with check(job, "an all-reduce gives the sum over the ranks", fix) as look:
        for elements in _ELEMENTS:
            values = torch.full((elements,), float(job.ranks.rank + 1), device=job.device)
            dist.all_reduce(values)
            wrong = int((values != expected).sum())
            if wrong:
                look.fault = f"{wrong} of {elements} sums are not {expected}"
        look.seen = f"{expected} in {', '.join(map(str, _ELEMENTS))} elements"
    with check(job, "bandwidth of an all-reduce", fix) as look:
        look.seen = _bandwidth(job)


def _bandwidth(job: Job) -> str:
    """Times all-reduces; bus bandwidth is what each rank's link carries, 2 (n - 1) / n of the bytes."""
    import torch
    import torch.distributed as dist

    count, bytes_ = job.ranks.world_size, (256 if job.device == "cuda" else 4) * 2**20
    values = torch.zeros(bytes_ // 4, device=job.device)
    dist.all_reduce(values)
    _settle(job)
    start = time.monotonic()
    for _ in range(_ROUNDS):
        dist.all_reduce(values)
    _settle(job)
    seconds = (time.monotonic() - start) / _ROUNDS
    bus = 2 * (count - 1) / count * bytes_ / seconds
    return f"{size(bytes_)} in {1000 * seconds:.1f} ms, bus bandwidth {size(bus)}/s"


def _settle(job: Job) -> None:
    import torch

    if job.device == "cuda":
        torch.cuda.synchronize()
