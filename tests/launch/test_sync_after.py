"""The small job that pushes a run when the stage's job is over, and what is said where nodes have no internet."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from launch.config import ROOT, Cluster, resolve
from launch.lab import Lab
from launch.spec import JobSpec, make_spec
from launch.submission import submit
from launch.sync_after import SCRIPT, check_sync_after, queue_sync, sync_command, way_to_wandb
from tracking import ExperimentTracker
from tracking.errors import UserError

from launch_jobs import PROGRAMS
from launch_jobs import make_spec as fixed_spec
from runs import TAGS, rows_of, without_runtime
from support import wait_until
from wandb_server import WandbServer
from wandb_server.client import WandbClient


def test_the_job_asks_for_what_the_profile_says() -> None:
    command = sync_command(fixed_spec(run_dir=Path("/scratch/it's/x")), "12")
    assert command[:3] == ["sbatch", "--parsable", "--dependency=afterany:12"]
    assert command[-2:] == ["job_templates/sync_runs.sh", "/scratch/it's"]
    assert {"--partition=gpu", "--account=lab", "--qos=standby"} <= set(command)
    assert (ROOT / command[-2]).is_file()


def test_a_partition_with_internet_takes_the_place_of_the_jobs_own() -> None:
    command = sync_command(fixed_spec(cluster={"sync_partition": "transfer", "qos": None}), "12")
    assert "--partition=transfer" in command
    assert not [part for part in command if part.startswith("--qos") or part == "--partition=gpu"]


def test_behind_a_chain_it_comes_again(tmp_path: Path) -> None:
    """GIVEN a run whose next job waits WHEN the small job runs THEN it queues itself behind that, and pushes."""
    spec = fixed_spec(
        cluster={"requeue": False}, root=ROOT, run_dir=tmp_path / "it's" / "x", log_dir=tmp_path / "my logs"
    )
    *_, script, behind, name, log, root = sync_command(spec, "12")
    assert (script, behind, name, log) == (SCRIPT, "--behind", spec.name, f"{tmp_path}/my logs/%j_sync.out")
    answers = {
        "squeue": "printf '13\\n14\\n'",
        "sbatch": 'printf "%s\\n" "$@" >"$CALLS"; echo 15',
        "python": 'echo "$*"',
    }
    for command, body in answers.items():
        (tmp_path / command).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / command).chmod(0o755)
    project = tmp_path / "project"
    project.mkdir()
    (project / "job_templates").mkdir()
    for file in (ROOT / "job_templates").glob("*.sh"):
        shutil.copy(file, project / "job_templates")
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / ".venv" / "bin" / "python").symlink_to(tmp_path / "python")
    variables = {"SLURM_SUBMIT_DIR": str(project), "SLURM_JOB_PARTITION": "cpu", "SLURM_JOB_NAME": f"sync-{name}"}
    variables |= {
        "SLURM_JOB_QOS": "standby",
        "CALLS": str(tmp_path / "calls"),
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
    }
    command = ["bash", str(project / script), behind, name, log, root]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "job 15 pushes again when job 13, 14 is over",
        f"-m tracking.sync once --root={tmp_path}/it's",
    ]
    assert (tmp_path / "calls").read_text().splitlines() == [
        *("--parsable", "--dependency=afterany:13:14", "--partition=cpu", f"--job-name=sync-{name}"),
        *(f"--output={log}", "--qos=standby", str(project / script), "--behind", name, log, root),
    ]


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ({"executor": "local"}, "'x' has no queue"),
        ({"executor": "slurm", "internet": False}, "--set cluster.sync_partition=NAME"),
        ({"executor": "slurm", "internet": False, "sync_partition": "transfer"}, None),
        ({"executor": "slurm", "internet": True}, None),
        ({"executor": "slurm"}, None),
    ],
)
def test_a_job_that_could_not_push_is_refused(profile: dict[str, object], message: str | None) -> None:
    cluster = Cluster.model_validate({"name": "x", **profile})
    if message is None:
        check_sync_after(cluster)
    else:
        with pytest.raises(UserError) as error:
            check_sync_after(cluster)
        assert message in str(error.value)


def test_where_nodes_have_no_internet_the_daemon_is_named() -> None:
    spec = fixed_spec(cluster={"internet": False}, run_dir=Path("/scratch/my runs/x"))
    line = way_to_wandb(spec)
    assert line is not None
    assert "\n" not in line
    assert line.endswith(
        "on a login node: cd /home/user/project && /home/user/project/.venv/bin/python -m tracking.sync daemon "
        "--root '/scratch/my runs'"
    )
    assert way_to_wandb(dataclasses.replace(spec, environment={"WANDB_MODE": "disabled"})) is None
    for known in (None, True):
        assert way_to_wandb(fixed_spec(cluster={"internet": known})) is None


def test_a_refusal_by_slurm_is_said_with_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/bash\necho 'error: no such partition' >&2; exit 1\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    line = queue_sync(fixed_spec(root=ROOT), "12")
    assert line.startswith("sync warning: sbatch refused the job that pushes (error: no such partition); again: cd ")
    assert "--dependency=afterany:12" in line


def squeue(job: str, form: str) -> str:
    command = ["squeue", "--noheader", "--states=all", f"--jobs={job}", f"--format={form}"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def waiting_job(root: Path) -> tuple[JobSpec, str]:
    """A job in the lab whose first attempt sleeps until it is requeued."""
    config = resolve("smoke", "lab", [f"cluster.run_root={root}", "resources.gpus_per_node=0", "resources.time=5"])
    spec = make_spec(config, datetime.now())
    variables = {"PYTHONPATH": str(PROGRAMS)}
    spec = dataclasses.replace(
        spec, module="probe", argv=("sleep",), environment=variables, log_dir=root / "logs" / spec.name
    )
    return spec, submit(config, spec).job_id


@pytest.mark.slurm
@pytest.mark.wandb
def test_the_run_is_pushed_after_the_last_attempt(
    lab: Lab, wandb_server: WandbServer, wandb_client: WandbClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a job that is requeued WHEN it is over THEN, and not before, the small job pushes what the run root has."""
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_", "SBATCH_"))]:
        monkeypatch.delenv(name)
    for name, value in {**wandb_client.environment(), **lab.variables()}.items():
        monkeypatch.setenv(name, value)
    root = tmp_path / "my runs"
    spec, job = waiting_job(root)
    said = queue_sync(spec, job)
    assert said.startswith("sync job "), said
    sync = said.split()[2]
    wait_until((spec.run_dir / "seen-0-0.json").exists, 60, "the first attempt")
    tracker = ExperimentTracker(mode="offline", run_dir=root / "tracked", tags=TAGS)
    for step in range(1, 31):
        tracker.log_metrics({"loss/total": 1 / step}, step)
    tracker.finish()
    subprocess.run(["scontrol", "requeue", job], check=True)
    wait_until(lambda: squeue(sync, "%T") not in ("PENDING", "RUNNING", "COMPLETING"), 120, "the job that pushes")
    log = spec.log_dir / f"{sync}_sync.out"
    assert squeue(sync, "%T") == "COMPLETED", log.read_text()
    # Not while the stage's job waited for its second attempt.
    started, ended = squeue(sync, "%S"), squeue(job, "%e")
    assert started >= ended, (started, ended)
    assert (spec.run_dir / "seen-1-0.json").exists()
    assert "tracked: " in log.read_text()
    there = without_runtime(wandb_server.rows(wandb_server.entity, "vla-lego", tracker.get_run_id() or ""))
    assert there == rows_of(root / "tracked")
