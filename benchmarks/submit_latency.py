"""How long it takes from the command to the job's number, in the lab: sbatch, submitit and `launch.submit`.

    python benchmarks/submit_latency.py [--rounds 15]

The commands take turns. submitit is a plain script that submits one function with the resources of the smoke stage;
`launch.submit` resolves its layers, runs its preflight, and keeps configuration, commit and diff with the run: the
larger the diff, the longer it takes. The first job takes all nodes of the lab, so that the others wait. Ends with 1
when a goal is missed: `launch.submit` under 4x of submitit and under a second.
"""

from __future__ import annotations

import importlib.util
import itertools
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from launch_startup import ROOT, in_turns, seconds, show

# The root first: tests/ has a folder that is called tracking too.
sys.path.insert(0, str(ROOT))

from launch.lab import Lab

SUBMITIT = "plain submitit"
SUBMIT = "launch.submit"
SNAPSHOT = "launch.submit --snapshot"
_SCRIPT = """
import sys, submitit
executor = submitit.SlurmExecutor(sys.argv[1])
executor.update_parameters(time=30, gpus_per_node=1, cpus_per_task=2, mem="8G", account="lab", qos="standby")
print(executor.submit(print, "x").job_id)
"""
_BATCH = "#!/bin/bash\n#SBATCH --account=lab --qos=standby --time=30 --gpus-per-node=1\nsrun true\n"


def commands(folder: Path, environment: Mapping[str, str]) -> dict[str, Callable[[], float]]:
    """What is timed, by name."""
    (folder / "batch.sh").write_text(_BATCH)
    run = partial(seconds, environment=environment)
    python, numbers = sys.executable, itertools.count()
    options = ["--stage", "smoke", "--cluster", "lab", "--set", f"cluster.run_root={folder}/runs"]

    def submit(*more: str) -> float:
        # A name of its own: one made of the time is looked for from second to second.
        name = f"submit-latency-{folder.name}-{next(numbers)}"
        return run([python, "-m", "launch.submit", *options, "--set", f"name={name}", *more])

    timed: dict[str, Callable[[], float]] = {
        "sbatch": lambda: run(["sbatch", f"--output={folder}/%j.out", str(folder / "batch.sh")]),
        SUBMITIT: lambda: run([python, "-c", _SCRIPT, str(folder / "submitit")]),
        SUBMIT: submit,
        SNAPSHOT: lambda: submit("--snapshot"),
        "launch.submit --help": lambda: run([python, "-m", "launch.submit", "--help"]),
        "launch.submit --dry-run": lambda: run([python, "-m", "launch.submit", *options, "--dry-run"]),
    }
    if importlib.util.find_spec("launch.jobs") is None:
        print("launch.jobs is not there: its status is not timed", file=sys.stderr)
    else:
        status = [python, "-m", "launch.jobs", "status", f"submit-latency-{folder.name}-0", "--root", f"{folder}/runs"]
        timed["launch.jobs status"] = lambda: run(status)
    return timed


def main(rounds: Annotated[int, typer.Option(help="Runs of each command.", min=3)] = 15) -> None:
    """Times the commands in turns and prints the table."""
    lab = Lab(Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp")))
    try:
        lab.up()
        environment = lab.environment()
        busy = ["sbatch", "--account=lab", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep infinity"]
        subprocess.run(busy, env=environment, check=True)
        with tempfile.TemporaryDirectory(prefix="latency-") as folder:
            times = in_turns(rounds, commands(Path(folder), environment))
            for path in (ROOT / "logs").glob(f"submit-latency-{Path(folder).name}-*"):
                shutil.rmtree(path)
    finally:
        lab.down(wipe=True)
    sys.exit(int(not show(times, SUBMITIT, {SUBMIT: 4.0}, limit=1.0)))


if __name__ == "__main__":
    typer.run(main)
