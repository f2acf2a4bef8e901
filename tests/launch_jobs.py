"""Jobs that tests render and run."""

from __future__ import annotations

import dataclasses
from datetime import datetime
from pathlib import Path
from typing import Any

import launch.spec
from launch.config import Cluster, Config, Resources, resolve
from launch.spec import JobSpec

PROGRAMS = Path(__file__).parent / "launch" / "programs"
"""The folder of the program `probe`, which writes down where it runs."""


def make_spec(**changes: Any) -> JobSpec:
    """A job with fixed values; `cluster` and `resources` may be given as mappings."""
    cluster = {"name": "here", "executor": "slurm", "partition": "gpu", "account": "lab", "qos": "standby"}
    resources = {"nodes": 1, "gpus_per_node": 2, "cpus_per_task": 4, "memory_gb": 8, "time": 30, "signal_seconds": 60}
    values: dict[str, Any] = {
        "stage": "bc",
        "name": "act_bc_lift_20250102_030405_abcdef0",
        "module": "gilbreth_phase0.train_policy",
        "argv": ("--batch-size=64",),
        "environment": {},
        "root": Path("/home/user/project"),
        "run_dir": Path("/scratch/user/runs/act_bc_lift_20250102_030405_abcdef0"),
        "log_dir": Path("/home/user/project/logs/act_bc_lift_20250102_030405_abcdef0"),
        "python": "/home/user/project/.venv/bin/python",
    }
    values |= changes
    values["cluster"] = Cluster(**{**cluster, **changes.get("cluster", {})})
    values["resources"] = Resources(**{**resources, **changes.get("resources", {})})
    return JobSpec(**values)


def probe_job(folder: Path, cluster: str = "local", *settings: str, **changes: Any) -> tuple[Config, JobSpec]:
    """The probe as a job of a stage, with its configuration; its folders are all below one."""
    config = resolve(
        "smoke", cluster, [f"cluster.run_root={folder}/runs", "cluster.node_local=[]", "resources.time=2", *settings]
    )
    spec = launch.spec.make_spec(config, datetime.now())
    values = {"module": "probe", "argv": ("go",), "environment": {"PYTHONPATH": str(PROGRAMS)}}
    return config, dataclasses.replace(spec, **{**values, "log_dir": folder / "logs" / spec.name, **changes})
