"""How many jobs a run will be, and the script of a chain where Slurm must not requeue."""

from __future__ import annotations

import os
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from launch.chain import kind_of_run, plan
from launch.config import ROOT, Config, resolve
from launch.render import batch_script
from launch.spec import JobSpec, make_spec
from tracking.files import write_json
from tracking.pace import Pace

CHAIN = ROOT / "job_templates" / "chain.sh"
PACE = Pace(0.1, save_seconds=2.0, held_seconds=2.0, startup_seconds=30.0, save_freq=100, step=400, total=500)


def job(tmp_path: Path, *settings: str) -> tuple[Config, JobSpec]:
    config = resolve("bc", "generic", [f"cluster.run_root={tmp_path}", *settings])
    return config, make_spec(config, datetime(2025, 1, 2))


def earlier(tmp_path: Path, name: str, *settings: str) -> None:
    """A run of this kind that has measured its pace."""
    (tmp_path / name).mkdir()
    write_json(tmp_path / name / "submission.json", {"kind": kind_of_run(*job(tmp_path, *settings))})
    PACE.write(tmp_path / name)


def test_a_kind_of_run_that_nobody_measured(tmp_path: Path) -> None:
    config, spec = job(tmp_path)
    earlier(tmp_path, "other", "bc.batch_size=8")
    found = plan(config, spec)
    assert found is not None and found.segments is None
    assert found.sentence(spec) == (
        "jobs of 04:00:00, requeued until the last step, at most 50; how many is known when one has measured it"
    )


@pytest.mark.parametrize(
    ("settings", "start"),
    [
        (["bc.training_steps=10000"], "about 7 jobs of 04:00:00, requeued, at most 50, for 10000 steps ("),
        (["bc.training_steps=10000", "cluster.requeue=false"], "about 7 jobs of 04:00:00, handing on to the next, at"),
        (["bc.training_steps=100"], "one job of 04:00:00 is enough for 100 steps ("),
        (["resources.time=1"], "not one step fits into a job of 00:01:00: 30 s to start, "),
    ],
)
def test_jobs_are_counted_from_what_an_earlier_run_measured(settings: list[str], start: str, tmp_path: Path) -> None:
    earlier(tmp_path, "measured")
    config, spec = job(tmp_path, *settings)
    found = plan(config, spec)
    assert found is not None
    assert found.sentence(spec).startswith(start)
    assert "0.1 steps/s, 2.0 s a save, measured in measured" in found.sentence(spec)


def test_a_stage_without_steps_has_no_plan(tmp_path: Path) -> None:
    config = resolve("collect", "generic", [f"cluster.run_root={tmp_path}"])
    assert plan(config, make_spec(config, datetime(2025, 1, 2))) is None


def test_the_script_of_a_chain(tmp_path: Path) -> None:
    script = batch_script(job(tmp_path, "cluster.requeue=false", "resources.max_segments=7")[1], ["/runs/x"])
    assert "#SBATCH --no-requeue\n" in script and "#SBATCH --requeue\n" not in script
    assert "#SBATCH --dependency=singleton\n" in script
    assert "GILBRETH_MAX_ATTEMPTS=7 GILBRETH_CHAIN=1\n" in script
    assert 'begin_link "$run" ' in script and script.index("begin_link") < script.index("activate_environment")
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


# chain.sh, with commands that stand in for Slurm's and write down what they were called with.


