"""A stage program that writes down where it runs, and then ends as its first argument says."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

VARIABLES = [
    *("SLURM_PROCID", "SLURM_NTASKS", "SLURMD_NODENAME", "SLURM_RESTART_COUNT", "SLURM_CPU_BIND", "MASTER_PORT"),
    *("OMP_NUM_THREADS", "HF_HUB_OFFLINE", "NCCL_IB_DISABLE", "NCCL_P2P_LEVEL", "ODD", "WANDB_API_KEY"),
]

run = Path(sys.argv[1].removeprefix("--run-dir="))
mode = sys.argv[2]
rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID")
restart = os.environ.get("SLURM_RESTART_COUNT", "0")
seen = {name: os.environ.get(name) for name in VARIABLES} | {"argv": sys.argv[1:], "cwd": str(Path.cwd())}
(run / f".seen-{restart}-{rank}").write_text(json.dumps(seen))
(run / f".seen-{restart}-{rank}").rename(run / f"seen-{restart}-{rank}.json")
while mode == "sleep" and restart == "0":
    time.sleep(0.1)
if mode == "refuse" and rank == "0":
    sys.exit(2)
while mode == "refuse":  # as one that waits for rank 0
    time.sleep(0.1)
if mode == "crash":
    raise RuntimeError("as asked")
if rank == "0":
    (run / "done.json").write_text('{"step": 7, "outcome": "finished"}')
