"""What is to run: one frozen value, made from a configuration and printed or submitted from there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from launch.config import Cluster, Config, Resources
from launch.places import ROOT, expand
from tracking.names import check_name, run_name
from tracking.store.root import VARIABLE


@dataclass(frozen=True)
class JobSpec:
    """One job, ready to be rendered.

    Attributes:
        stage: The stage's name.
        name: The run's name, which is also Slurm's job name.
        module: The program that runs.
        argv: Its arguments without `--run-dir`.
        environment: Variables that are set for it.
        root: The project root, where it runs.
        run_dir: The run folder.
        log_dir: Where its logs are, and submitit's files.
        python: The Python that runs it, where the cluster names no conda environment.
        cluster: The profile.
        resources: What it asks for.
        after: The job that must end well before it starts; Slurm ends it where that one does not.
        promised: What stands by then and need not stand now: folders of datasets, models by name.
    """

    stage: str
    name: str
    module: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    root: Path
    run_dir: Path
    log_dir: Path
    python: str
    cluster: Cluster
    resources: Resources
    after: str | None = None
    promised: frozenset[str] = frozenset()


def make_spec(config: Config, now: datetime, root: Path = ROOT) -> JobSpec:
    """Makes the job of a configuration; reads the disk and writes nothing.

    Args:
        config: The resolved configuration.
        now: The time that the run's name holds, in local time.
        root: The project root.

    Raises:
        UserError: A name or a path cannot be used.
    """
    run_root = expand(config.cluster.run_root, root, "cluster.run_root")
    arguments = dict(config.arguments)
    tracking = config.tracking
    elsewhere = {
        "root": str(expand(config.cluster.data_root, root, "cluster.data_root")),
        "wandb_project": tracking.project,
    }
    arguments |= {key: value for key, value in elsewhere.items() if key in arguments and arguments[key] is None}
    name = check_name("run", config.name if config.name is not None else free_name(config, run_root, now, root))
    environment = {VARIABLE: str(_store_root(config, run_root, root))} if config.stage.models else {}
    variables = {"WANDB_PROJECT": tracking.project, "WANDB_ENTITY": tracking.entity, "WANDB_MODE": tracking.mode}
    return JobSpec(
        stage=config.stage.stage,
        name=name,
        module=config.stage.module,
        argv=flags(arguments),
        environment={key: value for key, value in variables.items() if value}
        | environment
        | config.cluster.environment,
        root=root,
        run_dir=run_root / name,
        log_dir=root / "logs" / name,
        python=sys.executable,
        cluster=config.cluster,
        resources=config.resources,
    )


def small_job(cluster: Cluster, minutes: int, gpus: int | None = None) -> list[str]:
    """Settings of a job that asks for as little as the profile's partition takes.

    Args:
        cluster: The profile.
        minutes: How long it may run, where the limits allow that.
        gpus: GPUs on each node; None is one where the partition has any, because GPU partitions refuse jobs without.
    """
    limits = cluster.partitions.get(cluster.partition or "")
    longest = [time for time in (cluster.qos_limits.get(cluster.qos or ""), limits and limits.max_time) if time]
    any_gpus = cluster.gpus_per_node if limits is None else limits.gpus_per_node
    return [
        f"resources.gpus_per_node={min(1, any_gpus or 0) if gpus is None else gpus}",
        "resources.tasks_per_node=null",
        "resources.cpus_per_task=1",
        f"resources.time={min([minutes, *longest])}",
        "resources.signal_seconds=30",
    ]


def _store_root(config: Config, run_root: Path, root: Path) -> Path:
    """The profile's, else the one that commands in this shell use, else `models` beside the run folders."""
    if config.cluster.store_root is not None:
        return expand(config.cluster.store_root, root, "cluster.store_root")
    given = os.environ.get(VARIABLE)
    return root / Path(given).expanduser() if given else run_root.parent / "models"


def flags(arguments: Mapping[str, Any]) -> tuple[str, ...]:
    """Writes arguments as flags of a stage program: None is not given, a list once for each entry, a table as JSON."""
    written: list[str] = []
    for key, value in arguments.items():
        flag = key.replace("_", "-")
        if isinstance(value, bool):
            written.append(f"--{flag}" if value else f"--no-{flag}")
        elif isinstance(value, list):
            written += [f"--{flag}={entry}" for entry in value]
        elif isinstance(value, dict):
            written.append(f"--{flag}={json.dumps(value)}")
        elif value is not None:
            written.append(f"--{flag}={value}")
    return tuple(written)


def free_name(config: Config, run_root: Path, now: datetime, root: Path) -> str:
    """Names a run after the first second from `now` on whose name is not taken."""
    commit = git("rev-parse", "--short=7", "HEAD", cwd=root)
    while True:
        name = run_name(**config.name_parts, git_short=commit, at=now)
        # A folder that may not be entered is preflight's to refuse.
        if not any(os.access(folder / name, os.F_OK) for folder in (run_root, root / "logs")):
            return name
        now += timedelta(seconds=1)


def git(*arguments: str, cwd: Path) -> str | None:
    """Runs git and returns what it printed, or None where there is no git or no commit."""
    try:
        done = subprocess.run(["git", *arguments], cwd=cwd, capture_output=True, text=True, timeout=30, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
