"""Two ranks, of which the second one alone gets USR2 at its fifth step; each prints the step at which it stops.

Rank 0 says from step 2 on that its share of a save is on the disk, rank 1 from step 3 on.
"""

from __future__ import annotations

import os
import signal

import torch.distributed as dist

from gilbreth_phase0.ranks import Ranks, meet
from gilbreth_phase0.stop import Stop, StopProtocol

ranks = Ranks.from_environment()
stop = StopProtocol(ranks.rank)
stop.install()
dist.init_process_group("gloo", store=meet(ranks), rank=ranks.rank, world_size=ranks.world_size)
stop.connect(dist.new_group(backend="gloo"))
sealed_at = 0
for step in range(1, 20):
    if step == 5 and ranks.rank == 1:
        os.kill(os.getpid(), signal.SIGUSR2)
    answer = stop.at_boundary(sealed=step >= 2 + ranks.rank)
    if stop.all_sealed and not sealed_at:
        sealed_at = step
        stop.save_begun()  # the flags on their way are still those of the first one
    elif sealed_at and step == sealed_at + 1:
        assert not stop.all_sealed
    if answer is not Stop.NO:
        print(f"sealed at step {sealed_at}, {answer.name} at step {step}")
        break
dist.destroy_process_group()
