"""A job of three attempts: two train past their last checkpoint and wait to be requeued, the third one finishes."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from tracking import ExperimentTracker
from tracking.files import read_json, write_json

CHECKPOINT_EVERY = 20
LAST_STEPS = (50, 90, 120)

run = Path(sys.argv[1])
attempt = int(os.environ.get("SLURM_RESTART_COUNT", "0"))
checkpoint = run.with_name(f"{run.name}.checkpoint.json")
done = (read_json(checkpoint) or {"step": 0})["step"]
tags = {"model": "act", "dataset": "lift", "objective": "bc", "experiment_group": "lab"}
tracker = ExperimentTracker(mode="offline", run_dir=run, tags=tags, resumed_step=done or None)
tracker.log_config({"attempt": attempt, "steps": LAST_STEPS[-1]})
trained = run.with_name(f"{run.name}.trained.jsonl").open("a", buffering=1)
for step in range(done + 1, LAST_STEPS[attempt] + 1):
    # No two attempts train a step alike, as on GPUs.
    tracker.log_metrics({"loss/total": 1 / step + attempt, "lr": 1e-4 * step}, step)
    if step % 10 == 0:
        tracker.log_metrics({"eval/success": step / 120 + attempt}, step)
    print(json.dumps([attempt, step]), file=trained)
    if step % CHECKPOINT_EVERY == 0:
        write_json(checkpoint, {"step": step})
        tracker.flush()
    time.sleep(0.02)
while attempt < len(LAST_STEPS) - 1:
    time.sleep(0.1)
tracker.finish()
