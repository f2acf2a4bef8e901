"""Runs in the lab's Slurm, seen and steered by `launch.jobs`."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

from launch import sbatch
from launch.config import ROOT, resolve
from launch.jobs.__main__ import main
from launch.jobs.folders import find_runs
from launch.jobs.view import RunView, look_at
from launch.lab import Lab
from launch.spec import JobSpec, make_spec
from launch.submission import submit
from tracking.files import read_json, write_json

from launch_jobs import PROGRAMS
from support import wait_until

Submit = Callable[..., tuple[JobSpec, str]]
pytestmark = pytest.mark.slurm


@pytest.fixture
def root(tmp_path: Path, lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run root with an odd name; this process talks to the lab."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    return tmp_path / 'it\'s my "runs"'


@pytest.fixture
def queue(root: Path) -> Submit:
    """Submits a program of the tests and returns its spec and its job."""

    def start(name: str, module: str, way: str, *settings: str) -> tuple[JobSpec, str]:
        given = [f"name={name}", f"cluster.run_root={root}", "resources.time=2", "resources.gpus_per_node=1", *settings]
        config = resolve("smoke", "lab", given)
        spec = dataclasses.replace(
            make_spec(config, datetime.now()),
            module=module,
            argv=(way,),
            environment={"PYTHONPATH": str(PROGRAMS)},
            log_dir=root.parent / "logs" / name,
        )
        return spec, submit(config, spec).job_id

    return start


def see(root: Path, name: str) -> RunView:
    (run,) = [run for run in find_runs([root]) if run.name == name]
    (view,), problem = look_at([run], time.time(), in_full=True)
    assert problem is None
    return view


def wait_for(root: Path, name: str, word: str, timeout: float = 60) -> RunView:
    def is_so() -> RunView | None:
        view = see(root, name)
        return view if view.word == word else None

    return wait_until(is_so, timeout, f"{name} to be {word}", interval=0.3)


def slurm(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def refused(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_a_run_from_the_queue_to_its_end(root: Path, queue: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a job WHEN it runs, is requeued, held, cancelled and taken up THEN each is said in plain words."""
    at = f"--root={root}"
    spec, job = queue("mine", "probe", "sleep")
    running = wait_for(root, "mine", "runs")
    wait_until((spec.run_dir / "seen-0-0.json").exists, 60, "the first attempt")
    assert re.match(r"runs on node\d, for .*, .* left", running.words)
    assert main(["logs", "mine", at]) == 0
    assert "Starting with JobEnvironment" in capsys.readouterr().out
    refused("requeue", "mine", at)

    slurm("scontrol", "requeue", job)
    waiting = wait_for(root, "mine", "waits")
    assert waiting.words.startswith("waits to go on: its start time is not reached yet")
    slurm("scontrol", "uhold", job)  # as its owner would, also where the tests run as root
    held = wait_for(root, "mine", "stuck")
    assert held.words.startswith("waits to go on: you have held it")
    assert held.advice == f"scontrol release {job}"

    assert main(["cancel", "mine", at]) == 0
    assert see(root, "mine").word == "cancelled"
    refused("cancel", "mine", at)
    capsys.readouterr()
    assert main(["requeue", job, at]) == 0
    assert f"requeued job {job}" in capsys.readouterr().out
    slurm("scontrol", "release", job)  # what was held when it was cancelled still is
    assert main(["logs", "mine", "-f", "-n", "0", at]) == 0
    followed = capsys.readouterr().out
    assert "Starting with JobEnvironment" in followed
    assert "Exiting after successful completion" in followed
    assert main(["status", "mine", at]) == 0
    assert "at step 7" in capsys.readouterr().out
    refused("requeue", "mine", at)


