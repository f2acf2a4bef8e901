"""Where the episodes of an evaluation start: fixed seeds to compare on, fresh ones to confirm, those demonstrated."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from gilbreth_phase0 import seeds
from tracking.errors import UserError
from tracking.files import read_json

Kind = Literal["fixed", "fresh", "demonstrations"]


@dataclass(frozen=True)
class Starts:
    """Seeds of one kind, on which all policies of an evaluation are tried.

    Attributes:
        kind: Which.
        seeds: One an episode.
    """

    kind: Kind
    seeds: Sequence[int]

    def key(self, policy: str) -> str:
        """What a policy's result on them is called in evaluation.json."""
        return f"{policy}@demonstrations" if self.kind == "demonstrations" else policy

    def __str__(self) -> str:
        if self.kind == "fresh":
            return f"fresh {seeds.words(self.seeds)} (the same again: --seed {self.seeds[0]})"
        if self.kind == "demonstrations":
            return f"starts that were demonstrated, {len(self.seeds)} {seeds.words(self.seeds)}"
        return seeds.words(self.seeds)


def choose_starts(kind: Kind, first: int | None, episodes: int, dataset: Path | None) -> list[Starts]:
    """Chooses the seeds of an evaluation.

    Args:
        kind: `demonstrations` gives as many fixed ones first: what was trained on is never reported alone.
        first: The first seed; None for that of the kind.
        episodes: How many seeds of a kind.
        dataset: Says which starts were demonstrated.

    Raises:
        UserError: Policies were trained or chosen on these seeds, or the dataset does not say what was demonstrated.
    """
    if kind == "fresh" and first is None:
        return [Starts("fresh", seeds.fresh_block(episodes))]
    chosen = (
        range(seeds.REPORT.start, seeds.REPORT.start + episodes) if first is None else range(first, first + episodes)
    )
    seeds.check_report(chosen)
    new = Starts("fresh" if chosen[0] in seeds.FRESH else "fixed", chosen)
    return [new, Starts(kind, _demonstrated(dataset)[:episodes])] if kind == "demonstrations" else [new]


def _demonstrated(dataset: Path | None) -> list[int]:
    if dataset is None:
        raise UserError("--starts demonstrations: which ones?\n  next: --dataset data/lift")
    path = dataset / "meta" / "collect.json"
    record = read_json(path)
    if not isinstance(record, dict) or not record.get("seeds"):
        raise UserError(
            f"--starts demonstrations: {path} does not say from which seeds {dataset.name} was demonstrated; datasets"
            " that gilbreth_phase0.collect makes do\n  next: --starts fixed"
        )
    return [int(seed) for seed in record["seeds"]]
