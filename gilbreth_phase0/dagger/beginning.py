"""What a run of DAgger begins from, found and checked once, before time is spent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gilbreth_phase0.annotations import read_annotations
from gilbreth_phase0.arguments import names
from gilbreth_phase0.contenders import find_policy, with_horizon
from gilbreth_phase0.dagger.collection import check_expert
from gilbreth_phase0.dagger.policy_expert import PolicyExpert
from gilbreth_phase0.dagger.rounds import Ledger, Round
from gilbreth_phase0.datasets import features, open_dataset, read_environment
from gilbreth_phase0.environments import TASK_DESCRIPTION, EnvironmentArguments
from gilbreth_phase0.seeds import ROLLOUTS
from gilbreth_phase0.training_data import Source, read_sources
from tracking.errors import UserError
from tracking.files import read_json
from tracking.store import Resolved, open_store
from tracking.store.lineage import record_use

if TYPE_CHECKING:
    from gilbreth_phase0.experts.person import Device
    from gilbreth_phase0.train_dagger import Arguments

_EXPERT_TRIES = 10
# What may differ between the environment of the datasets and that of the policy: it says how long and from where an
# episode goes, not what is seen and done.
_MAY_DIFFER = {"horizon", "start_range", "robosuite_version"}


@dataclass(frozen=True)
class Found:
    """A policy that was found.

    Attributes:
        given: As it was asked for.
        name: `act-lift:v3`, or its folder.
        folder: Where it is.
        from_store: Whether the store or W&B knows it.
    """

    given: str
    name: str
    folder: str
    from_store: bool


@dataclass(frozen=True)
class Start:
    """What a run begins from.

    Attributes:
        initial: The policy that is to be corrected.
        policy_type: LeRobot's name of its type.
        environment: Where it is rolled out.
        expert: The policy that corrects, where it is one.
        members: Of the ensemble, beside the policy itself.
        person: The device of the person who corrects, where it is one.
    """

    initial: Found
    policy_type: str
    environment: EnvironmentArguments
    expert: Found | None
    members: tuple[Found, ...]
    person: Device | None

    def __str__(self) -> str:
        return self.initial.name

    @property
    def policy(self) -> Path:
        """The folder of the policy that is to be corrected."""
        return Path(self.initial.folder)

    @property
    def inputs(self) -> list[str]:
        """The models of the store that the run's policies are made from."""
        return [self.initial.name] if self.initial.from_store else []

    @property
    def policy_expert(self) -> PolicyExpert | None:
        """The policy that corrects, ready to be asked."""
        return self.asked(self.expert) if self.expert is not None else None

    def asked(self, found: Found) -> PolicyExpert:
        """A policy, ready to be asked what it would do."""
        return PolicyExpert(Path(found.folder), TASK_DESCRIPTION[self.environment.task])

    def sources(self, arguments: Arguments) -> list[Source]:
        """The datasets that the policy was trained on."""
        return read_sources(arguments.root, arguments.repo_ids, arguments.weights)


def begin(arguments: Arguments, ledger: Ledger) -> Start:
    """Finds what a run begins from; a later attempt takes what the first one found, whatever `best` is by then.

    Raises:
        UserError: Something is not there, or does not go with the rest.
    """
    known = ledger.facts().get("start")
    if known is not None:
        return _read(known)
    initial = _find(str(arguments.from_checkpoint or arguments.policy_artifact))
    start = Start(
        initial=initial,
        policy_type=str(read_json(Path(initial.folder) / "config.json")["type"]),
        environment=_environment(arguments, Path(initial.folder)),
        expert=_find(arguments.expert_policy) if arguments.expert == "policy" and arguments.expert_policy else None,
        members=tuple(_find(name) for name in names(arguments.ensemble)) if arguments.gate == "ensemble" else (),
        person=arguments.expert if arguments.expert in ("keyboard", "spacemouse") else None,
    )
    for policy in (initial, *([start.expert] if start.expert else []), *start.members):
        _check_policy(policy, start.environment)
    if start.person is not None:
        from gilbreth_phase0.experts.person import check_device

        check_device(start.person)
    elif arguments.expert != "recorded":
        _check_expert(start, arguments)
    ledger.keep_facts(start={**asdict(start), "environment": start.environment.model_dump()})
    return start


def record_uses(start: Start, run_dir: Path) -> None:
    """Records in the model store that the run uses its policies."""
    for each in (start.initial, *([start.expert] if start.expert else []), *start.members):
        if each.from_store:
            record_use(open_store(), find_policy(each.name), run_dir)


