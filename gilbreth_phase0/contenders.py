"""The policies of an evaluation: found by name or folder, and fit for one environment."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gilbreth_phase0.datasets import features, read_environment, require_dataset
from gilbreth_phase0.environments import EnvironmentArguments
from gilbreth_phase0.load_pretrained import BUNDLE, check_bundle
from tracking.errors import UserError
from tracking.store import Resolved, open_store, resolve
from tracking.store.reference import parse

TRAINED, UNTRAINED = "trained", "untrained"
"""What a policy is called that is evaluated alone, and a fresh one beside it."""


@dataclass(frozen=True)
class Contender:
    """A policy that is evaluated.

    Attributes:
        name: What it is called in the table and in evaluation.json.
        found: Where it is.
    """

    name: str
    found: Resolved


def find_contenders(given: Sequence[str]) -> list[Contender]:
    """Finds policies, each once.

    Args:
        given: Models by name, or folders of bundles.

    Raises:
        UserError: There is none, one is not found, or two are the same.
    """
    if not given:
        raise UserError("no policy is given\n  next: --policy act-lift:best, or --policies act-lift:v0 act-lift:v1")
    found = [find_policy(text) for text in given]
    if len(found) == 1:
        return [Contender(TRAINED, found[0])]
    for index, one in enumerate(found):
        if (earlier := next((n for n in range(index) if found[n].path.samefile(one.path)), None)) is not None:
            raise UserError(f"{given[earlier]} and {given[index]} are the same policy: {one}\n  next: name each once")
    return [Contender(name, one) for name, one in zip(_short(given), found, strict=True)]


def find_policy(given: str) -> Resolved:
    """Finds a policy by name, in the model store or on W&B, or as a folder.

    Raises:
        UserError: There is none.
    """
    wanted = parse(given)
    found = Resolved(wanted.absolute()) if isinstance(wanted, Path) else resolve(given, open_store())
    if not (found.path / "config.json").is_file():
        raise UserError(
            f"no policy bundle at {found.path} (config.json is missing)."
            " Expected the `bundle` folder of a finished bc run, or a model's name: python -m tracking.models list"
        )
    if found.note:
        print(found.note, flush=True)
    return found


def agreed_environment(
    contenders: Sequence[Contender], dataset: Path | None, max_steps: int | None
) -> EnvironmentArguments:
    """The environment that all policies are tried in, after a look at whether they fit it.

    Args:
        contenders: The policies.
        dataset: The dataset whose environment it is; else it is what the policies were trained for.
        max_steps: Steps of an episode, in place of its horizon.

    Raises:
        UserError: The policies were trained for different environments, or with other features than this one's.
    """
    if dataset is not None:
        require_dataset(dataset)
        environment = with_horizon(read_environment(dataset), max_steps)
    else:
        environment = with_horizon(read_environment(contenders[0].found.path), max_steps)
        for other in contenders[1:]:
            its = with_horizon(read_environment(other.found.path), max_steps)
            if differences := _differences(environment, its):
                raise UserError(
                    f"{contenders[0].name} and {other.name} were trained for different environments, so the same seed"
                    f" is another task for each:\n  {differences}\n"
                    "  next: evaluate them one by one, or name the environment for both: --dataset FOLDER"
                )
    shapes = {name: feature["shape"] for name, feature in features(environment).items()}
    for one in contenders:
        check_bundle(one.found.path, shapes)
    return environment


def with_horizon(environment: EnvironmentArguments, max_steps: int | None) -> EnvironmentArguments:
    """The same environment with another horizon, where one is given."""
    return environment if max_steps is None else environment.model_copy(update={"horizon": max_steps})


def _differences(first: EnvironmentArguments, other: EnvironmentArguments) -> str:
    """What differs; another version of robosuite is only warned of, where the environment is built."""
    old, new = first.model_dump(exclude={"robosuite_version"}), other.model_dump(exclude={"robosuite_version"})
    return "; ".join(f"{key} {old[key]!r} and {new[key]!r}" for key in old if old[key] != new[key])


def _short(given: Sequence[str]) -> list[str]:
    """Names for a table: of a bundle in a run folder the run's, where all of them then still differ."""
    paths = [parse(text) for text in given]
    short = [
        text if not isinstance(path, Path) else path.parent.name if path.name == BUNDLE else path.name
        for text, path in zip(given, paths, strict=True)
    ]
    return short if len(set(short)) == len(short) and all(short) else list(given)
