"""Makes real DeepSpeed checkpoints of small models: `zero_grid.py FOLDER`, a pairwise cover and the special cases.

Starting DeepSpeed takes longer than all else here, so that one process imports it and forks the ranks of every world.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch.distributed as dist

from gilbreth_phase0.ranks import compile_extensions

from forked_ranks import run_ranks
from zero_cases import FACTORS, STEPS, join, make, pairwise, special


def main(folder: Path) -> None:
    cases = [*pairwise(), *special()]
    for world in FACTORS["world"]:

        def rank_of(rank: int, world: int = world) -> None:
            join(rank, world, folder)
            for case in cases:
                if case.world == world:
                    make(case, folder / case.name, last=STEPS + 1)
            dist.barrier()
            dist.destroy_process_group()

        run_ranks(world, rank_of)


if __name__ == "__main__":
    compile_extensions()
    main(Path(sys.argv[1]))
