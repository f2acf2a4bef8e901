"""Statistics of success rates."""

from __future__ import annotations

import math
from collections.abc import Sequence

Z_95 = 1.959963984540054
"""Half-width of the central 95 % of the standard normal distribution."""


def wilson_interval(successes: int, trials: int, z: float = Z_95) -> tuple[float, float]:
    """The interval of success probabilities that agree with what was observed (Wilson's score interval).

    Args:
        successes: How many of the trials succeeded.
        trials: How many trials; with none, every probability agrees.
        z: Half-width in standard deviations (1.96 for 95 %).

    Returns:
        Lower and upper bound, each within 0 and 1.

    Raises:
        ValueError: More successes than trials, or a negative number.
    """
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes of {trials} trials: expected 0 <= successes <= trials")
    if trials == 0:
        return 0.0, 1.0
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    scale = 1 + z * z / trials
    # At 0 and n successes rounding could leave a bound an ulp beyond what is exact.
    low = 0.0 if successes == 0 else (centre - spread) / scale
    high = 1.0 if successes == trials else (centre + spread) / scale
    return low, high


def holm(chances: Sequence[float]) -> list[float]:
    """Corrects p-values for how many there are (Holm), in the order given.

    So corrected, the chance that any of them is at most 5 % where all differences are chance is at most 5 %, whatever
    they have to do with each other.
    """
    order = sorted(range(len(chances)), key=lambda index: chances[index])
    corrected = [0.0] * len(chances)
    greatest = 0.0
    for rank, index in enumerate(order):
        greatest = max(greatest, min(1.0, (len(chances) - rank) * chances[index]))
        corrected[index] = greatest
    return corrected
