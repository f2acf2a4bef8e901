"""SIGKILL of a submitting process at a chosen phase, the next command, and what became of jobs and runs."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from launch.intent import FOLDER
from launch.sbatch import answer, was_called

from support import wait_until

PROGRAM = Path(__file__).parent / "launch" / "programs" / "submit_probe.py"
ROOT = Path(__file__).resolve().parents[1]

BEFORE, INTENT, CALLING, ANSWERED, RECORDED = (
    "before the intent",
    "intent recorded",
    "sbatch running",
    "answered, not recorded",
    "recorded",
)
# How long a phase lasts, s: the kill comes at a random moment of it.
PHASES = {BEFORE: 0.5, INTENT: 0.02, CALLING: 0.015, ANSWERED: 0.004, RECORDED: 0.003}


@dataclass
class Trial:
    """One kill.

    Attributes:
        roots: Holds `runs` and `logs` of this trial alone.
        phase: In which phase the process was killed.
        said: What the next command printed.
        adopted: Whether the next command took the killed one's job.
        jobs: The jobs that Slurm has of this trial, by run.
        faults: What is wrong, in words.
    """

    roots: Path
    phase: str
    said: str = ""
    adopted: bool = False
    jobs: dict[str, list[str]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)


def start(roots: Path, environment: Mapping[str, str], *settings: str) -> subprocess.Popen[str]:
    """Submits the probe from a process of its own."""
    return subprocess.Popen(
        [sys.executable, str(PROGRAM), str(roots), "lab", "go", *settings],
        cwd=ROOT,
        env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def phase_of(roots: Path) -> str:
    """How far a submission has come, from its files."""
    records = [path for path in (roots / "runs").glob("*/submission.json") if '"submitted"' in path.read_text()]
    if records:
        return RECORDED
    intents = list((roots / "runs" / FOLDER).glob("[!.]*.json"))
    if not intents:
        return BEFORE
    log_dir = roots / "logs" / intents[0].name.partition("~")[0]
    if not was_called(log_dir):
        return INTENT
    return ANSWERED if answer(log_dir) else CALLING


def play(roots: Path, target: str, draw: random.Random, environment: Mapping[str, str], *settings: str) -> Trial:
    """Kills a submission in a phase, and runs the same command again.

    Args:
        roots: An empty folder.
        target: The phase; a process that is faster is killed in a later one.
        draw: Of the moment in it.
        environment: With the lab's variables.
        settings: `key=value`; without a name, each command makes its own.
    """
    process = start(roots, environment, *settings)
    while target != BEFORE and list(PHASES).index(phase := phase_of(roots)) < list(PHASES).index(target):
        assert process.poll() is None or phase_of(roots) == RECORDED, process.communicate()
        if phase == BEFORE:
            time.sleep(0.001)  # the process needs the core that looking takes
    time.sleep(draw.uniform(0, PHASES[target]))
    process.send_signal(signal.SIGSTOP)
    trial = Trial(roots, phase_of(roots))
    process.kill()
    process.communicate()
    again = start(roots, environment, *settings)
    trial.said = again.communicate(timeout=120)[0]
    if again.returncode == 0:
        trial.adopted = json.loads(trial.said.splitlines()[-1])["adopted"]
    elif trial.phase != RECORDED or "is there already" not in trial.said:
        trial.faults.append(f"the next command ended with {again.returncode}: {trial.said}")
    return trial


def judge(trial: Trial, environment: Mapping[str, str]) -> None:
    """Compares jobs and runs: each run has one job, which ran to its end, and nothing else is left."""
    trial.jobs = jobs_of(trial.roots, environment)
    runs = {path.name for path in (trial.roots / "runs").glob("[!.]*")}
    logs = {path.name for path in (trial.roots / "logs").glob("*")}
    left = [path.name for path in (trial.roots / "runs" / FOLDER).glob("*")]
    trial.faults += [f"{run} has jobs {jobs}" for run, jobs in trial.jobs.items() if len(jobs) > 1]
    trial.faults += [f"{run} has no job" for run in (runs | logs) - set(trial.jobs)]
    trial.faults += [f"job {jobs[0]} has no run {run}" for run, jobs in trial.jobs.items() if run not in runs]
    trial.faults += [f"left: {name}" for name in left]
    if not trial.jobs or (len(trial.jobs) > 1 and trial.phase != RECORDED):
        trial.faults.append(f"{len(trial.jobs)} jobs")
    for run in runs & set(trial.jobs):
        record = json.loads((trial.roots / "runs" / run / "submission.json").read_text())
        if (record["state"], record["job_id"]) not in [(word, trial.jobs[run][0]) for word in ("submitted", "adopted")]:
            trial.faults.append(f"{run} is recorded as {record['state']}, job {record['job_id']}")
        wait_until((trial.roots / "runs" / run / "done.json").exists, 240, f"the end of {run}: {trial}")


def jobs_of(roots: Path, environment: Mapping[str, str]) -> dict[str, list[str]]:
    """The jobs that Slurm has of scripts below a folder, by run."""
    command = ["squeue", "--noheader", "--states=all", "--format=%A|%o"]
    answer = subprocess.run(command, env=dict(environment), capture_output=True, text=True, check=True)
    found: dict[str, list[str]] = {}
    for line in answer.stdout.splitlines():
        number, _, script = line.partition("|")
        if match := re.match(re.escape(f"{roots}/logs/") + r"([^/]+)/", script):
            found.setdefault(match[1], []).append(number)
    return found


def lab_environment(lab: Mapping[str, str]) -> dict[str, str]:
    """Of a shell that talks to a lab."""
    return {**os.environ, **lab}
