from __future__ import annotations

import pytest

from gilbreth_phase0.statistics import wilson_interval


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [
        # Published values of Wilson's score interval, to four digits.
        (0, 10, 0.0, 0.2775),
        (9, 10, 0.5958, 0.9821),
        (20, 20, 0.8389, 1.0),
        (50, 100, 0.4038, 0.5962),
        (100, 100, 0.9630, 1.0),
    ],
)
def test_known_intervals(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=5e-5)


def test_it_is_mirrored_and_narrows_with_more_trials() -> None:
    low, high = wilson_interval(3, 17)
    assert wilson_interval(14, 17) == pytest.approx((1 - high, 1 - low))
    assert wilson_interval(30, 170)[1] - wilson_interval(30, 170)[0] < high - low


def test_without_trials_everything_is_possible() -> None:
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(3, 2), (-1, 2)])
def test_impossible_counts_are_refused(successes: int, trials: int) -> None:
    with pytest.raises(ValueError, match=f"{successes} successes of {trials}"):
        wilson_interval(successes, trials)
