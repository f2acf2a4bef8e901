"""Which seeds are for what: what a policy was trained or chosen on says little about how good it is."""

from __future__ import annotations

import random
from collections.abc import Sequence

from tracking.errors import UserError

DEMONSTRATIONS = range(100_000)
"""Demonstrations are recorded from these."""

SELECTION = range(100_000, 1_000_000)
"""These choose a checkpoint, the fresh ones of the gate's confirmations included."""

REPORT = range(1_000_000, 5_000_000)
"""These are reported, always the same ones, so that policies compare."""

ROLLOUTS = range(5_000_000, 9_990_000)
"""DAgger rolls policies out from these, and trains on what comes of it."""

CALIBRATION = range(9_990_000, 9_995_000)
"""An ensemble's threshold is found on these."""

EXPERT_TRIES = range(9_995_000, 10_000_000)
"""An expert must solve the task on one of these before it may correct a policy."""

FRESH = range(10_000_000, 2**31)
"""Drawn anew each time, to confirm what the others say."""

_ROOM = 100_000
"""Of those for selecting, so many are left for the gate's confirmations, which go on behind the first ones."""

_PURPOSE = (
    (DEMONSTRATIONS, "which are demonstrated and trained on"),
    (SELECTION, "which choose a checkpoint: what it gets on them flatters it"),
    (range(ROLLOUTS.start, EXPERT_TRIES.stop), "which DAgger trains on"),
)


def fresh_block(count: int) -> range:
    """Draws seeds that nobody could have chosen a policy by."""
    first = random.SystemRandom().randrange(FRESH.start, FRESH.stop - count)
    return range(first, first + count)


def check_selection(seeds: range) -> None:
    """Refuses to select a checkpoint on seeds that are for something else.

    Raises:
        UserError: Says where those for selecting are.
    """
    first = range(SELECTION.start, SELECTION.stop - _ROOM)
    if seeds and not _within(seeds, first):
        raise UserError(
            f"--eval-seed {seeds[0]} --eval-episodes {len(seeds)}: seeds {seeds[0]} to {seeds[-1]}, and checkpoints are"
            f" chosen on seeds {first.start} to {first[-1]} alone, so that others are left to report on\n"
            f"  next: --eval-seed {SELECTION.start}"
        )


def check_report(seeds: range) -> None:
    """Refuses to report on seeds that a policy was trained or chosen on.

    Raises:
        UserError: Says what they are for, and which ones to take.
    """
    if _within(seeds, REPORT) or _within(seeds, FRESH):
        return
    purpose = next((f", {why}" for span, why in _PURPOSE if seeds[0] in span or seeds[-1] in span), "")
    raise UserError(
        f"--seed {seeds[0]} --episodes {len(seeds)}: seeds {seeds[0]} to {seeds[-1]}{purpose}. Expected seeds from"
        f" {REPORT.start} to {REPORT[-1]}, or from {FRESH.start} on\n"
        "  next: leave --seed out; --starts demonstrations shows the starts that were trained on, apart from new ones"
    )


def words(seeds: Sequence[int]) -> str:
    """`seeds 1000000 to 1000019`."""
    if len(seeds) == 1:
        return f"seed {seeds[0]}"
    return f"seeds {seeds[0]} to {seeds[-1]}"


def _within(seeds: range, span: range) -> bool:
    return bool(seeds) and seeds[0] in span and seeds[-1] in span
