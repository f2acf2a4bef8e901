"""Whether a policy is better than the best so far, or only luckier.

Both are tried on the same seeds. What counts is on how many seeds one did better than the other: were both equally
good, each such seed would fall to either with a chance of one half, however hard the seeds are (an exact sign test; of
successes and failures it is McNemar's). The new one is better where chance alone does so well in at most 1 of 40
trials. Where it only looks better, both may be tried again on fresh seeds, with the same bound: so of policies that are
no better at most 1 in 20 is taken for better.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from tracking.errors import UserError

BestRule = Literal["paired", "naive"]
Outcomes = Mapping[int, float]
"""What came out on each seed: 1 or 0, or a return; more is better."""

ALPHA = 0.05
"""How often, at most, a policy that is no better is taken for better: half of it on each of the two occasions."""


@dataclass(frozen=True)
class Judgement:
    """What a comparison says.

    Attributes:
        better: Whether the new one is better.
        confirm: Whether it only looks better, which fresh seeds could confirm.
        reason: Both in a sentence.
    """

    better: bool
    confirm: bool
    reason: str


def judge(
    new: Outcomes, best: Outcomes | None, *, rule: BestRule = "paired", fresh: tuple[Outcomes, Outcomes] | None = None
) -> Judgement:
    """Compares a policy with the best so far.

    Args:
        new: What the new one got.
        best: What the best one got on the same seeds; None where there is none yet, and the new one is the best.
        rule: `naive` compares means, and takes the luckiest of many for the best.
        fresh: What both got on seeds that neither was tried on before, the new one first.

    Raises:
        UserError: There is nothing to compare, or the seeds are not the same or not fresh.
    """
    if not new:
        raise UserError("the new policy has not been tried; expected an outcome for each seed\n  next: evaluate it")
    if any(math.isnan(value) for value in new.values()):
        return Judgement(better=False, confirm=False, reason="an outcome is not a number")
    if best is None:
        return Judgement(better=True, confirm=False, reason="it is the first")
    if rule == "naive":
        ours, theirs = _mean(new), _mean(best)
        return Judgement(ours > theirs, confirm=False, reason=f"{ours:.4g} against {theirs:.4g} on average (naive)")
    wins, losses = pairs(new, best)
    chance = sign_test(wins, losses)
    text = f"better on {wins} and worse on {losses} of {len(new)} seeds (p = {chance:.3g})"
    if chance <= ALPHA / 2:
        return Judgement(better=True, confirm=False, reason=text)
    if wins <= losses:
        return Judgement(better=False, confirm=False, reason=text)
    if fresh is None:
        return Judgement(better=False, confirm=True, reason=f"{text}, which may be chance")
    if not (fresh[0].keys() | fresh[1].keys()).isdisjoint(new):
        raise UserError("the seeds of a confirmation must be fresh\n  next: take those that fresh_seeds gives")
    wins, losses = pairs(*fresh)
    chance = sign_test(wins, losses)
    text += f"; on fresh seeds better on {wins} and worse on {losses} of {len(fresh[0])} (p = {chance:.3g})"
    return Judgement(better=chance <= ALPHA / 2, confirm=False, reason=text)


def sign_test(wins: int, losses: int) -> float:
    """The chance of so many wins or more among them, were a win as likely as a loss; exact."""
    count = wins + losses
    return float(sum(math.comb(count, k) for k in range(wins, count + 1)) / 2**count)


def two_sided(wins: int, losses: int) -> float:
    """The chance of so great a difference in either direction, were both equally good; exact."""
    return min(1.0, 2 * sign_test(max(wins, losses), min(wins, losses)))


def pairs(new: Outcomes, best: Outcomes) -> tuple[int, int]:
    """On how many seeds the new policy did better, and on how many worse.

    Raises:
        UserError: They were tried on different seeds.
    """
    if new.keys() != best.keys():
        missing = sorted(new.keys() ^ best.keys())
        raise UserError(
            f"the two policies were tried on different seeds ({len(missing)} differ, such as {missing[0]})\n"
            "  next: evaluate both on the same seeds, or --best-rule naive"
        )
    wins = sum(new[seed] > best[seed] for seed in new)
    return wins, sum(new[seed] < best[seed] for seed in new)


def fresh_seeds(used: Iterable[int], count: int) -> range:
    """Seeds above all that were used."""
    first = max(used, default=-1) + 1
    return range(first, first + count)


def _mean(outcomes: Outcomes) -> float:
    return sum(outcomes.values()) / len(outcomes)
