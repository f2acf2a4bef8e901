"""Chains of jobs in the lab's Slurm that do not get on."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import time
from datetime import datetime
from pathlib import Path

import pytest

from launch.config import resolve
from launch.jobs.__main__ import main
from launch.jobs.folders import find_runs
from launch.jobs.view import RunView, look_at
from launch.lab import Lab
from launch.sbatch import commands
from launch.spec import make_spec
from launch.submission import submit

from launch_jobs import PROGRAMS
from support import wait_until

pytestmark = pytest.mark.slurm


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def see(run_dir: Path) -> RunView:
    (view,), problem = look_at(find_runs([run_dir]), time.time(), in_full=True)
    assert problem is None
    return view


def test_a_chain_that_hangs_ends(
    lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN two jobs queued at once WHEN each is killed with its batch script THEN the third one ends the run."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    root = tmp_path / 'it\'s my "runs"'
    given = ["name=hangs", f"cluster.run_root={root}", "cluster.requeue=false", "resources.links=2"]
    config = resolve("smoke", "lab", [*given, "resources.time=2", "resources.gpus_per_node=1"])
    spec = dataclasses.replace(
        make_spec(config, datetime.now()),
        module="probe",
        argv=("sleep",),
        environment={"PYTHONPATH": str(PROGRAMS)},
        log_dir=tmp_path / "logs" / "hangs",
    )
    submitted = submit(config, spec)
    assert submitted.links is not None and submitted.links.startswith("link jobs ")
    (run,) = find_runs([spec.run_dir])
    assert len(run.jobs) == 2
    begun = spec.run_dir / "seen-0-0.json"
    for number in range(2):
        job = see(spec.run_dir).run.jobs[number]
        wait_until(begun.exists, 60, f"the task of job {job}")
        begun.unlink()
        view = see(spec.run_dir)
        assert (view.word, view.job_id) == ("runs", job)
        script = f"{lab.folder}/.*/job{job.zfill(5)}/slurm_script".encode()
        shells = [pid for pid, words in commands().items() if re.search(script, words)]
        assert shells
        for shell in shells:
            os.kill(shell, signal.SIGKILL)  # as a kernel does that runs out of memory
    mine = ("squeue", "--noheader", "--name=hangs", "--format=%i %T")
    wait_until(lambda: not slurm(*mine), 90, "the end of the chain", interval=0.3)
    view = see(spec.run_dir)
    assert view.word == "failed"
    assert "2 attempts in a row made no progress from step 0" in view.words
    jobs = view.run.jobs
    assert len(jobs) == 3
    assert [attempt["key"] for attempt in view.run.attempts] == [f"{job}-000" for job in jobs[:2]]
    assert main(["status", "hangs", f"--root={root}"]) == 1
    assert main(["logs", "hangs", f"--root={root}"]) == 0
    assert "end: 2 attempts in a row made no progress" in capsys.readouterr().out
