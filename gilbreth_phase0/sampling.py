"""Which sample is trained at which step: a function of the seed and the step alone.

The epochs' permutations stand one behind the other in one endless sequence, and step s takes the batch_size samples
from position s · batch_size on. Every rank cuts its own share out of that, so that any world size and any resume see
the same samples in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class Share:
    """How often the samples of a dataset are drawn in an epoch.

    Attributes:
        first: The first of its samples; they stand one behind the other.
        samples: How many there are.
        times: How often each is drawn.
        further: How many of them, others in each epoch, are drawn once more.
    """

    first: int
    samples: int
    times: int
    further: int

    def draw(self, random: np.random.Generator) -> npt.NDArray[np.int64]:
        """Draws an epoch's samples, in order."""
        subset = random.choice(self.samples, self.further, replace=False)
        drawn: npt.NDArray[np.int64] = np.concatenate([np.tile(np.arange(self.samples), self.times), np.sort(subset)])
        return drawn + self.first


@dataclass(frozen=True)
class WeightedPlan(BatchPlan):
    """A plan in which the samples of some datasets are drawn more often than those of others.

    Attributes:
        shares: One for each dataset; `samples` is how many they draw in an epoch together.
    """

    shares: tuple[Share, ...] = ()

    def _permutation(self, epoch: int) -> npt.NDArray[np.int64]:
        random = np.random.default_rng((self.seed, epoch))
        return random.permutation(np.concatenate([share.draw(random) for share in self.shares]))


def make_plan(sizes: Sequence[int], weights: Sequence[float], batch_size: int, seed: int) -> BatchPlan:
    """Plans the samples of several datasets that stand one behind the other.

    Args:
        sizes: How many samples each has.
        weights: How often a sample of each is drawn in an epoch; of a fraction, so large a part of them.
        batch_size: Samples of one optimizer step, over all ranks and micro-batches.
        seed: Of the shuffling.
    """
    if all(weight == 1 for weight in weights):
        return BatchPlan(sum(sizes), batch_size, seed)
    firsts = np.cumsum([0, *sizes]).tolist()
    shares = tuple(
        Share(first, size, int(weight), round((weight - int(weight)) * size))
        for first, size, weight in zip(firsts, sizes, weights, strict=False)
    )
    drawn = sum(share.times * share.samples + share.further for share in shares)
    return WeightedPlan(drawn, batch_size, seed, shares=shares)


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
