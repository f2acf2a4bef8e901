"""A stage's arguments against what its program accepts, without importing the program.

Running the program's own parser takes a third of a second of imports where the disk is quick, more than all else that a
submission does; so `launch/stages/arguments.json` holds its schema, written by the program's own model
(`make schemas`), and a test holds the two equal in what they accept.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from functools import cache, reduce
from operator import or_
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from launch.config import ROOT, Config, typed
from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.spec import JobSpec
from tracking.errors import UserError, unknown
from tracking.files import read_json
from tracking.gate.rules import SECTION, check_metrics, read_rules

_FILE = ROOT / "launch" / "stages" / "arguments.json"
_PARTS = ("programs", "policies", "chunks", "metrics", "seeds")
_TYPES: dict[str, Any] = {"string": str, "integer": int, "number": float, "boolean": bool, "null": None}
_CONSTRAINTS = {
    "minimum": "ge",
    "exclusiveMinimum": "gt",
    "maximum": "le",
    "exclusiveMaximum": "lt",
    "minLength": "min_length",
    "maxLength": "max_length",
    "pattern": "pattern",
}


def argument_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields which arguments the stage's program would refuse."""
    stage = spec.stage
    for name, message in faults(spec.module, config.arguments):
        given = config.arguments.get(name)
        if given is None and name in config.stage.inputs.policies:
            continue  # said by another rule
        yield rules.ARGUMENTS(
            f"{stage}.{name}{f'={given!r}' if given is not None else ''}: {message}", f"--set {stage}.{name}=VALUE"
        )
    yield from _policy_settings(config, spec)
    yield from _metrics(config)
    yield from _together(config, spec)


@cache
def known() -> Mapping[str, Any]:
    """What `gilbreth_phase0.schemas` writes down of the programs; each part is empty where there is no such file."""
    found: Mapping[str, Any] = read_json(_FILE) or {part: {} for part in _PARTS}
    return found


