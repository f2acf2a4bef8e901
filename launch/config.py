"""The configuration of one job: stage YAML, then cluster profile, then `--set`; the later wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from launch import yaml_core
from launch.places import ROOT, clusters, user_profiles
from launch.profile import Cluster, Minutes, Section, minutes
from tracking.errors import UserError, unknown
from tracking.gate.rules import SECTION, ModelManagement, read_rules
from tracking.names import slug

__all__ = [
    "ROOT",
    "Cluster",
    "Config",
    "Inputs",
    "Minutes",
    "Resources",
    "Stage",
    "Tracking",
    "clusters",
    "listed",
    "load_cluster",
    "minutes",
    "resolve",
    "stages",
    "typed",
    "user_profiles",
    "validate",
]

_TABLES = {name for name, field in Cluster.model_fields.items() if isinstance(field.default, dict)}


class Resources(Section):
    """What a job asks of Slurm.

    Attributes:
        nodes: How many nodes.
        gpus_per_node: GPUs on each; 0 asks for none.
        tasks_per_node: Processes on each node; None is one a GPU, and one where there is no GPU.
        cpus_per_task: Cores of each process.
        memory_gb: Memory on each node, in GiB.
        time: Minutes until Slurm ends the job.
        signal_seconds: How long before that the tasks get USR2.
        exclusive: Whether nobody else may use the nodes.
        max_segments: How many attempts the run may have in all, requeued or in a chain of jobs.
        links: Jobs of a chain that are queued at once, where Slurm must not requeue and nodes must not submit.
    """

    nodes: PositiveInt
    gpus_per_node: NonNegativeInt
    tasks_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt
    memory_gb: PositiveFloat
    time: Minutes
    signal_seconds: NonNegativeInt
    exclusive: bool = False
    max_segments: PositiveInt = 50
    links: PositiveInt = 1

    @model_validator(mode="after")
    def _one_task_a_gpu(self) -> Resources:
        if self.gpus_per_node and self.tasks_per_node not in (None, self.gpus_per_node):
            raise ValueError(
                f"tasks_per_node={self.tasks_per_node} with gpus_per_node={self.gpus_per_node}: "
                "one task runs on each GPU; set tasks_per_node=null"
            )
        return self

    @property
    def tasks(self) -> int:
        """Processes on each node."""
        return self.tasks_per_node or max(self.gpus_per_node, 1)


class Tracking(Section):
    """Where the run is tracked; None leaves it to the environment that the job inherits.

    Attributes:
        project: W&B project.
        entity: W&B entity.
        mode: W&B mode.
    """

    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None


class Inputs(Section):
    """Which arguments of a stage name something that must stand before the job starts; `listed` reads them.

    Of datasets and policies, the first argument is the one that a pipeline sets.

    Attributes:
        datasets: Those that name datasets below its `root`.
        policies: Those that name the policies which the stage is for, one at least: folders of bundles, or names in the
            model store.
        others: Those that may name further policies.
    """

    datasets: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    others: tuple[str, ...] = ()


class Stage(Section):
    """The part of a stage YAML that is the same for all stages.

    Attributes:
        stage: Its name, which is the file's and that of the section with the arguments.
        module: The program that runs in the job.
        model: First part of the run's name; `{key}` is the value of an argument.
        objective: Second part.
        dataset: Third part.
        inputs: What must stand before the job starts.
        models: Whether it publishes models into the model store, or only loads them, for which a store that may only be
            read will do.
        resources_by: What takes the place of its resources for a value of an argument: argument, value, resources.
    """

    stage: str
    module: str
    model: str
    objective: str
    dataset: str
    inputs: Inputs = Inputs()
    models: Literal["publishes", "loads"] | None = None
    resources_by: dict[str, dict[int, dict[str, Any]]] = Field(default_factory=dict)


class Config(BaseModel):
    """Everything that one submission was asked for, with all layers applied."""

    model_config = ConfigDict(frozen=True)

    stage: Stage
    name: str | None
    cluster: Cluster
    resources: Resources
    tracking: Tracking
    arguments: dict[str, Any]
    model_management: dict[str, Any] | None = None
    """Where the stage's YAML has this section: what of its models is uploaded (`tracking.gate`)."""

    @property
    def name_parts(self) -> dict[str, str]:
        """Model, objective and dataset as they stand in the run's name and its tags."""
        texts = {
            key: "-".join(map(str, value)) if isinstance(value, list) else value
            for key, value in self.arguments.items()
        }
        parts = {"model": self.stage.model, "objective": self.stage.objective, "dataset": self.stage.dataset}
        return {key: slug(part.format_map(texts)) for key, part in parts.items()}

    def dump(self, run_name: str) -> str:
        """Writes it as the YAML that is saved with the run."""
        value: dict[str, Any] = {"stage": self.stage.stage, "module": self.stage.module, "name": run_name}
        value.update(self.name_parts)
        value["cluster"] = self.cluster.model_dump(mode="json")
        value["resources"] = self.resources.model_dump()
        value["tracking"] = self.tracking.model_dump()
        if self.model_management is not None:
            value[SECTION] = self.model_management
        value[self.stage.stage] = self.arguments
        return yaml_core.dump(value)


