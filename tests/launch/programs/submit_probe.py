"""`launch.submit` for the probe in the place of a stage, so that a job takes a second: one submission, as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from datetime import datetime
from pathlib import Path

from launch.config import resolve
from launch.spec import make_spec
from launch.submission import pick_up, submit
from tracking.errors import exit_on_user_error

roots, cluster, mode, *settings = sys.argv[1:]
with exit_on_user_error():
    config = resolve("smoke", cluster, [f"cluster.run_root={roots}/runs", "resources.time=2", *settings])
    spec = make_spec(config, datetime.now())
    spec = dataclasses.replace(
        spec,
        module="probe",
        argv=(mode,),
        environment={"PYTHONPATH": str(Path(__file__).parent)},
        log_dir=Path(roots, "logs", spec.name),
    )
    earlier = pick_up(config, spec)
    if earlier is not None:
        spec, submitted = earlier
    else:
        submitted = submit(config, spec, arguments=["--stage", "smoke"])
print(json.dumps({"name": spec.name, "job_id": submitted.job_id, "adopted": earlier is not None}), flush=True)