def test_why_a_run_of_two_ranks_failed(root: Path, queue: Submit, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN two ranks WHEN rank 1 runs out of memory, twice, THEN list, status and explain say so and name it."""
    at = f"--root={root}"
    _, job = queue("mine", "fails", "memory@1", "resources.gpus_per_node=2")
    view = wait_for(root, "mine", "failed", 120)
    assert view.cause is not None
    assert (view.cause.kind, view.cause.rank) == ("host memory", 1)
    assert len(view.run.attempts) >= 2
    assert main(["list", at]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"{job}: failed \d\d:\d\d: the job ran out of memory \(not the GPU's\) \(rank 1\)", shown)
    assert main(["status", "mine", at]) == 1
    assert "--set resources.memory_gb=" in capsys.readouterr().out
    assert main(["explain", "mine", at]) == 0
    story = capsys.readouterr().out
    assert f"job {job}: FAILED, reason NonZeroExitCode" in story
    assert "  MemoryError" in story
    assert max(map(len, story.splitlines())) <= 80 or str(root.parent) in story


def test_a_dependency_that_can_never_hold(root: Path, queue: Submit) -> None:
    log = f"--output={root.parent}/%j.out"
    filler = slurm("sbatch", "--parsable", "--nodes=1", "--exclusive", log, "--wrap=sleep 300")
    bad = slurm("sbatch", "--parsable", log, "--wrap=exit 3")
    for job, state in ((bad, "FAILED"), (filler, "RUNNING")):
        asked = ("squeue", "-h", "-t", "all", "-j", job, "-o", "%T")
        wait_until(lambda asked=asked, state=state: slurm(*asked) == state, 60, state)
    try:
        _, job = queue("mine", "probe", "go", "resources.nodes=4")
        resources = ["squeue", "-h", "-j", job, "-o", "%r"]
        wait_until(lambda: slurm(*resources) == "Resources", 60, "Slurm to look at the job")
        assert see(root, "mine").words.startswith("waits: it is first in line, and what it asks for is not free yet")
        slurm("scontrol", "update", f"JobId={job}", f"Dependency=afterok:{bad}")
        stuck = wait_for(root, "mine", "stuck")
        assert "ended otherwise than it needs" in stuck.words
        assert "cancel it" in stuck.advice
        assert main(["cancel", "mine", f"--root={root}"]) == 0
    finally:
        slurm("scancel", filler)


def test_a_run_whose_job_slurm_has_forgotten_gets_one_new_job(
    root: Path, queue: Submit, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a job that nobody remembers WHEN the run is taken up, by two commands at once, THEN one job goes on."""
    spec, _ = queue("forgotten", "fails", "killed")
    wait_for(root, "forgotten", "failed", 120)
    record = read_json(spec.run_dir / "submission.json")
    write_json(spec.run_dir / "submission.json", {**record, "job_id": "777777"})
    assert see(root, "forgotten").job is None
    command = [sys.executable, "-m", "launch.jobs", "requeue", "forgotten", f"--root={root}"]
    answers: list[subprocess.CompletedProcess[str]] = []

    def take_up() -> None:
        answers.append(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120))

    threads = [threading.Thread(target=take_up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [answer.stdout + answer.stderr for answer in answers]
    assert sum("submitted forgotten again as job" in text for text in said) == 1, said
    new = read_json(spec.run_dir / "submission.json")
    assert (new["earlier_jobs"], new["state"], new["key"]) == (["777777"], "submitted", record["key"])
    listed = slurm("squeue", "-h", "-t", "all", "--name=forgotten", "-o", "%i").split()
    assert len(set(listed)) == 2
    assert new["job_id"] in listed
    main(["cancel", "forgotten", f"--root={root}"])

    # A command that was killed before it could record its job leaves it to the next one.
    wait_for(root, "forgotten", "cancelled")
    write_json(spec.run_dir / "submission.json", {**new, "job_id": "777777"})
    (latest,) = (spec.run_dir / "requeues").glob("*.json")
    fields = read_json(latest)
    assert fields.pop("job_id") == new["job_id"]
    write_json(latest, fields)
    capsys.readouterr()
    assert main(["requeue", "forgotten", f"--root={root}"]) == 0
    assert f"submitted again as job {new['job_id']} by another command" in capsys.readouterr().out
    assert read_json(spec.run_dir / "submission.json")["job_id"] == new["job_id"]

    # One whose answer is lost has its job all the same: Slurm is asked for its key.
    forgotten = {**new, "job_id": "777778", "earlier_jobs": ["777777", new["job_id"]]}
    write_json(spec.run_dir / "submission.json", forgotten)
    (root.parent / "bin").mkdir()
    lost = root.parent / "bin" / "sbatch"
    lost.write_text(f'#!/bin/bash\n{shutil.which("sbatch")} "$@" >/dev/null\nsleep 60\n')
    lost.chmod(0o755)
    monkeypatch.setenv("PATH", f"{lost.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(sbatch, "LONGEST_S", 3.0)
    with pytest.raises(SystemExit, match="1"):
        main(["requeue", "forgotten", f"--root={root}"])
    capsys.readouterr()
    assert main(["requeue", "forgotten", f"--root={root}"]) == 0
    number = read_json(spec.run_dir / "submission.json")["job_id"]
    assert f"submitted again as job {number} by another command" in capsys.readouterr().out
    listed = slurm("squeue", "-h", "-t", "all", "--name=forgotten", "-o", "%i").split()
    assert len(set(listed)) == 3
    assert number == max(listed, key=int)
    wait_for(root, "forgotten", "failed", 120)
