"""Several policies on the same seeds: a table, and whether one is better beyond chance."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.statistics import holm
from tracking.gate.best import pairs, two_sided

if TYPE_CHECKING:
    from gilbreth_phase0.evaluate import EvaluationResult


@dataclass(frozen=True)
class Against:
    """A policy against the first one, on the same seeds.

    Attributes:
        policy: The first one.
        better: On how many seeds this one succeeded and the first one did not.
        worse: On how many it is the other way round.
        p: The chance of so great a difference, in either direction, were both equally good (exact sign test; of
            successes McNemar's).
        p_holm: The same, corrected for how many policies are compared with the first one.
    """

    policy: str
    better: int
    worse: int
    p: float
    p_holm: float

    def __str__(self) -> str:
        return f"+{self.better} -{self.worse}, p {self.p_holm:.2g}"


def against_first(results: Mapping[str, EvaluationResult]) -> dict[str, Against]:
    """Compares all policies but the first with the first one.

    Args:
        results: By the policy's name; all on the same seeds.

    Returns:
        The comparisons, by the policy's name.
    """
    outcomes = {
        name: {episode.seed: float(episode.success) for episode in result.episodes} for name, result in results.items()
    }
    first, *others = results
    counts = [pairs(outcomes[name], outcomes[first]) for name in others]
    chances = [two_sided(better, worse) for better, worse in counts]
    return {
        name: Against(first, better, worse, chance, corrected)
        for name, (better, worse), chance, corrected in zip(others, counts, chances, holm(chances), strict=True)
    }


def as_json(results: Mapping[str, EvaluationResult], facts: Mapping[str, Any]) -> dict[str, Any]:
    """Results with their comparisons and further facts of all of them, for evaluation.json."""
    compared = against_first(results)
    return {
        name: {
            **result.as_json(),
            **facts,
            **({"against": asdict(compared[name])} if name in compared else {}),
        }
        for name, result in results.items()
    }


def show(results: Mapping[str, EvaluationResult], title: str) -> None:
    """Prints a table, one row a policy."""
    from rich.console import Console
    from rich.table import Table

    compared = against_first(results)
    said = "95 %: Wilson's interval; reward: of a step; steps: of an episode, on average"
    table = Table(title=title, title_justify="left", caption_justify="left")
    table.add_column("policy", overflow="fold")
    for column in ("success", "95 %", "reward", "steps"):
        table.add_column(column, no_wrap=True)
    if compared:
        table.add_column("against the first", no_wrap=True)
        many = f" corrected for {len(compared)} comparisons (Holm)," if len(compared) > 1 else ""
        said += f"; + and -: seeds on which it did better and worse; p: exact sign test,{many} two-sided"
    for name, result in results.items():
        low, high = result.interval
        row = (
            name,
            f"{result.successes}/{len(result.episodes)}",
            f"{100 * low:.0f}-{100 * high:.0f} %",
            f"{result.reward_per_step:.2f}",
            f"{result.mean_length:.0f}",
        )
        table.add_row(*row, str(compared.get(name, ""))) if compared else table.add_row(*row)
    table.caption = said
    Console().print(table)
