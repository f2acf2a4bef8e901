"""From a command line to the jobs of a pipeline; reads the disk and writes nothing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from launch.config import Config, resolve, stages
from launch.pipeline.handoff import METRICS, ROLES, Product, Role, Taken, handed, is_taken, product_of, taken
from launch.spec import JobSpec, make_spec, small_job
from tracking.errors import UserError, unknown
from tracking.gate.rules import SECTION
from tracking.names import check_name
from tracking.words import many

_SHARED = ("cluster", "resources", "tracking")
_GATE_MINUTES = 15
_RESERVED = re.compile(r"latest|best|final|v\d+|step-\d+")


@dataclass(frozen=True)
class Step:
    """One stage, ready to be submitted.

    Attributes:
        stage: The stage.
        config: Its configuration.
        spec: Its job.
        gate: The job of the gate behind it.
        takes: What it takes from earlier stages.
        product: What it leaves.
        conditions: What its evaluation must find.
        settings: What `launch.submit` would be given for it.
    """

    stage: str
    config: Config
    spec: JobSpec
    gate: JobSpec
    takes: tuple[Taken, ...]
    product: Product
    conditions: tuple[dict[str, Any], ...]
    settings: tuple[str, ...]


def check_pipeline_name(name: str) -> str:
    """Refuses a name that cannot be the alias of a model.

    Raises:
        UserError: It is one that the store gives itself, or no name at all.
    """
    if _RESERVED.fullmatch(name):
        raise UserError(f"--name {name}: models get the pipeline's name as an alias, and {name!r} means something else")
    return check_name("pipeline", name)


def check_stages(given: Sequence[str]) -> list[str]:
    """Refuses a list of stages that cannot be a pipeline.

    Raises:
        UserError: It is empty, or one is unknown or there twice.
    """
    if not given:
        raise UserError("no stages are given\n  next: python -m launch.pipeline run collect bc eval")
    for stage in given:
        if stage not in stages():
            raise unknown("stage", stage, stages())
        if list(given).count(stage) > 1:
            raise UserError(f"the stage {stage!r} is given {many(list(given).count(stage), 'time')}; once will do")
    return list(given)


def read_conditions(given: Mapping[str, Sequence[str]], stage_names: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Reads `STAGE.METRIC=NUMBER`.

    Args:
        given: What `--min` and `--max` gave, by `min` and `max`.
        stage_names: The stages of the pipeline.

    Returns:
        For each stage that has any, its conditions as `tracking.gate.Condition` has them.

    Raises:
        UserError: One is not of this form, of no stage of this pipeline, or about what nobody measures.
    """
    found: dict[str, dict[str, dict[str, Any]]] = {}
    able = [stage for stage in stage_names if ROLES.get(stage, Role()).evaluates]
    for bound, texts in given.items():
        for text in texts:
            match = re.fullmatch(r"([\w-]+)\.(\w+)=(.+)", text)
            value = _number(match[3]) if match is not None else None
            if match is None or value is None:
                raise UserError(
                    f"--{bound} {text!r}: expected STAGE.METRIC=NUMBER, as in --{bound} bc.success_rate=0.5"
                )
            if match[1] not in able:
                raise unknown("stage that evaluates in this pipeline", match[1], able)
            if match[2] not in METRICS:
                raise unknown("metric", match[2], METRICS)
            found.setdefault(match[1], {}).setdefault(match[2], {"metric": match[2]})[bound] = value
    for stage, metrics in found.items():
        for metric, one in metrics.items():
            if one.get("min", float("-inf")) > one.get("max", float("inf")):
                raise UserError(f"{stage}.{metric} cannot be at least {one['min']:g} and at most {one['max']:g}")
    return {stage: list(metrics.values()) for stage, metrics in found.items()}


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def make_steps(
    name: str,
    cluster: str,
    *,
    stage_names: Sequence[str],
    settings: Sequence[str],
    conditions: Mapping[str, Sequence[dict[str, Any]]],
    run_of: Callable[[str], str],
) -> list[Step]:
    """Resolves every stage, with what earlier ones hand on.

    Args:
        name: The pipeline.
        cluster: The profile.
        stage_names: The stages.
        settings: What `--set` gave: `bc.batch_size=8`, `cluster.run_root=…` for all, `bc.resources.time=…` for one,
            `gate.resources.memory_gb=8` for the gates.
        conditions: Conditions by stage.
        run_of: Names the run of a stage.

    Raises:
        UserError: A key or a value is refused, or the cluster has no queue.
    """
    shared, own = _sorted_out(settings, stage_names)
    now, steps, products = datetime.now(), list[Step](), list[Product]()
    for stage in stage_names:
        general = [*shared, *own[stage]]
        asked = resolve(stage, cluster, general)
        takes = taken(asked, products, name)
        given = [*handed(asked, takes), *general, f"name={check_name('run', run_of(stage))}"]
        config = resolve(stage, cluster, given)
        takes = [one for one in takes if is_taken(one, config)]
        promised = {one.value for one in takes} | {str(one.folder) for one in products if one.folder is not None}
        spec = replace(make_spec(config, now), promised=frozenset(promised))
        if spec.cluster.executor != "slurm":
            raise UserError(
                f"a pipeline needs a queue, and {cluster!r} has none; run its stages one by one: "
                f"python -m launch.submit --stage {stage} --cluster {cluster} --wait"
            )
        product = product_of(config, spec)
        role, wanted = ROLES.get(stage, Role()), tuple(conditions.get(stage, ()))
        if wanted and role.evaluation is not None and not config.arguments[role.evaluation]:
            raise UserError(f"{stage}.{role.evaluation}=0: nothing is evaluated, so no condition can be met")
        gate = _gate(config, spec, [one for one in general if one.startswith("cluster.")], own["gate"])
        products.append(product)
        steps.append(Step(stage, config, spec, gate, tuple(takes), product, wanted, tuple(given)))
    return steps


def _gate(config: Config, spec: JobSpec, profile: Sequence[str], own: Sequence[str]) -> JobSpec:
    small = [*small_job(spec.cluster, _GATE_MINUTES), "resources.nodes=1", "resources.memory_gb=4"]
    small += ["resources.exclusive=false", f"name={config.name}-gate"]
    # What the stage is told is not the gate's: its own arguments are rendered from what the stage makes.
    made = make_spec(resolve(spec.stage, spec.cluster.name, [*profile, *small, *own]), datetime.now())
    return replace(made, environment=spec.environment)


def _sorted_out(settings: Sequence[str], stage_names: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The settings for all stages, and those of each one and of the gates."""
    shared, own = list[str](), {key: list[str]() for key in (*stage_names, "gate")}
    for setting in settings:
        key, separator, _ = setting.partition("=")
        head, _, rest = key.partition(".")
        if not separator or not rest:
            if key == "name":
                raise UserError("--set name=…: runs are named after the pipeline; use --name")
            raise UserError(f"--set {setting!r}: expected key=value, as in --set bc.batch_size=32")
        inner = rest.partition(".")[0]
        if head in _SHARED:
            shared.append(setting)
        elif head not in own:
            raise unknown("key", key, (f"{one}.{rest}" for one in (*own, *_SHARED)))
        elif inner in _SHARED or (inner == SECTION and head != "gate"):
            own[head].append(setting.partition(".")[2])
        elif head == "gate":
            raise unknown("key", key, (f"gate.{one}.{rest}" for one in _SHARED))
        else:
            own[head].append(setting)
    return shared, own
