"""What a cluster profile holds: where jobs go, what the site allows, and what was seen there."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    field_validator,
)

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


class Section(BaseModel):
    """A part of a YAML file whose keys are all known."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PartitionLimits(Section):
    """What one partition has and allows; None is not known or without limit.

    Where a partition has nodes of several kinds, the largest value of any node stands: what exceeds it fits nowhere.

    Attributes:
        default: Whether jobs that name no partition go here.
        max_time: Longest time in minutes.
        nodes: How many nodes it has.
        max_nodes: Most nodes of one job.
        gpus_per_node: GPUs of a node.
        gpu_types: What Slurm calls them.
        cpus_per_node: Cores of a node that jobs may have.
        memory_gb: Memory of a node that jobs may have, in GiB.
        accounts: The only accounts that may use it; None is all.
        denied_accounts: Accounts that may not.
        qos: The only QOS that may be used in it; None is all.
        denied_qos: QOS that may not.
        own_qos: A QOS whose limits hold for every job in it.
    """

    default: bool = False
    max_time: Minutes | None = None
    nodes: NonNegativeInt | None = None
    max_nodes: PositiveInt | None = None
    gpus_per_node: NonNegativeInt | None = None
    gpu_types: tuple[str, ...] = ()
    cpus_per_node: PositiveInt | None = None
    memory_gb: PositiveFloat | None = None
    accounts: tuple[str, ...] | None = None
    denied_accounts: tuple[str, ...] = ()
    qos: tuple[str, ...] | None = None
    denied_qos: tuple[str, ...] = ()
    own_qos: str | None = None


class QosRules(Section):
    """What a QOS limits beside the time, which stands in `qos_limits`; None is not known or without limit.

    Attributes:
        gpus_per_job: Most GPUs of one job.
        gpus_per_user: Most GPUs of one user at once; what is more waits.
        jobs_per_user: Most jobs of one user that run at once; what is more waits.
        submitted_per_user: Most jobs of one user in the queue, running ones included; what is more is refused.
        flags: Slurm's flags, as `DenyOnLimit` (what exceeds a limit is refused, it does not wait) and
            `PartitionTimeLimit` (its time holds instead of the partition's).
    """

    gpus_per_job: NonNegativeInt | None = None
    gpus_per_user: NonNegativeInt | None = None
    jobs_per_user: NonNegativeInt | None = None
    submitted_per_user: NonNegativeInt | None = None
    flags: tuple[str, ...] = ()


class Seen(Section):
    """What one site check saw.

    Attributes:
        ok: Whether it is as jobs need it; None where it could not be told.
        saw: What was seen, in words.
    """

    ok: bool | None
    saw: str


class Checked(Section):
    """What `python -m launch.cluster check` saw on this cluster.

    Attributes:
        date: When, with the zone.
        nodes: The nodes that were asked.
        partition: Where they are; None is the cluster's default.
        shared: Whether the login node and all nodes see the same files below the profile's roots.
        home: Room in the home folder.
        internet: Whether a node reaches W&B.
        modules: Whether the profile's modules load.
        srun: Whether tasks start on every node.
        requeue: Whether Slurm lets the job be requeued.
    """

    date: str
    nodes: tuple[str, ...] = ()
    partition: str | None = None
    shared: Seen | None = None
    home: Seen | None = None
    internet: Seen | None = None
    modules: Seen | None = None
    srun: Seen | None = None
    requeue: Seen | None = None


class Cluster(Section):
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
        qos_rules: What else a QOS limits.
        partitions: What each partition has and allows; empty is not known.
        accounts: The accounts that the user may name; None is not known.
        account_qos: The QOS that each of them may name; an account that is not in it is not known.
        requeue: Whether the site lets a job be requeued; None is not known.
        node_local: Folders that other nodes do not see.
        internet: Whether the nodes that run jobs reach W&B; None is not known.
        sync_partition: Where `--sync-after` pushes runs from; None is the partition of the job itself.
        checked: What `python -m launch.cluster check` saw; None where it never ran.
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
    environment: dict[str, Annotated[str, Field(coerce_numbers_to_str=True)]] = {}
    gpus_per_node: NonNegativeInt | None = None
    qos_limits: dict[str, Minutes] = {}
    # Facts about the site are not what a job was asked for, so a run's configuration goes without them.
    qos_rules: dict[str, QosRules] = Field(default={}, exclude=True)
    partitions: dict[str, PartitionLimits] = Field(default={}, exclude=True)
    accounts: tuple[str, ...] | None = Field(default=None, exclude=True)
    account_qos: dict[str, tuple[str, ...]] = Field(default={}, exclude=True)
    requeue: bool | None = None
    node_local: tuple[str, ...] = ()
    internet: bool | None = None
    sync_partition: str | None = None
    checked: Checked | None = Field(default=None, exclude=True)
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