def faults(module: str, arguments: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Parses arguments as a program would.

    Args:
        module: The program; one that there is no schema of accepts all.
        arguments: Its arguments as the configuration has them; None is not given.

    Yields:
        The name of an argument that is refused, and why.
    """
    schema = known()["programs"].get(module)
    if schema is None:
        return
    given = {name: _text(value) for name, value in arguments.items() if value is not None}
    # The run folder is required too, and is the submission's to give.
    yield from ((name, "expected a value") for name in schema["required"] if name in arguments.keys() - given.keys())
    try:
        _model(module).model_validate(given)
    except ValidationError as error:
        for fault in error.errors():
            yield str(fault["loc"][0]), fault["msg"]


def _text(value: Any) -> Any:
    """A value as it stands on the program's command line."""
    if isinstance(value, list):
        return [_text(entry) for entry in value]
    return json.dumps(value) if isinstance(value, dict) else str(value)


@cache
def _model(module: str) -> type[BaseModel]:
    properties = known()["programs"][module]["properties"]
    fields: dict[str, Any] = {name: (annotation(schema), None) for name, schema in properties.items()}
    return create_model("Arguments", __config__=ConfigDict(extra="forbid"), **fields)


def annotation(schema: Mapping[str, Any]) -> Any:
    """The type that a JSON schema of one argument stands for.

    Raises:
        KeyError: It holds something that has no counterpart here.
    """
    if "anyOf" in schema:
        return reduce(or_, (annotation(part) for part in schema["anyOf"]))
    if "const" in schema:
        return Literal[schema["const"]]
    if "enum" in schema:
        return Literal[tuple(schema["enum"])]
    kind = list[annotation(schema["items"])] if schema["type"] == "array" else _TYPES[schema["type"]]  # type: ignore[misc]
    constraints = {_CONSTRAINTS[key]: value for key, value in schema.items() if key not in ("type", "items")}
    return Annotated[kind, Field(**constraints)] if constraints else kind


def _policy_settings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Looks for fields that LeRobot's configuration of the policy does not have."""
    settings = config.arguments.get("policy_settings")
    fields = known()["policies"].get(config.arguments.get("policy"))
    if not isinstance(settings, dict) or fields is None:
        return
    key = f"{spec.stage}.policy_settings"
    for name, value in settings.items():
        try:
            if name not in fields:
                raise unknown("key", f"{key}.{name}", (f"{key}.{field}" for field in fields))
            typed(f"{key}.{name}", value, fields[name])
        except UserError as error:
            yield rules.ARGUMENTS(str(error).partition("\n")[0], f"leave {name!r} out, or give a value that fits")


def _metrics(config: Config) -> Iterator[Finding]:
    """Looks at what is uploaded, and what is the best, by metrics that no evaluation measures."""
    metrics = known()["metrics"]
    if config.model_management is None or not metrics:
        return
    try:
        check_metrics(read_rules({SECTION: config.model_management}), **metrics)
    except UserError as error:
        what, _, valid = str(error).partition("\n")
        yield rules.ARGUMENTS(what, f"name another; {valid.strip()}")


def _together(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Looks at arguments that must go together."""
    arguments, stage = config.arguments, spec.stage
    yield from _chunk(config, spec)
    yield from _seeds(config, spec)
    if arguments.get("eval_freq") and arguments.get("eval_episodes") == 0:
        yield rules.ARGUMENTS(
            f"{stage}.eval_freq={arguments['eval_freq']}: there is nothing to evaluate with {stage}.eval_episodes=0",
            f"--set {stage}.eval_freq=0, or --set {stage}.eval_episodes=20",
        )
    if (shares := batch_shares(config, spec)) is None:
        return
    batch, ranks, accumulation = shares
    whole = ranks * accumulation
    if batch % whole:
        yield rules.BATCH(
            f"{stage}.batch_size={batch} cannot be shared by {ranks} ranks ({spec.resources.nodes} nodes x "
            f"{spec.resources.tasks}) with {accumulation} micro-batches each: {batch / whole:.4g} samples",
            f"--set {stage}.batch_size={-(-batch // whole) * whole} (micro-batch {-(-batch // whole)})",
        )


def _seeds(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Looks at seeds that are for something else: what a policy was trained or chosen on flatters it."""
    arguments, stage = config.arguments, spec.stage
    # Roll-outs are those of all rounds.
    for first, counts, purposes in (
        ("eval_seed", ("eval_episodes",), ("selection",)),
        ("rollout_seed", ("rounds", "episodes"), ("rollouts",)),
        ("seed", ("episodes",) if "starts" in arguments else (), ("report", "fresh")),
    ):
        begin, *sizes = [value for name in (first, *counts) if isinstance(value := arguments.get(name), int)] or [0]
        spans = [known()["seeds"][one] for one in purposes if one in known()["seeds"]]
        if not counts or not spans or len(sizes) < len(counts):
            continue
        last = begin + math.prod(sizes) - 1
        if last >= begin and not any(low <= begin and last <= high for low, high in spans):
            allowed = " or ".join(f"{low} to {high}" for low, high in spans)
            yield rules.ARGUMENTS(
                f"{stage}.{first}={begin}: seeds {begin} to {last}, and those for this are {allowed}",
                f"--set {stage}.{first}={spans[0][0]}",
            )


def policy_values(config: Config) -> dict[str, Any]:
    """Fields of the policy's configuration as the program completes them; empty where the policy is not known."""
    arguments = config.arguments
    kind = known()["chunks"].get(arguments.get("policy"))
    if kind is None:
        return {}
    given = {
        "n_obs_steps": arguments.get("n_obs_steps"),
        kind["field"]: arguments.get("action_chunk_size"),
        "n_action_steps": arguments.get("n_action_steps"),
    }
    settings = arguments.get("policy_settings")
    return {
        **known()["policies"][arguments["policy"]],
        **kind["defaults"],
        **{name: value for name, value in given.items() if value is not None},
        **(settings if isinstance(settings, dict) else {}),
    }


def _chunk(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Looks at how many actions are predicted and how many of them executed."""
    values, stage = policy_values(config), spec.stage
    if not values:
        return
    kind = known()["chunks"][config.arguments["policy"]]
    chunk, executed, seen = (values[name] for name in (kind["field"], "n_action_steps", "n_obs_steps"))
    if not all(isinstance(value, int) for value in (chunk, executed, seen)):
        return  # said by another rule
    left = chunk - (seen - 1) if kind["starts_in_the_past"] else chunk
    if executed > left:
        what = f"a chunk has {left} actions ({stage}.action_chunk_size)"
        past = f", behind {seen - 1} of the past ({stage}.n_obs_steps)" if left < chunk else ""
        yield rules.ARGUMENTS(
            f"{stage}.n_action_steps={executed}: {what}{past}", f"--set {stage}.n_action_steps={left}"
        )
    stages = values.get(kind["halvings"])
    if isinstance(stages, list) and chunk % 2 ** len(stages):
        whole = 2 ** len(stages)
        yield rules.ARGUMENTS(
            f"{stage}.action_chunk_size={chunk}: a chunk is halved {len(stages)} times ({kind['halvings']})",
            f"--set {stage}.action_chunk_size={-(-chunk // whole) * whole}",
        )


def batch_shares(config: Config, spec: JobSpec) -> tuple[int, int, int] | None:
    """Samples of a step, ranks, and micro-batches of each rank; None for a stage that trains on no batches."""
    batch, accumulation = config.arguments.get("batch_size"), config.arguments.get("gradient_accumulation", 1)
    if not isinstance(batch, int) or not isinstance(accumulation, int) or batch < 1 or accumulation < 1:
        return None
    return batch, spec.resources.nodes * spec.resources.tasks, accumulation
