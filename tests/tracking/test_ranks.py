"""Which process logs, under each way to start one."""

from __future__ import annotations

import pytest

from tracking.ranks import rank, world_size


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, (0, 1)),
        ({"SLURM_PROCID": "3", "SLURM_STEP_NUM_TASKS": "8", "SLURM_NTASKS": "8"}, (3, 8)),
        # The batch script itself: Slurm counts the job's tasks, and one process runs.
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        # torchrun with two processes in the second of two Slurm tasks.
        ({"RANK": "2", "WORLD_SIZE": "4", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (2, 4)),
        ({"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2"}, (1, 2)),
        ({"RANK": "", "SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "2"}, (1, 2)),
    ],
)
def test_rank_and_world_size(environ: dict[str, str], expected: tuple[int, int]) -> None:
    assert (rank(environ), world_size(environ)) == expected