def stages() -> dict[str, Path]:
    """The stages that there are, by name."""
    return {path.stem: path for path in (ROOT / "launch" / "stages").glob("*.yaml")}


def load_cluster(name: str) -> Cluster:
    """Reads a cluster profile by itself, without a stage.

    Raises:
        UserError: There is none of that name, or it holds what it must not.
    """
    path = _choose("cluster", name, clusters())
    return validate(Cluster, {**yaml_core.load(path), "name": name}, "cluster", path)


def resolve(stage: str, cluster: str, settings: Sequence[str]) -> Config:
    """Applies the three layers.

    Args:
        stage: Name of a stage.
        cluster: Name of a cluster profile.
        settings: `key=value` of the command line, in order.

    Raises:
        UserError: A name or key is unknown, or a value does not fit; nothing was written.
    """
    stage_path, cluster_path = _choose("stage", stage, stages()), _choose("cluster", cluster, clusters())
    stage_tree, cluster_tree = yaml_core.load(stage_path), yaml_core.load(cluster_path)
    defaults = _mapping(stage_tree.pop(stage, None), stage, stage_path)
    management = _mapping(stage_tree.pop(SECTION), SECTION, stage_path) if SECTION in stage_tree else None
    tree: dict[str, Any] = {
        "name": None,
        "cluster": {**cluster_tree, "name": cluster},
        "resources": {},
        "tracking": _mapping(stage_tree.pop("tracking", {}), "tracking", stage_path),
        stage: {},
        SECTION: management,
    }
    resources = _mapping(stage_tree.pop("resources", None), "resources", stage_path)
    for setting in settings:
        _apply(setting, tree, defaults, stage)
    read_rules({SECTION: tree[SECTION]})  # refuses what the job would refuse
    profile = validate(Cluster, tree["cluster"], "cluster", cluster_path)
    chosen = validate(Stage, stage_tree, "", stage_path)
    arguments = _arguments(defaults, profile, tree[stage], stage)
    tree["resources"] = {**resources, **_resources_by(chosen, arguments), **profile.resources, **tree["resources"]}
    return Config(
        stage=chosen,
        name=tree["name"],
        cluster=profile,
        resources=validate(Resources, tree["resources"], "resources", stage_path),
        tracking=validate(Tracking, tree["tracking"], "tracking", stage_path),
        arguments=arguments,
        model_management=tree[SECTION],
    )


def _resources_by(stage: Stage, arguments: Mapping[str, Any]) -> dict[str, Any]:
    chosen: dict[str, Any] = {}
    for key, choices in stage.resources_by.items():
        if arguments[key] not in choices:
            expected = ", ".join(map(str, choices))
            raise UserError(f"{stage.stage}.{key}={arguments[key]!r}: expected one of {expected}")
        chosen |= choices[arguments[key]]
    return chosen


def _choose(kind: str, name: str, available: Mapping[str, Path]) -> Path:
    if name not in available:
        raise unknown(kind, name, available)
    return available[name]


def _mapping(value: Any, key: str, source: Path) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{source}: expected a section {key!r} with `key: value` lines")
    return value