def bash(script: str, tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    commands = tmp_path / "commands"
    commands.mkdir(exist_ok=True)
    answers = {
        "squeue": 'cat "$WAITING" 2>/dev/null',
        "sbatch": 'env >"$CALLS.env"; [ -z "$REFUSES" ] && echo 43',
        "scancel": ":",
    }
    for name, body in answers.items():
        (commands / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{body}\n')
        (commands / name).chmod(0o755)
    (tmp_path / "runs" / "it's a run").mkdir(parents=True, exist_ok=True)
    given = {"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "it-is-a-run", "SLURM_NTASKS": "2", "CUDA_VISIBLE_DEVICES": "0"}
    given |= {"CALLS": str(tmp_path / "calls"), "WAITING": str(tmp_path / "waiting"), "SLURM_CONF": "/etc/slurm.conf"}
    given |= {"REFUSES": ""}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'. "$COMMON"; . "$CHAIN"; run=$RUN; {script}', "/spool/job42/script"],
        env=os.environ
        | given
        | {"PATH": f"{commands}:{os.environ['PATH']}", "COMMON": str(CHAIN.with_name("common.sh")), "CHAIN": str(CHAIN)}
        | {"RUN": str(tmp_path / "runs" / "it's a run")}
        | environ,
        capture_output=True,
        text=True,
        check=False,
    )


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


def test_a_job_queues_the_next_one_as_it_begins(tmp_path: Path) -> None:
    done = bash('begin_link "$run" 3600; echo begun', tmp_path)
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
    (call,) = (line for line in calls(tmp_path) if line.startswith("sbatch"))
    assert call == "sbatch --parsable --dependency=afterany:42,singleton /spool/job42/script"
    inherited = (tmp_path / "calls.env").read_text()
    assert "SLURM_NTASKS" not in inherited and "CUDA_VISIBLE_DEVICES" not in inherited
    assert "SLURM_CONF=/etc/slurm.conf" in inherited
    assert '"job_id": "43", "after": "42"' in (tmp_path / "runs" / "it's a run" / "links" / "43.json").read_text()


def test_a_job_that_finds_the_next_one_waiting_queues_none(tmp_path: Path) -> None:
    (tmp_path / "waiting").write_text("44\n")
    bash('begin_link "$run" 3600', tmp_path)
    assert not any(line.startswith("sbatch") for line in calls(tmp_path))


def test_a_job_of_a_run_that_is_complete_ends_at_once(tmp_path: Path) -> None:
    done = bash('touch "$run/done.json"; begin_link "$run" 3600; echo begun', tmp_path)
    assert done.returncode == 0
    assert done.stdout == "done: the run was complete before job 42 began\n"
    assert not calls(tmp_path)


def test_a_node_that_may_not_submit(tmp_path: Path) -> None:
    """THEN the job runs all the same, and says at its end that nothing goes on."""
    done = bash('begin_link "$run" 3600; go_on', tmp_path, REFUSES="yes")
    assert done.returncode == 1
    assert "--set resources.links=N" in done.stdout
    assert "python -m launch.jobs requeue it-is-a-run" in done.stderr


@pytest.mark.parametrize(("verdict", "code", "exit_code"), [(75, 0, 0), (75, 137, 137), (0, 0, 0), (1, 1, 1)])
def test_the_end_of_a_job(verdict: int, code: int, exit_code: int, tmp_path: Path) -> None:
    """GIVEN the next job waits THEN it goes on, or is cancelled where the run has ended; nothing is requeued."""
    (tmp_path / "waiting").write_text("43\n")
    done = bash(f'PYTHON=decide; decide() {{ return {verdict}; }}; finish "$run" {code}', tmp_path)
    assert done.returncode == exit_code, done.stderr
    cancelled = [line for line in calls(tmp_path) if line.startswith("scancel")]
    assert (done.stdout == "handed on to job 43\n") == (verdict == 75)
    assert (len(cancelled) == 1 and "--state=PENDING" in cancelled[0] and "--name=it-is-a-run" in cancelled[0]) == (
        verdict != 75
    )


@pytest.mark.parametrize(("limit", "cancels"), [(3600, True), (5, False)])
def test_term_ends_the_chain_unless_the_time_limit_sent_it(limit: int, *, cancels: bool, tmp_path: Path) -> None:
    (tmp_path / "waiting").write_text("43\n")
    done = bash(f'gilbreth_limit={limit}; gilbreth_terminated=1; finish "$run" 143', tmp_path)
    assert done.returncode == 143
    assert any(line.startswith("scancel") for line in calls(tmp_path)) == cancels
