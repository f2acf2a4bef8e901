"""Which stage takes what from which: the one table that a new stage adds a row to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.config import Config
from launch.places import expand
from launch.spec import JobSpec
from tracking.names import slug

METRICS = ("success_rate", "success_rate_low", "success_rate_high", "reward_per_step", "mean_length", "successes")
"""What an evaluation measures, and a condition may be about."""


@dataclass(frozen=True)
class Role:
    """What a stage does for the others of its pipeline; what it takes stands in its YAML, under `inputs`.

    Attributes:
        dataset: The argument that names the dataset which it records.
        episodes: The argument that says how many episodes that gets.
        model: What it publishes its policy as; `{key}` is the value of an argument.
        evaluates: Whether it evaluates a policy.
        evaluation: The argument that says over how many episodes; 0 is none.
    """

    dataset: str | None = None
    episodes: str | None = None
    model: str | None = None
    evaluates: bool = False
    evaluation: str | None = None


ROLES = {
    "collect": Role(dataset="repo_id", episodes="episodes"),
    "bc": Role(model="{policy}-{repo_ids}", evaluates=True, evaluation="eval_episodes"),
    "eval": Role(evaluates=True, evaluation="episodes"),
}


@dataclass(frozen=True)
class Product:
    """What a stage will leave for later ones.

    Attributes:
        stage: The stage.
        dataset: Name of its dataset.
        folder: The folder of that.
        episodes: How many episodes it will hold.
        model: Name of its model in the store.
    """

    stage: str
    dataset: str | None = None
    folder: Path | None = None
    episodes: int | None = None
    model: str | None = None


def product_of(config: Config, spec: JobSpec) -> Product:
    """What a stage will leave."""
    stage, arguments = config.stage.stage, config.arguments
    role = ROLES.get(stage, Role())
    model = slug(role.model.format_map(arguments)) if role.model is not None else None
    if role.dataset is None:
        return Product(stage, model=model)
    name = str(arguments[role.dataset])
    root = expand(arguments.get("root") or spec.cluster.data_root, spec.root, "root")
    episodes = arguments[role.episodes] if role.episodes is not None else None
    return Product(stage, name, root / name, episodes, model)


@dataclass(frozen=True)
class Taken:
    """An input that comes from an earlier stage.

    Attributes:
        stage: Which one.
        argument: The argument that names it.
        value: What it is set to.
    """

    stage: str
    argument: str
    value: str


def taken(config: Config, earlier: Sequence[Product], pipeline: str) -> list[Taken]:
    """What a stage takes from earlier ones of its pipeline: of each kind, what was made last."""
    inputs, found = config.stage.inputs, []
    if inputs.datasets is not None:
        found += [Taken(one.stage, inputs.datasets, one.dataset) for one in earlier[::-1] if one.dataset][:1]
    if inputs.bundle is not None:
        found += [Taken(one.stage, inputs.bundle, f"{one.model}:{pipeline}") for one in earlier[::-1] if one.model][:1]
    return found