def _apply(setting: str, tree: dict[str, Any], defaults: Mapping[str, Any], stage: str) -> None:
    key, separator, text = setting.partition("=")
    if not separator or not key:
        raise UserError(f"--set {setting!r}: expected key=value, as in --set resources.nodes=2")
    section, *inner = key.split(".")
    models: dict[str, type[BaseModel]] = {"cluster": Cluster, "resources": Resources, "tracking": Tracking}
    if tree[SECTION] is not None:
        models[SECTION] = ModelManagement
    valid = {"name"} | {f"{stage}.{name}" for name in defaults}
    valid |= {f"{name}.{field}" for name, model in models.items() for field in model.model_fields}
    # Tables are set entry by entry.
    nested = len(inner) == 2 and (
        (section == "cluster" and inner[0] in _TABLES)
        or (section == stage and isinstance(defaults.get(inner[0]), dict))
        or key.startswith(f"{SECTION}.upload_conditions.")
    )
    if ".".join([section, *inner[:1]]) not in valid or (len(inner) > 1 and not nested) or key == "cluster.name":
        raise unknown("key", key, valid - {"cluster.name"})
    if key == "name":
        tree["name"] = text
        return
    value = yaml_core.parse(text, f"--set {setting}")
    if nested:
        before = tree[section].get(inner[0], defaults.get(inner[0]) if section == stage else None)
        tree[section][inner[0]] = {**(before or {}), inner[1]: value}
    elif section == stage and isinstance(defaults[inner[0]], str) and value is not None:
        tree[stage][inner[0]] = text  # 123 may be the name of a dataset
    else:
        tree[section][inner[0]] = value


def _arguments(defaults: Mapping[str, Any], profile: Cluster, given: Mapping[str, Any], stage: str) -> dict[str, Any]:
    values = dict(defaults)
    for key, value in profile.arguments.items():
        if key in defaults:
            values[key] = typed(f"{stage}.{key}", value, defaults[key])
        else:
            known = {name for path in stages().values() for name in yaml_core.load(path).get(path.stem) or ()}
            if key not in known:
                raise unknown("key", f"cluster.arguments.{key}", (f"cluster.arguments.{name}" for name in known))
    for key, value in given.items():
        values[key] = typed(f"{stage}.{key}", value, defaults[key])
    return values


def typed(key: str, value: Any, default: Any) -> Any:
    """Checks a value against the type of the default whose place it takes.

    Args:
        key: What to call it in an error.
        value: The value, as YAML gave it.
        default: The stage's default; None takes any value.

    Returns:
        The value; a whole number becomes a float and a single value a list where the default is one.

    Raises:
        UserError: The types differ.
    """
    if default is None or type(value) is type(default):
        return value
    if isinstance(default, float) and type(value) is int:
        return float(value)
    if isinstance(default, list) and isinstance(value, str | int | float):
        return [value]
    kinds = {bool: "true or false", int: "a whole number", float: "a number", str: "text", list: "a list"}
    expected = kinds.get(type(default), type(default).__name__)
    raise UserError(f"{key}={value!r}: expected {expected}, as the stage's default {default!r}")


def listed(value: Any) -> list[str]:
    """The names in an argument: a list, or a text with commas between them; None has none."""
    texts = value if isinstance(value, list) else [] if value is None else [value]
    return [name.strip() for text in texts for name in str(text).split(",") if name.strip()]


Model = TypeVar("Model", bound=Section)


def validate(model: type[Model], values: Any, prefix: str, source: Path) -> Model:
    """Validates a section and says what is wrong in the words of the command line.

    Raises:
        UserError: A key is unknown (with the nearest one), missing, or holds what it must not.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        dot = f"{prefix}." if prefix else ""
        lines = []
        for fault in error.errors():
            key = dot + ".".join(str(part) for part in fault["loc"])
            if fault["type"] == "extra_forbidden":
                *place, _ = fault["loc"]
                raise unknown("key", key, _keys_beside(model, place, prefix)) from None
            message = fault["msg"].removeprefix("Value error, ")
            given = f"={fault['input']!r}" if fault["loc"] and fault["type"] != "missing" else ""
            lines.append(f"{key.rstrip('.')}{given}: {message}")
        raise UserError("\n  ".join(lines) + f"\n  (from {source} and --set)") from None


def _keys_beside(model: type[Section], place: Sequence[int | str], prefix: str) -> list[str]:
    """The keys that are valid where an unknown one stands, which may be inside a table of sections."""
    inner: Any = model
    for part in place:
        if hasattr(inner, "model_fields"):
            inner = inner.model_fields[part].annotation
            inner = inner if get_origin(inner) is dict else get_args(inner)[0]  # X of `X | None`
        else:
            inner = get_args(inner)[1]  # X of `dict[str, X]`
    return [".".join(map(str, [*filter(None, [prefix]), *place, name])) for name in inner.model_fields]
