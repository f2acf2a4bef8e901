"""Jobs that tests render and run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.config import Cluster, Resources
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
