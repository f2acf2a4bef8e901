"""The cost curve: success against the frames that the expert was asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.dagger.rounds import Ledger, Round
from gilbreth_phase0.statistics import wilson_interval
from tracking import checkpoints
from tracking.files import read_json
from tracking.media import Image

if TYPE_CHECKING:
    from tracking import ExperimentTracker


@dataclass(frozen=True)
class Point:
    """One policy on the curve.

    Attributes:
        round: 0 for the policy that the run started from.
        expert_frames: What all rounds up to it cost.
        successes: Of its evaluation.
        trials: Episodes of that.
    """

    round: int
    expert_frames: int
    successes: int
    trials: int

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(self.successes, self.trials)

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"after {self.expert_frames} frames of the expert: {self.successes}/{self.trials} succeeded"
            f" (95 % interval {100 * low:.0f}-{100 * high:.0f} %)"
        )


def points(run_dir: Path, rounds: Sequence[Round]) -> list[Point]:
    """The policies of a run that were evaluated, the one that it started from first."""
    found, frames = [], 0
    start = (read_json(run_dir / "evaluations" / f"{checkpoints.step_tag(0)}.json") or {}).get("trained")
    if start is not None:
        found.append(Point(0, 0, start["successes"], start["trials"]))
    for each in rounds:
        frames += each.expert_frames
        if each.is_trained and each.successes is not None and each.trials:
            found.append(Point(each.number, frames, each.successes, each.trials))
    return found


def show_curve(run_dir: Path, rounds: Sequence[Round], tracker: ExperimentTracker, step: int) -> None:
    """Prints the curve so far, and has it tracked as a picture."""
    curve = points(run_dir, rounds)
    if not curve:
        return
    for point in curve:
        print(f"  round {point.round}, {point}", flush=True)
    Ledger(run_dir).keep_facts(curve=[vars(point) for point in curve])
    tracker.log_metrics({"dagger/cost_curve": Image(draw(curve), "success against frames of the expert")}, step=step)


def draw(curve: list[Point]) -> Any:
    """Draws success rates with their intervals; returns a matplotlib figure."""
    from matplotlib.figure import Figure

    rates = [100 * point.successes / point.trials for point in curve]
    errors = [
        [rate - 100 * point.interval[0] for rate, point in zip(rates, curve, strict=True)],
        [100 * point.interval[1] - rate for rate, point in zip(rates, curve, strict=True)],
    ]
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.errorbar([point.expert_frames for point in curve], rates, yerr=errors, marker="o", capsize=3)
    axes.set_xlabel("frames of the expert")
    axes.set_ylabel("success, % (95 % interval)")
    axes.set_ylim(0, 102)
    axes.grid(alpha=0.3)
    return figure
