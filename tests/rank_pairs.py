"""Two processes that are the ranks of one job, as torchrun's variables make them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from support import free_port

ROOT = Path(__file__).parents[1]
PROGRAMS = Path(__file__).parent / "gilbreth_phase0" / "programs"

_FOREIGN = ("SLURM_", "SUBMITIT_", "TORCHELASTIC_", "WANDB_", "MASTER_")


@dataclass(frozen=True)
class Ended:
    """How one rank ended: its exit code, and what it printed on both streams."""

    returncode: int
    output: str


def rank_environment(rank: int = 0, world_size: int = 1, port: int | None = None) -> dict[str, str]:
    """The variables of one rank on CPUs, with one thread, without a network and without those of a job around us.

    Programs find the helpers in `tests/`.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)}
    ranks = {"RANK": rank, "WORLD_SIZE": world_size, "LOCAL_RANK": rank, "MASTER_PORT": port or free_port()}
    return {
        **clean,
        **{name: str(value) for name, value in ranks.items()},
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
        "WANDB_MODE": "offline",
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
    }


def run_pair(command: Sequence[str | Path], timeout: float, port: int | None = None, **environ: str) -> list[Ended]:
    """Runs one Python command as both ranks and waits for their ends.

    Args:
        command: What stands behind `python`, e.g. `["-m", "gilbreth_phase0.smoke", …]`.
        timeout: Seconds for both; then both are killed and the test fails with what they printed.
        port: Names the job, and with it the ports of its rendezvous.
        **environ: Further variables of both.
    """
    port = port or free_port()
    processes = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env={**rank_environment(rank, 2, port), **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=timeout)[0] for process in processes]
        return [Ended(process.returncode, output) for process, output in zip(processes, outputs, strict=True)]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        said = "\n".join(f"rank {rank}: {process.communicate()[0]}" for rank, process in enumerate(processes))
        raise AssertionError(f"the ranks did not end in {timeout:g} s\n{said}") from None
    finally:
        for process in processes:
            process.kill()
            process.wait()
