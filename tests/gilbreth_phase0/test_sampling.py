"""The samples of a step are a function of the seed and the step, whoever trains them."""

import itertools

import numpy as np
import pytest

from gilbreth_phase0.sampling import BatchPlan, ShardedBatches, WeightedPlan, make_plan
from tracking.errors import UserError


def test_every_epoch_has_every_sample_once():
    plan = BatchPlan(samples=10, batch_size=4, seed=3)
    sequence = np.concatenate([plan.batch(step) for step in range(10)])
    for epoch in range(4):
        assert sorted(sequence[epoch * 10 : (epoch + 1) * 10]) == list(range(10))
    assert list(sequence[:10]) != list(sequence[10:20]), "each epoch is shuffled anew"


def test_a_batch_may_be_larger_than_the_dataset():
    plan = BatchPlan(samples=3, batch_size=8, seed=0)
    counts = np.bincount(np.concatenate([plan.batch(step) for step in range(3)]), minlength=3)
    assert list(counts) == [8, 8, 8]


def test_the_seed_decides():
    same = BatchPlan(100, 10, seed=1), BatchPlan(100, 10, seed=1)
    assert list(same[0].batch(7)) == list(same[1].batch(7))
    assert list(same[0].batch(7)) != list(BatchPlan(100, 10, seed=2).batch(7))


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_ranks_share_a_step_exactly(world_size: int, accumulation: int):
    plan = BatchPlan(samples=31, batch_size=24, seed=5)
    ranks = [
        list(ShardedBatches(plan, rank, world_size, accumulation, first_step=2, last_step=5))
        for rank in range(world_size)
    ]
    for step in range(3):
        micro = [batch for rank in ranks for batch in rank[step * accumulation : (step + 1) * accumulation]]
        assert sorted(itertools.chain.from_iterable(micro)) == sorted(plan.batch(step + 2)), (
            "no sample is lost or trained twice"
        )
        assert {len(batch) for batch in micro} == {24 // world_size // accumulation}


def test_a_resumed_run_sees_what_an_undisturbed_one_sees():
    plan = BatchPlan(samples=17, batch_size=6, seed=9)
    whole = list(ShardedBatches(plan, 1, 2, 1, last_step=12))
    resumed = list(ShardedBatches(plan, 1, 2, 1, first_step=7, last_step=12))
    assert whole[7:] == resumed


def test_an_uneven_batch_is_refused_with_one_that_fits():
    with pytest.raises(UserError, match=r"--batch-size 10 .* 2 ranks with 2 micro-batches .* multiple of 4.* 12"):
        ShardedBatches(BatchPlan(100, 10, 0), 0, 2, 2, last_step=1)


def test_a_run_with_another_batch_size_goes_on_behind_the_samples_that_it_has_seen():
    before = BatchPlan(samples=31, batch_size=12, seed=5)
    seen = np.concatenate([before.batch(step) for step in range(4)])
    after = BatchPlan(samples=31, batch_size=8, seed=5).going_on(step=4, position=before.position(4))
    assert after.position(4) == 48
    whole = BatchPlan(samples=31, batch_size=8, seed=5)
    rest = np.concatenate([after.batch(step) for step in range(4, 8)])
    assert list(np.concatenate([seen, rest])) == list(np.concatenate([whole.batch(step) for step in range(10)]))


def drawn(plan: BatchPlan, epochs: int) -> list[list[int]]:
    """How often each sample is drawn in each epoch."""
    steps = epochs * plan.samples // plan.batch_size
    sequence = np.concatenate([plan.batch(step) for step in range(steps)]).reshape(epochs, plan.samples)
    return [np.bincount(epoch, minlength=15).tolist() for epoch in sequence]


def test_weights_are_how_often_a_sample_is_drawn_in_an_epoch() -> None:
    """GIVEN 4, 10 and 1 samples with weights 1, 2.5 and 3 THEN an epoch has 4 + (20 + 5) + 3 = 32, in every epoch."""
    plan = make_plan([4, 10, 1], [1, 2.5, 3], batch_size=8, seed=1)
    assert (type(plan), plan.samples) == (WeightedPlan, 32)
    epochs = drawn(plan, 3)
    for counts in epochs:
        assert counts[:4] == [1] * 4
        assert sorted(counts[4:14]) == [2] * 5 + [3] * 5
        assert counts[14] == 3
    assert len({tuple(counts) for counts in epochs}) == 3, "another half in each epoch"
    assert list(plan.batch(7)) == list(make_plan([4, 10, 1], [1, 2.5, 3], batch_size=8, seed=1).batch(7))
    assert list(plan.batch(7)) != list(make_plan([4, 10, 1], [1, 2.5, 3], batch_size=8, seed=2).batch(7))


def test_a_weight_below_one_draws_a_part() -> None:
    plan = make_plan([10, 5], [0.3, 1], batch_size=8, seed=1)
    for counts in drawn(plan, 2):
        assert sorted(counts[:10]) == [0] * 7 + [1] * 3
        assert counts[10:] == [1] * 5


def test_without_weights_several_datasets_are_one_sequence() -> None:
    assert make_plan([4, 10, 1], [1, 1, 1], batch_size=8, seed=1) == BatchPlan(15, 8, 1)
