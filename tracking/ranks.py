"""Which of a job's processes this one is: under srun, torchrun, submitit or plain Python."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

# In the order of their worth: torchrun starts several processes in one Slurm task, so its variable names the process
# and Slurm's only the task.
_RANK = ("RANK", "SLURM_PROCID", "SUBMITIT_LOCAL_GLOBALID")
# SLURM_NTASKS is not among them: it is set in the batch script too, where one process runs alone.
_WORLD_SIZE = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SUBMITIT_LOCAL_NTASKS")


def rank(environ: Mapping[str, str] = os.environ) -> int:
    """The number of this process among the job's processes, 0 where it runs alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_rank())
    return _first(_RANK, environ, default=0)


def world_size(environ: Mapping[str, str] = os.environ) -> int:
    """How many processes train together, 1 where this one runs alone."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return int(distributed.get_world_size())
    return max(1, _first(_WORLD_SIZE, environ, default=1))


def is_main_process() -> bool:
    """True on the one process that logs and writes: rank 0."""
    return rank() == 0


def _first(names: tuple[str, ...], environ: Mapping[str, str], default: int) -> int:
    for name in names:
        value = environ.get(name, "")
        if value.isdigit():
            return int(value)
    return default
