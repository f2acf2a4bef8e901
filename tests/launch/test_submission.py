"""Submissions that really run: on this machine through submitit's local executor, and in the lab's Slurm."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from launch.config import ROOT, Config, resolve
from launch.follow import follow, slurm_state
from launch.lab import Lab
from launch.spec import JobSpec, make_spec
from launch.submission import Submitted, submit
from launch.submit import end_with, report
from launch.task import StageTask
from tracking.errors import UserError

from launch_jobs import PROGRAMS
from support import wait_until

Prepare = Callable[..., tuple[Config, JobSpec]]
SECRET = "s3cret-key-of-the-user"


@pytest.fixture
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Prepare:
    """Makes a job that runs the probe, with its run folder and its logs below an odd name."""
    monkeypatch.setenv("WANDB_API_KEY", SECRET)
    odd = tmp_path / 'o\'dd "fol der"; echo foo'

    def make(cluster: str, mode: str, *settings: str, **changes: Any) -> tuple[Config, JobSpec]:
        config = resolve("smoke", cluster, [f"cluster.run_root={odd}/runs", "resources.time=2", *settings])
        spec = make_spec(config, datetime.now())
        environment = {"PYTHONPATH": str(PROGRAMS), "ODD": str(odd), "NCCL_P2P_LEVEL": "SYS"}
        values = {"module": "probe", "argv": (mode, "a  b", "it's"), "environment": environment}
        return config, dataclasses.replace(spec, **{**values, "log_dir": odd / "logs" / spec.name, **changes})

    return make


@pytest.fixture
def in_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """This process as one inside a job of another Slurm would be, apart from the lab's own variables."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("SLURM_CPU_BIND", "quiet,mask_cpu:0x1")
    monkeypatch.setenv("SLURM_JOB_ID", "999999")
    monkeypatch.setenv("SLURM_NTASKS", "77")
    monkeypatch.setenv("SBATCH_TIMELIMIT", "1")


def seen(spec: JobSpec, restart: int = 0) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted(spec.run_dir.glob(f"seen-{restart}-*.json"))]


def log_of(submitted: Submitted) -> str:
    return submitted.log.read_text() if submitted.log.exists() else ""


def attempts(spec: JobSpec) -> int:
    return len(list((spec.run_dir / "attempts").glob("*.json")))


def is_over(submitted: Submitted, *states: str) -> Callable[[], bool]:
    return lambda: (submitted.state() or "").startswith(states)


