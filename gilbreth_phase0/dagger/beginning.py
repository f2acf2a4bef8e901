"""What a run of DAgger begins from, found and checked once, before time is spent."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gilbreth_phase0.annotations import read_annotations
from gilbreth_phase0.arguments import names
from gilbreth_phase0.contenders import find_policy, with_horizon
from gilbreth_phase0.dagger.aggregate import check_place
from gilbreth_phase0.dagger.collection import check_expert
from gilbreth_phase0.dagger.policy_expert import PolicyExpert
from gilbreth_phase0.dagger.rounds import Ledger, Round
from gilbreth_phase0.datasets import features, open_dataset, read_environment
from gilbreth_phase0.environments import TASK_DESCRIPTION, EnvironmentArguments
from gilbreth_phase0.kept_bundles import take_bundle
from gilbreth_phase0.run_folder import make_run_folder
from gilbreth_phase0.seeds import EXPERT_TRIES
from gilbreth_phase0.training_arguments import TrainingArguments
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
        token: Tells this run from any other of the same name.
        initial: The policy that is to be corrected.
        policy_type: LeRobot's name of its type.
        environment: Where it is rolled out.
        expert: The policy that corrects, where it is one.
        members: Of the ensemble, beside the policy itself.
        person: The device of the person who corrects, where it is one.
    """

    token: str
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
    known, asked = ledger.facts(), _asked(arguments)
    if known:
        faults = [
            f"{key}: {known['asked'].get(key)!r} at the beginning, {value!r} now"
            for key, value in asked.items()
            if known["asked"].get(key) != value
        ]
        if faults:
            raise UserError(
                f"{ledger.run_dir} was begun with other arguments:\n  "
                + "\n  ".join(faults)
                + "\n  next: the same ones again, or a new run (--run-dir)"
            )
        return _read(known["start"])
    initial = _find(str(arguments.from_checkpoint or arguments.policy_artifact))
    start = Start(
        token=secrets.token_hex(8),
        initial=initial,
        policy_type=str(read_json(Path(initial.folder) / "config.json")["type"]),
        environment=_environment(arguments, Path(initial.folder)),
        expert=_find(arguments.expert_policy) if arguments.expert == "policy" and arguments.expert_policy else None,
        members=tuple(_find(name) for name in names(arguments.ensemble)) if arguments.gate == "ensemble" else (),
        person=arguments.expert if arguments.expert in ("keyboard", "spacemouse") else None,
    )
    for policy in (initial, *([start.expert] if start.expert else []), *start.members):
        _check_policy(policy, start.environment)
    _check_data(arguments, start, ledger)
    if start.person is not None:
        from gilbreth_phase0.experts.person import check_device

        check_device(start.person)
    elif arguments.expert != "recorded":
        _check_expert(start, arguments)
    take_bundle(start.policy, ledger.folder(1) / "policy")
    ledger.keep_facts(start={**asdict(start), "environment": start.environment.model_dump()}, asked=asked)
    return start


def _asked(arguments: Arguments) -> dict[str, Any]:
    """The arguments that decide about roll-outs and rounds; a later attempt must have the same."""
    shared = set(TrainingArguments.model_fields) - {"training_steps", "max_steps"}
    values = arguments.model_dump(mode="json", exclude={*shared, "run_dir", "rollout_workers"})
    return {key: value for key, value in values.items() if value is not None}


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
        kept=episodes,
    )


def check_round(found: Round, arguments: Arguments) -> None:
    """Refuses to go on where a gate never asks for the expert although the policy fails.

    Raises:
        UserError: Says what of the gate to change.
    """
    if found.roll_outs == 0:
        raise UserError(
            f"round {found.number}: all {found.discarded} roll-outs were discarded; none is left to learn from\n"
            "  next: a new run (--run-dir)"
        )
    if found.expert_frames or found.solved == found.roll_outs:
        return
    failed = f"the policy failed in {found.roll_outs - found.solved} of {found.roll_outs} roll-outs"
    if arguments.expert in ("keyboard", "spacemouse"):
        raise UserError(
            f"round {found.number}: you never took over, and {failed}\n  next: a new run (--run-dir); h takes over"
        )
    hints = {
        "oracle": "--disagreement, --no-progress, --near-timeout",
        "ensemble": "--switch-rate",
        "random": "--intervention-frequency",
        "beta": "--beta-schedule",
    }
    raise UserError(
        f"round {found.number}: the gate {arguments.gate} never asked for the expert, and {failed}\n"
        f"  next: a new run (--run-dir) in which it asks earlier ({hints[arguments.gate]})"
    )


def check_corrections(found: Round, arguments: Arguments) -> None:
    """Refuses to train on a round of which the filter would keep nothing.

    Raises:
        UserError: Says what came of the takeovers.
    """
    if found.expert_frames and not found.kept:
        raise UserError(
            f"round {found.number}: of {found.takeovers} takeovers, none solved the task or was handed back:"
            f" --dagger-filter {arguments.dagger_filter} keeps nothing to learn from\n"
            "  next: a new run (--run-dir) that gives the expert more time (--near-timeout, --max-steps), or another"
            " expert (--expert)"
        )


def _find(given: str) -> Found:
    found: Resolved = find_policy(given)
    return Found(given, str(found), str(found.path), found.name is not None)


def _read(known: Mapping[str, Any]) -> Start:
    return Start(
        token=known["token"],
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


def _check_data(arguments: Arguments, start: Start, ledger: Ledger) -> None:
    """Refuses datasets that do not go together, and places of the rounds' own that are taken or cannot be written."""
    from gilbreth_phase0.training_data import can_leave_padding_out, check_sources

    sources = start.sources(arguments)
    recorded = [Source(arguments.root / name, name) for name in names(arguments.corrections)]
    check_sources([*sources, *recorded])
    if arguments.expert == "recorded":
        recorded_round(arguments)
        return
    if arguments.gate == "beta" and not can_leave_padding_out(start.policy_type):
        raise UserError(
            f"--gate beta: on relabelled roll-outs chunks end early, and {start.policy_type} is not known to leave what"
            " follows out of its loss\n  next: --gate oracle"
        )
    base = arguments.root / (arguments.dagger_repo_id or ledger.run_dir.name)
    for number in range(1, arguments.rounds + 1):
        check_place(base / f"round-{number:02d}", {"run_id": start.token, "round": number})
    make_run_folder(base)


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
    seeds = EXPERT_TRIES[:_EXPERT_TRIES]
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
