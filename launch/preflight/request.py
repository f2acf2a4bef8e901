"""What a job asks Slurm for, whether a stage or somebody's script asks."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launch.render import SUBMISSION_VARIABLES, slurm_time
from launch.spec import JobSpec


@dataclass(frozen=True)
class Request:
    """Resources of one job; None is not said.

    Attributes:
        nodes: How many nodes.
        tasks_per_node: Processes that srun starts on each.
        gpus_per_node: GPUs on each; 0 asks for none.
        cpus_per_task: Cores of each process.
        memory_mb: Memory on each node, MiB.
        minutes: Time limit.
        partition: Partition.
        account: Account.
        qos: QOS.
        written: How a field stands where it was asked for (`resources.time=05:00:00`), by the field's name.
        setter: What sets a field (`--set resources.time=`), by its name.
        lines: The line of a script that asks for it, by the field's name.
    """

    nodes: int = 1
    tasks_per_node: int | None = None
    gpus_per_node: int = 0
    cpus_per_task: int | None = None
    memory_mb: float | None = None
    minutes: int | None = None
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    written: Mapping[str, str] = field(default_factory=dict)
    setter: Mapping[str, str] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict)

    def shown(self, name: str) -> str:
        """A field as it was asked for."""
        return self.written.get(name) or f"{name} {getattr(self, name)}"

    def set_to(self, name: str, value: object) -> str:
        """What to write to give a field another value."""
        return f"{self.setter.get(name, f'{name} ')}{value}"


def request_of(spec: JobSpec) -> Request:
    """What a stage's job asks for; where the profile leaves a field open, what sbatch reads from the environment."""
    cluster, resources = spec.cluster, spec.resources
    keys = {
        "nodes": "resources.nodes",
        "gpus_per_node": "resources.gpus_per_node",
        "tasks_per_node": "resources.tasks_per_node",
        "cpus_per_task": "resources.cpus_per_task",
        "memory_mb": "resources.memory_gb",
        "minutes": "resources.time",
    } | {name: f"cluster.{name}" for name in SUBMISSION_VARIABLES}
    values = {
        "nodes": resources.nodes,
        "gpus_per_node": resources.gpus_per_node,
        "tasks_per_node": resources.tasks,
        "cpus_per_task": resources.cpus_per_task,
        "memory_mb": f"{resources.memory_gb:g}",
        "minutes": slurm_time(resources.time),
    }
    written = {name: f"{keys[name]}={value}" for name, value in values.items()}
    given: dict[str, Any] = {}
    for name, variable in SUBMISSION_VARIABLES.items():
        own = getattr(cluster, name)
        given[name] = own or os.environ.get(variable) or None
        written[name] = f"cluster.{name}={own}" if own else f"{variable}={given[name]}"
    return Request(
        nodes=resources.nodes,
        tasks_per_node=resources.tasks,
        gpus_per_node=resources.gpus_per_node,
        cpus_per_task=resources.cpus_per_task,
        memory_mb=resources.memory_gb * 1024,
        minutes=resources.time,
        written=written,
        setter={name: f"--set {key}=" for name, key in keys.items()},
        **given,
    )
