"""What a model was made from: models and datasets, back to the demonstrations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError
from tracking.store.root import Store
from tracking.words import many, percent

if TYPE_CHECKING:
    from rich.tree import Tree

_VERSION = re.compile(r"(?P<name>[^/:\s]+):v(?P<number>\d+)")


@dataclass(frozen=True)
class Origin:
    """A model, or a dataset, with what it was made from.

    Attributes:
        kind: `model` or `dataset`.
        name: `act-lift:v3`, a folder, or a dataset's name.
        words: What is known of it; may be empty.
        origins: What it was made from.
    """

    kind: str
    name: str
    words: str = ""
    origins: tuple[Origin, ...] = ()

    def as_plain(self) -> dict[str, Any]:
        """The same as plain values."""
        return {**vars(self), "origins": [one.as_plain() for one in self.origins]}

    def __str__(self) -> str:
        kind = f"{self.kind} " if self.kind == "dataset" else ""
        return f"{kind}{self.name}{f': {self.words}' if self.words else ''}"


def lineage(store: Store, name: str) -> Origin:
    """Follows what versions were made from.

    Args:
        store: The store.
        name: A version, as `act-lift:v3`; a model that the store does not know has no origins.
    """
    match = _VERSION.fullmatch(name)
    try:
        version = store.state(match["name"]).versions.get(int(match["number"])) if match is not None else None
    except UserError:  # what somebody has published by hand may name anything
        version = None
    if version is None:
        return Origin("model", name, "not in this store")
    models = list(version.inputs)
    start = version.metadata.get("initial_policy")
    if isinstance(start, str) and start not in models:
        models.append(start)
    origins = (*_datasets(version.metadata), *(lineage(store, one) for one in models))
    return Origin("model", name, ", ".join(_of_model(version.metadata)), origins)


def _of_model(facts: Mapping[str, Any]) -> Iterator[str]:
    if isinstance(step := facts.get("step"), int):
        yield f"step {step:,}"
    if isinstance(number := facts.get("round"), int):
        yield f"round {number}"
    if isinstance(frames := facts.get("expert_frames"), int):
        takeovers = facts.get("interventions")
        yield f"{many(frames, 'frame')} of the expert" + (
            f" in {many(takeovers, 'takeover')}" if isinstance(takeovers, int) else ""
        )
    if isinstance(rate := facts.get("success_rate"), int | float):
        yield f"success {percent(rate)}"


def _datasets(facts: Mapping[str, Any]) -> Iterator[Origin]:
    """The datasets that a version was trained on, with what was kept of each."""
    names, single = facts.get("datasets"), facts.get("dataset")
    if isinstance(names, list):
        episodes, frames = facts.get("datasets_episodes"), facts.get("datasets_frames")
    elif isinstance(single, str):
        names, episodes, frames = [single], [facts.get("dataset_episodes")], [facts.get("dataset_frames")]
    else:
        return
    # A dataset without annotations holds nothing but demonstrations.
    noun = "episode" if "dagger_filter" in facts else "demonstration"
    for at, name in enumerate(names):
        counts = zip((episodes, frames), (noun, "frame"), strict=True)
        yield Origin("dataset", str(name), ", ".join(word for values, of in counts if (word := _count(values, at, of))))


def _count(values: Any, at: int, noun: str) -> str:
    value = values[at] if isinstance(values, list) and at < len(values) else None
    return many(value, noun) if isinstance(value, int) else ""


def as_tree(origin: Origin) -> Tree:
    """A model's lineage for people."""
    from rich.text import Text
    from rich.tree import Tree

    tree = Tree(Text(str(origin), overflow="fold"))
    for one in origin.origins:
        tree.children.append(as_tree(one))
    return tree
