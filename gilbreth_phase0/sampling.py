"""Which sample is trained at which step: a function of the seed and the step alone.

The epochs' permutations stand one behind the other in one endless sequence, and step s takes the batch_size samples
from position s · batch_size on. Every rank cuts its own share out of that, so that any world size and any resume see
the same samples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from tracking.errors import UserError


@dataclass(frozen=True)
class BatchPlan:
    """The samples of every step.

    Attributes:
        samples: How many samples the dataset has.
        batch_size: Samples of one optimizer step, over all ranks and micro-batches.
        seed: Of the shuffling.
        origin: Position in the sequence that step 0 would have; other than 0 where a run has changed its batch size.
    """

    samples: int
    batch_size: int
    seed: int
    origin: int = 0

    def going_on(self, step: int, position: int) -> BatchPlan:
        """The plan of a run that has done so many steps and trained the samples before a position."""
        return replace(self, origin=position - step * self.batch_size)

    def position(self, step: int) -> int:
        """The position of a step's first sample in the sequence of all epochs."""
        return self.origin + step * self.batch_size

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Returns the sample indices of a step (counted from 0), shape (batch_size,)."""
        first = self.position(step)
        epochs = range(first // self.samples, (first + self.batch_size - 1) // self.samples + 1)
        order = np.concatenate([self._permutation(epoch) for epoch in epochs])
        start = first - epochs.start * self.samples
        return order[start : start + self.batch_size]

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        return np.random.default_rng((self.seed, epoch)).permutation(self.samples)


def micro_batch_size(batch_size: int, world_size: int, gradient_accumulation: int) -> int:
    """Shares the samples of a step out over the ranks and their micro-batches.

    Raises:
        UserError: It does not come out even; the message has a batch size that does.
    """
    shares = world_size * gradient_accumulation
    if batch_size % shares:
        raise UserError(
            f"--batch-size {batch_size} cannot be shared by {world_size} ranks with"
            f" {gradient_accumulation} micro-batches each; expected a multiple of {shares},"
            f" for example {-(-batch_size // shares) * shares}"
        )
    return batch_size // shares


class ShardedBatches:
    """The micro-batches of one rank, from one step to another; a `batch_sampler` for PyTorch's DataLoader.

    Args:
        plan: The samples of every step.
        rank: This rank.
        world_size: How many ranks share each step.
        gradient_accumulation: Micro-batches a step on each rank.
        first_step: Where a resumed run goes on.
        last_step: One behind the last step.

    Raises:
        UserError: The batch cannot be shared out evenly.
    """

    def __init__(
        self,
        plan: BatchPlan,
        rank: int,
        world_size: int,
        gradient_accumulation: int,
        *,
        first_step: int = 0,
        last_step: int,
    ) -> None:
        self._micro_batch_size = micro_batch_size(plan.batch_size, world_size, gradient_accumulation)
        self._plan = plan
        self._rank = rank
        self._accumulation = gradient_accumulation
        self._steps = range(first_step, last_step)

    def __len__(self) -> int:
        """Micro-batches that are left."""
        return len(self._steps) * self._accumulation

    def __iter__(self) -> Iterator[list[int]]:
        """Yields the sample indices of each micro-batch of this rank."""
        for step in self._steps:
            shares = self._plan.batch(step).reshape(-1, self._accumulation, self._micro_batch_size)
            yield from shares[self._rank].tolist()
