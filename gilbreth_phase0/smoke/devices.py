"""The ranks meet, and each has a device of its own."""

from __future__ import annotations

import os
from pathlib import Path

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.checks import Look, check, named
from tracking.gpu import get_all_gpu_stats

# The rendezvous itself gives up after five minutes; imports come before it.
_MEET_SECONDS = 420.0


def meet(run_dir: Path) -> Job:
    """Starts the job on this rank and says what the ranks talk over."""
    fix = (
        "see the other ranks' lines above: an ImportError is mended by 'make setup'; else, do the nodes reach"
        " each other by name, and is the run folder on a shared disk?"
    )
    with named("the job starts and its ranks meet", fix, run_dir, _MEET_SECONDS):
        job = Job.start(run_dir)
    how = "NCCL on GPUs" if job.device == "cuda" else "gloo on CPUs (PyTorch sees no GPU here)"
    job.say(f"smoke: {job.ranks.world_size} rank(s) have met over {how}")
    fix = (
        "is the driver that nvidia-smi shows older than the CUDA of torch.version.cuda? Then load a newer module or"
        " install another PyTorch. One task runs on each GPU: --ntasks-per-node is --gpus-per-node"
    )
    with check(job, "each rank has a device", fix) as look:
        _look_at_device(job, look)
    return job


def _look_at_device(job: Job, look: Look) -> None:
    own = "the CPU" if job.device == "cpu" else _gpu(look)
    devices = job.gathered(own)
    if job.device == "cpu":
        look.seen = "CPUs"
        # A node without a GPU may pass; one with a GPU that PyTorch cannot use must not.
        if get_all_gpu_stats():
            look.fault = "the driver shows a GPU, and PyTorch sees none"
        elif set(devices) != {own}:
            look.fault = "this rank has no GPU and others have one"
    elif devices.count(own) > 1:
        look.fault = f"{devices.count(own)} ranks share one GPU"


def _gpu(look: Look) -> str:
    """Describes this rank's GPU, and returns what tells it from every other."""
    import torch

    number = torch.cuda.current_device()
    major, minor = torch.cuda.get_device_capability(number)
    look.seen = f"{torch.cuda.get_device_name(number)}, capability {major}.{minor}, CUDA {torch.version.cuda}"
    return f"{os.uname().nodename} {torch.cuda.get_device_properties(number).uuid}"
