"""The samples of a step are a function of the seed and the step, whoever trains them."""

import itertools

import numpy as np
import pytest

from gilbreth_phase0.sampling import BatchPlan, ShardedBatches
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