def test_a_job_on_this_machine(
    prepare: Prepare, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """GIVEN a profile's variables and those of a job around it WHEN two tasks run THEN they see the former only."""
    monkeypatch.setenv("SLURM_PROCID", "5")
    monkeypatch.setenv("MASTER_PORT", "29500")
    config, spec = prepare("local", "go", "resources.tasks_per_node=2", "resources.cpus_per_task=3")
    submitted = submit(config, spec)
    report(spec, submitted)
    end_with(spec, submitted)
    assert f"done {spec.run_dir}" in capsys.readouterr().out
    wait_until(is_over(submitted, "FINISHED"), 20, "the tasks' end")
    tasks = seen(spec)
    assert len(tasks) == 2
    for task in tasks:
        assert task["argv"] == [f"--run-dir={spec.run_dir}", "go", "a  b", "it's"]
        assert (task["ODD"], task["OMP_NUM_THREADS"], task["NCCL_P2P_LEVEL"]) == (spec.environment["ODD"], "3", "SYS")
        assert (task["HF_HUB_OFFLINE"], task["cwd"]) == ("1", str(ROOT))
        assert (task["SLURM_PROCID"], task["MASTER_PORT"]) == (None, None)
    record = json.loads((spec.run_dir / "submission.json").read_text())
    assert (record["state"], record["job_id"]) == ("submitted", submitted.job_id)


def test_who_waits_for_a_job_that_refuses_ends_with_1(prepare: Prepare, capsys: pytest.CaptureFixture) -> None:
    config, spec = prepare("local", "refuse")
    submitted = submit(config, spec)
    with pytest.raises(SystemExit, match="1"):
        end_with(spec, submitted)
    shown = capsys.readouterr()
    assert "FINISHED" in shown.out
    assert f"the job is over and the run is not complete; see {submitted.log}" in shown.err


@pytest.mark.parametrize(
    ("answer", "left"),
    [("echo 'Submitted what?'", True), ("echo 'error: no such account' >&2; exit 1", False)],
)
def test_an_sbatch_that_does_not_answer_with_a_job(
    answer: str, left: bool, prepare: Prepare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN an answer without a job id THEN the intent stays on record, because the job may be queued all the same."""
    for name in ("sbatch", "srun", "squeue"):
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{answer}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    config, spec = prepare("generic", "go", "cluster.node_local=[]")
    with pytest.raises(SystemExit if left else UserError, match="squeue --me" if left else "no such account"):
        submit(config, spec)
    assert spec.run_dir.exists() == left
    assert spec.log_dir.exists() == left
    if left:
        assert json.loads((spec.run_dir / "submission.json").read_text())["state"] == "submitting"


@pytest.mark.slurm
def test_two_nodes_with_a_task_each(prepare: Prepare, in_lab: None) -> None:
    config, spec = prepare("lab", "go", "resources.nodes=2", "resources.gpus_per_node=1", "resources.cpus_per_task=2")
    submitted = submit(config, spec)
    assert follow(spec.run_dir, submitted.log, submitted.state, interval=0.2), log_of(submitted)
    wait_until(is_over(submitted, "COMPLETED"), 30, "COMPLETED")
    tasks = seen(spec)
    assert [task["SLURM_PROCID"] for task in tasks] == ["0", "1"]
    assert {task["SLURM_NTASKS"] for task in tasks} == {"2"}
    assert len({task["SLURMD_NODENAME"] for task in tasks}) == 2
    for task in tasks:
        assert task["argv"] == [f"--run-dir={spec.run_dir}", "go", "a  b", "it's"]
        assert (task["cwd"], task["ODD"], task["OMP_NUM_THREADS"]) == (str(ROOT), spec.environment["ODD"], "2")
        assert (task["NCCL_IB_DISABLE"], task["NCCL_P2P_LEVEL"]) == ("0", "SYS")
        assert task["SLURM_CPU_BIND"] != "quiet,mask_cpu:0x1"
        assert task["WANDB_API_KEY"] == SECRET
    assert "done: the run is complete (step 7)" in log_of(submitted)
    # The pickles and scripts of a run stay readable for others of the group: no secret may be in them.
    for folder in (spec.run_dir, spec.log_dir):
        for path in folder.iterdir():
            assert "seen-" in path.name or path.is_dir() or SECRET.encode() not in path.read_bytes(), path
    assert attempts(spec) == 1


@pytest.mark.slurm
def test_refused_input_is_not_requeued(prepare: Prepare, in_lab: None) -> None:
    """GIVEN rank 0 refuses and srun kills rank 1 (137) THEN the job ends, with the code of the refusal."""
    config, spec = prepare("lab", "refuse")
    submitted = submit(config, spec)
    wait_until(is_over(submitted, "FAILED"), 60, "FAILED")
    assert "end: the input was refused" in log_of(submitted)
    assert attempts(spec) == 1
    assert "ExitCode=2:0" in scontrol("show", "job", submitted.job_id)


@pytest.mark.slurm
def test_a_crash_is_requeued_until_it_makes_no_progress(prepare: Prepare, in_lab: None) -> None:
    config, spec = prepare("lab", "crash", "resources.gpus_per_node=0")
    submitted = submit(config, spec)
    wait_until(lambda: "made no progress" in log_of(submitted), 120, "the end of the attempts")
    wait_until(is_over(submitted, "FAILED"), 30, "FAILED")
    assert attempts(spec) == 2
    assert "Restarts=1" in scontrol("show", "job", submitted.job_id)
    assert not (spec.run_dir / "done.json").exists()


@pytest.mark.slurm
def test_a_cancelled_job_ends(prepare: Prepare, in_lab: None) -> None:
    config, spec = prepare("lab", "sleep")
    submitted = submit(config, spec)
    wait_until(lambda: len(seen(spec)) == 2, 60, "both tasks")
    subprocess.run(["scancel", submitted.job_id], check=True)
    wait_until(is_over(submitted, "CANCELLED"), 60, "CANCELLED")
    assert "Restarts=0" in scontrol("show", "job", submitted.job_id)
    assert "requeue:" not in log_of(submitted)


@pytest.mark.slurm
def test_a_stop_signal_requeues_through_submitit(prepare: Prepare, in_lab: None) -> None:
    """GIVEN a program without a handler of its own WHEN USR2 comes THEN submitit requeues and the log is continued."""
    config, spec = prepare("lab", "sleep")
    submitted = submit(config, spec)
    wait_until(lambda: len(seen(spec)) == 2, 60, "both tasks")
    subprocess.run(["scancel", "--signal=USR2", submitted.job_id], check=True)
    wait_until((spec.run_dir / "done.json").exists, 60, "the second attempt")
    wait_until(is_over(submitted, "COMPLETED"), 30, "COMPLETED")
    assert len(seen(spec, restart=1)) == 2
    log = log_of(submitted)
    assert log.count("Starting with JobEnvironment") == 2
    assert "requeue:" not in log  # the batch script left it to submitit


@pytest.mark.slurm
def test_an_array_goes_through_the_same_template(prepare: Prepare, in_lab: None) -> None:
    from launch.executor import StageExecutor

    _, spec = prepare("lab", "go", "resources.gpus_per_node=0")
    runs = [spec.run_dir.with_name(f"{spec.name}-{index}") for index in range(2)]
    for folder in (*runs, spec.log_dir):
        folder.mkdir(parents=True)
    jobs = StageExecutor(spec).submit_array([StageTask(spec.module, str(run), spec.argv) for run in runs])
    for run, job in zip(runs, jobs, strict=True):
        wait_until(lambda run=run: (run / "done.json").exists(), 60, f"{run} done")
        wait_until(lambda job=job: (slurm_state(job.job_id) or "").startswith("COMPLETED"), 30, "COMPLETED")
        assert "done: the run is complete" in Path(job.paths.stdout).read_text()
        assert [path.name for path in run.glob("seen-*")] == ["seen-0-0.json"]


@pytest.mark.slurm
def test_what_slurm_refuses_leaves_nothing(prepare: Prepare, in_lab: None) -> None:
    config, spec = prepare("lab", "go", "cluster.partition=nowhere")
    with pytest.raises(UserError, match=r"sbatch refused the job: .*invalid partition specified"):
        submit(config, spec)
    assert not spec.run_dir.exists()
    assert not spec.log_dir.exists()


@pytest.mark.slurm
def test_the_state_of_a_job_that_slurm_does_not_know(in_lab: None) -> None:
    assert slurm_state("7654321") is None


def scontrol(*arguments: str) -> str:
    return subprocess.run(["scontrol", *arguments], capture_output=True, text=True, check=True).stdout