def recorded_round(arguments: Arguments) -> Round:
    """The one round of corrections that were recorded elsewhere.

    Raises:
        UserError: A dataset does not say which of its episodes are corrections, or the filter keeps none.
    """
    episodes = frames = 0
    for name in names(arguments.corrections):
        dataset = open_dataset(arguments.root / name, name)
        annotations = read_annotations(name, dataset)
        if annotations is None:
            raise UserError(
                f"dataset {name} has neither the column 'source' nor 'success': these are plain demonstrations\n"
                f"  next: train on them with --repo-ids {arguments.repo_ids},{name} of gilbreth_phase0.train_policy"
            )
        kept = annotations.kept(arguments.dagger_filter)
        starts, ends = (np.asarray(dataset.meta.episodes[f"dataset_{end}_index"]) for end in ("from", "to"))
        episodes += int(kept.sum())
        frames += int((ends - starts)[kept].sum())
    if not frames:
        raise UserError(
            f"--corrections {arguments.corrections}: --dagger-filter {arguments.dagger_filter} keeps none of it"
        )
    return Round(
        number=1,
        roll_outs=0,
        discarded=0,
        takeovers=episodes,
        expert_frames=frames,
        policy_frames=0,
        expert_executed=frames,
        solved=0,
        solved_alone=0,
        corrections=episodes,
    )


def check_round(found: Round, arguments: Arguments) -> None:
    """Refuses to go on where a gate never asks for the expert although the policy fails.

    Raises:
        UserError: Says what of the gate to change.
    """
    if found.roll_outs == 0:
        raise UserError(
            f"round {found.number}: all {found.discarded} roll-outs were discarded; none is left to learn from"
        )
    if found.expert_frames or found.solved == found.roll_outs:
        return
    hints = {
        "oracle": "--disagreement, --no-progress, --near-timeout",
        "ensemble": "--switch-rate",
        "random": "--intervention-frequency",
        "beta": "--beta-schedule exponential: β is 0 here, and yet nothing was labelled",
    }
    raise UserError(
        f"round {found.number}: the gate {arguments.gate} never asked for the expert, and the policy failed in"
        f" {found.roll_outs - found.solved} of {found.roll_outs} roll-outs\n"
        f"  next: let it ask earlier ({hints[arguments.gate]})"
    )


def check_corrections(found: Round, arguments: Arguments) -> None:
    """Refuses to train on a round of which the filter would keep nothing.

    Raises:
        UserError: Says what came of the takeovers.
    """
    if found.expert_frames and not found.corrections and arguments.dagger_filter == "corrections":
        raise UserError(
            f"round {found.number}: the expert took over {found.takeovers} times and solved the task in none of them:"
            " no correction is left to learn from\n"
            "  next: give it more time (--near-timeout, --max-steps), or another expert (--expert)"
        )


def _find(given: str) -> Found:
    found: Resolved = find_policy(given)
    return Found(given, str(found), str(found.path), found.name is not None)


def _read(known: Mapping[str, Any]) -> Start:
    return Start(
        initial=Found(**known["initial"]),
        policy_type=known["policy_type"],
        environment=EnvironmentArguments(**known["environment"]),
        expert=Found(**known["expert"]) if known["expert"] else None,
        members=tuple(Found(**each) for each in known["members"]),
        person=known["person"],
    )


def _environment(arguments: Arguments, policy: Path) -> EnvironmentArguments:
    """The environment of the datasets, which must be the policy's too."""
    first = read_sources(arguments.root, arguments.repo_ids)[0]
    environment, trained = read_environment(first.root), read_environment(policy)
    ours, theirs = environment.model_dump(), trained.model_dump()
    faults = [
        f"{key}: {ours[key]!r} in the dataset, {theirs[key]!r} of the policy"
        for key in ours
        if key not in _MAY_DIFFER and ours[key] != theirs[key]
    ]
    if faults:
        raise UserError(
            f"the dataset {first.repo_id} and the policy {policy} are of different environments:\n  "
            + "\n  ".join(faults)
        )
    return with_horizon(environment, arguments.max_steps or None)


def _check_policy(policy: Found, environment: EnvironmentArguments) -> None:
    """Refuses a policy that was trained on other features, from its configuration alone."""
    config = read_json(Path(policy.folder) / "config.json")
    here = {name: tuple(feature["shape"]) for name, feature in features(environment).items()}
    wanted = {**config["input_features"], **config["output_features"]}
    faults = [
        f"{name} has shape {tuple(feature['shape'])}, here it is {here.get(name, 'not there')}"
        for name, feature in wanted.items()
        if here.get(name) != tuple(feature["shape"])
    ]
    if faults:
        raise UserError(
            f"the policy {policy.name} was trained on other features than those of {environment.task}:\n  "
            + "\n  ".join(faults)
        )


def _check_expert(start: Start, arguments: Arguments) -> None:
    """Refuses an expert that never succeeds, and says where it needs longer than a late takeover leaves."""
    seeds = range(ROLLOUTS.stop - _EXPERT_TRIES, ROLLOUTS.stop)
    steps = check_expert(start.environment, start.policy_expert, seeds)
    if steps is None:
        raise UserError(
            f"the expert ({arguments.expert}) failed in all of {_EXPERT_TRIES} tries at {start.environment.task} within"
            f" {start.environment.horizon} steps: what it would teach is worth nothing\n"
            "  next: another --expert, or more --max-steps"
        )
    if arguments.gate == "oracle" and 0 < arguments.near_timeout < steps:
        print(
            f"note: the expert needed {steps} steps, and takes over for good {arguments.near_timeout} steps before the"
            f" end: too late to solve the task. --near-timeout {2 * steps} would leave it the time",
            flush=True,
        )
