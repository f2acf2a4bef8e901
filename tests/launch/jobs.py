"""Jobs that tests render and run: a specification with fixed values, and a program that says where it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from launch.config import Cluster, Resources
from launch.spec import JobSpec

PROBE = '''
import json, os, sys, time
from pathlib import Path

run = Path(sys.argv[1].removeprefix("--run-dir="))
mode = sys.argv[2]
names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURMD_NODENAME", "SLURM_RESTART_COUNT", "OMP_NUM_THREADS", "HF_HUB_OFFLINE",
         "NCCL_IB_DISABLE", "NCCL_P2P_LEVEL", "NCCL_SOCKET_IFNAME", "MUJOCO_GL", "ODD", "WANDB_API_KEY", "SLURM_CPU_BIND",
         "MASTER_PORT", "SUBMITIT_LOCAL_GLOBALID")
seen = {name: os.environ.get(name) for name in names} | {"argv": sys.argv[1:], "cwd": os.getcwd()}
rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID")
restart = os.environ.get("SLURM_RESTART_COUNT", "0")
(run / f"seen-{restart}-{rank}.json").write_text(json.dumps(seen))
while mode == "sleep" and restart == "0":
    time.sleep(0.1)
if mode == "refuse" and rank == "0":
    sys.exit(2)
if mode == "refuse":
    time.sleep(60)
if mode == "crash":
    raise RuntimeError("as asked")
if rank == "0":
    (run / "done.json").write_text('{"step": 7, "outcome": "finished"}')
'''


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
