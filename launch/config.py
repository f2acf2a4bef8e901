"""The configuration of one job: stage YAML, then cluster profile, then `--set`; the later wins."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from launch import yaml_core
from tracking.errors import UserError, unknown
from tracking.gate.rules import SECTION, ModelManagement, read_rules
from tracking.names import slug

ROOT = Path(__file__).resolve().parents[1]
"""The project root: relative roots of a profile start here, and jobs run here."""

_SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL", re.IGNORECASE)
_TIME = re.compile(r"(?:(?P<days>\d+)-)?(?P<hours>\d+):(?P<minutes>[0-5]?\d):(?P<seconds>[0-5]?\d)")


def minutes(value: Any) -> Any:
    """Reads `90`, `"1:30:00"` or `"2-00:00:00"` as minutes; seconds are rounded up, because Slurm counts minutes."""
    if not isinstance(value, str):
        return value
    match = _TIME.fullmatch(value)
    if match is None:
        raise ValueError("expected minutes, H:MM:SS or D-HH:MM:SS")
    days, hours, whole, seconds = (int(part or 0) for part in match.groups())
    return (days * 24 + hours) * 60 + whole + (seconds > 0)


Minutes = Annotated[PositiveInt, BeforeValidator(minutes)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Resources(_Section):
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
    """

    nodes: PositiveInt
    gpus_per_node: NonNegativeInt
    tasks_per_node: PositiveInt | None = None
    cpus_per_task: PositiveInt
    memory_gb: PositiveFloat
    time: Minutes
    signal_seconds: NonNegativeInt
    exclusive: bool = False

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


class Tracking(_Section):
    """Where the run is tracked; None leaves it to the environment that the job inherits.

    Attributes:
        project: W&B project.
        entity: W&B entity.
        mode: W&B mode.
    """

    project: str | None = None
    entity: str | None = None
    mode: Literal["online", "offline", "disabled"] | None = None


class Inputs(_Section):
    """Which arguments of a stage name something that must stand before the job starts.

    Attributes:
        datasets: The argument that names datasets below its `root`.
        bundle: The argument that names a policy: the folder of a bundle, or a name in the model store.
    """

    datasets: str | None = None
    bundle: str | None = None


class Stage(_Section):
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
    """

    stage: str
    module: str
    model: str
    objective: str
    dataset: str
    inputs: Inputs = Inputs()
    models: Literal["publishes", "loads"] | None = None


class Cluster(_Section):
    """A cluster profile.

    Attributes:
        name: The profile's name, which is its file's.
        executor: Whether Slurm runs the job or this machine.
        partition: Slurm partition; None is the cluster's default.
        account: Slurm account; None is the user's default.
        qos: Slurm QOS; None is the user's default.
        run_root: Where run folders are made, on a shared disk.
        data_root: Where datasets are, on a shared disk.
        store_root: The model store, on a shared disk; None is `models` beside `run_root`.
        modules: What the job loads, in this order.
        conda_env: The conda environment of the job; None is the Python that submits.
        environment: Variables of every job. Secrets are refused: they would stand in the script.
        gpus_per_node: How many GPUs a node has; None is not known.
        qos_limits: Longest time in minutes by QOS.
        node_local: Folders that other nodes do not see.
        internet: Whether the nodes that run jobs reach W&B; None is not known.
        sync_partition: Where `--sync-after` pushes runs from; None is the partition of the job itself.
        resources: What takes the place of a stage's own resources.
        arguments: What takes the place of a stage's own arguments, where it has them.
    """

    name: str
    executor: Literal["slurm", "local"]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    run_root: str = "runs"
    data_root: str = "data"
    store_root: str | None = None
    modules: tuple[str, ...] = ()
    conda_env: str | None = None
    environment: dict[str, str] = {}
    gpus_per_node: NonNegativeInt | None = None
    qos_limits: dict[str, Minutes] = {}
    node_local: tuple[str, ...] = ()
    internet: bool | None = None
    sync_partition: str | None = None
    resources: dict[str, Any] = Field(default={}, exclude=True)
    arguments: dict[str, Any] = Field(default={}, exclude=True)

    @field_validator("environment")
    @classmethod
    def _plain_variables(cls, value: dict[str, str]) -> dict[str, str]:
        for name in value:
            if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
                raise ValueError(f"{name!r} is not the name of a variable")
            if _SECRET.search(name):
                raise ValueError(
                    f"{name} looks like a secret, which must not stand in a file or a script; "
                    "export it in the shell that submits: jobs inherit it"
                )
        return value


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


def user_profiles() -> Path:
    """Where the user's own cluster profiles are."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "gilbreth" / "clusters"


def stages() -> dict[str, Path]:
    """The stages that there are, by name."""
    return {path.stem: path for path in (ROOT / "launch" / "stages").glob("*.yaml")}


def clusters() -> dict[str, Path]:
    """The cluster profiles that there are, by name; the user's own wins over one of the same name that is shipped."""
    folders = (ROOT / "launch" / "clusters", user_profiles())
    return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}


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
    tree["resources"] = {**resources, **profile.resources, **tree["resources"]}
    return Config(
        stage=validate(Stage, stage_tree, "", stage_path),
        name=tree["name"],
        cluster=profile,
        resources=validate(Resources, tree["resources"], "resources", stage_path),
        tracking=validate(Tracking, tree["tracking"], "tracking", stage_path),
        arguments=_arguments(defaults, profile, tree[stage], stage),
        model_management=tree[SECTION],
    )


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
        (section == "cluster" and inner[0] in ("environment", "resources", "arguments", "qos_limits"))
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


Model = TypeVar("Model", bound=_Section)


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
                raise unknown("key", key, (dot + name for name in model.model_fields)) from None
            message = fault["msg"].removeprefix("Value error, ")
            given = f"={fault['input']!r}" if fault["loc"] and fault["type"] != "missing" else ""
            lines.append(f"{key.rstrip('.')}{given}: {message}")
        raise UserError("\n  ".join(lines) + f"\n  (from {source} and --set)") from None
