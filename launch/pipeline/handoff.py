"""Which stage takes what from which: the one table that a new stage adds a row to."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from launch.config import Config, listed
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
    "dagger": Role(model="dagger-{repo_ids}", evaluates=True, evaluation="eval_episodes"),
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
    model = _model_name(role.model, config) if role.model is not None else None
    if role.dataset is None:
        return Product(stage, model=model)
    name = str(arguments[role.dataset])
    root = expand(arguments.get("root") or spec.cluster.data_root, spec.root, "root")
    episodes = arguments[role.episodes] if role.episodes is not None else None
    return Product(stage, name, root / name, episodes, model)


def _model_name(form: str, config: Config) -> str:
    """What a stage's program calls its model: several datasets, `a,b`, by the last parts of their names, `a-b`."""
    named = dict(config.arguments)
    for argument in config.stage.inputs.datasets:
        named[argument] = "-".join(PurePath(name).name for name in listed(named[argument]))
    return slug(form.format_map(named))


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
    """What a stage may take from earlier ones of its pipeline.

    Of each kind that is what was made last; of policies all, where the argument takes several.
    """
    inputs, found = config.stage.inputs, list[Taken]()
    if inputs.datasets:
        found += [Taken(one.stage, inputs.datasets[0], one.dataset) for one in earlier[::-1] if one.dataset][:1]
    if inputs.policies:
        argument = inputs.policies[0]
        models = [Taken(one.stage, argument, f"{one.model}:{pipeline}") for one in earlier if one.model]
        found += models if isinstance(config.arguments[argument], list) else models[-1:]
    return found


def handed(config: Config, takes: Sequence[Taken]) -> list[str]:
    """What `--set` would be given for that; no policy where one is set by hand.

    Args:
        config: The stage as it was asked for.
        takes: What it may take.
    """
    policies, values = config.stage.inputs.policies, dict[str, list[str]]()
    by_hand = any(listed(config.arguments[argument]) for argument in policies)
    for one in takes:
        if one.argument not in policies or not by_hand:
            values.setdefault(one.argument, []).append(one.value)
    return [
        f"{config.stage.stage}.{argument}="
        + (json.dumps(names) if isinstance(config.arguments[argument], list) else names[0])
        for argument, names in values.items()
    ]


def is_taken(one: Taken, config: Config) -> bool:
    """Whether a stage takes it: what was set by hand wins, and may name the same."""
    inputs = config.stage.inputs
    arguments = inputs.policies if one.argument in inputs.policies else (one.argument,)
    return any(one.value in listed(config.arguments[argument]) for argument in arguments)
