"""How many jobs a run will be, and the script of a chain where Slurm must not requeue."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from gilbreth_phase0.attempt import read_attempts
from launch.chain import kind_of_run, plan, queue_links
from launch.config import ROOT, Config, resolve
from launch.jobs.folders import find_runs
from launch.render import batch_script
from launch.spec import JobSpec, make_spec
from tracking.files import read_json, write_json
from tracking.pace import Pace

from job_runs import make_run

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
    places = [script.index(f"\n{call} ") for call in ("begin_link", "activate_environment", "take_place", "run_tasks")]
    assert places == sorted(places) and script.index("GILBRETH_MAX_ATTEMPTS") < places[2]
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


SLURM = {
    "squeue": 'echo "$WAITS_FOR"',
    "sbatch": """
        echo "$*" >>"$CALLS"
        count=$(wc -l <"$CALLS")
        [ "$count" -lt "$LAST" ] || { echo 'sbatch: error: too many jobs' >&2; exit 1; }
        echo $((42 + count))""",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that stand in for Slurm's; the first job of `mine` is 42, and each sbatch makes the next one."""
    (tmp_path / "bin").mkdir()
    for name, body in SLURM.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / "bin" / name).chmod(0o755)
    for name, value in {"CALLS": str(tmp_path / "calls"), "WAITS_FOR": "(null)", "LAST": "9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")


def chain_run(tmp_path: Path, *settings: str) -> Path:
    return make_run(tmp_path / "runs", "mine", "42", asked=["cluster.requeue=false", *settings])


@pytest.mark.usefixtures("slurm")
def test_further_jobs_are_queued_and_recorded(tmp_path: Path) -> None:
    run = chain_run(tmp_path, "resources.links=3")
    assert queue_links(run) == "link jobs 43, 44 go on with the run when the one before is over"
    script = tmp_path / "runs" / "logs" / "mine" / "submission.sh"
    assert calls(tmp_path) == [f"--parsable --dependency=singleton {script}"] * 2
    assert find_runs([run])[0].jobs == ["42", "43", "44"]
    # A command that adopts the run finds them there.
    assert queue_links(run) is None
    # Submitted again, the run is a new chain.
    write_json(run / "submission.json", {**read_json(run / "submission.json"), "job_id": "50"})
    assert queue_links(run) == "link jobs 45, 46 go on with the run when the one before is over"
    assert find_runs([run])[0].jobs == ["43", "44", "50", "45", "46"]


@pytest.mark.usefixtures("slurm")
def test_further_jobs_wait_for_the_gate_that_the_first_one_waits_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would begin, else, when a gate that fails has ended the first one."""
    monkeypatch.setenv("WAITS_FOR", "afterok:31(unfulfilled),singleton(unfulfilled)")
    queue_links(chain_run(tmp_path, "resources.links=2"))
    (call,) = calls(tmp_path)
    assert call.startswith("--parsable --dependency=afterok:31,singleton --kill-on-invalid-dep=yes /")


@pytest.mark.usefixtures("slurm")
def test_what_slurm_refuses_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAST", "2")
    run = chain_run(tmp_path, "resources.links=4")
    said = queue_links(run)
    assert said is not None and said.startswith("link warning: 1 of 3 further jobs of the chain are queued (")
    assert "too many jobs" in said
    assert find_runs([run])[0].jobs == ["42", "43"]


@pytest.mark.usefixtures("slurm")
def test_one_job_is_enough_where_slurm_requeues(tmp_path: Path) -> None:
    assert queue_links(chain_run(tmp_path, "resources.links=3", "cluster.requeue=true")) is None
    assert not calls(tmp_path)


# chain.sh, with commands that stand in for Slurm's and write down what they were called with.


def bash(script: str, tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    commands = tmp_path / "commands"
    commands.mkdir(exist_ok=True)
    answers = {
        "squeue": """
            [ -z "$SILENT" ] || exit 1
            cat "$WAITING" 2>/dev/null || true""",
        "sbatch": 'env >"$CALLS.env"; [ -z "$REFUSES" ] && echo 43',
        "scancel": ":",
        "scontrol": 'echo "   JobState=$STATE PreemptEligibleTime=2025-01-02T03:04:05 PreemptTime=$PREEMPTED"',
    }
    for name, body in answers.items():
        (commands / name).write_text(f'#!/bin/bash\necho "{name} $*" >>"$CALLS"\n{body}\n')
        (commands / name).chmod(0o755)
    (tmp_path / "runs" / "it's a run").mkdir(parents=True, exist_ok=True)
    given = {"SLURM_JOB_ID": "42", "SLURM_JOB_NAME": "it-is-a-run", "SLURM_NTASKS": "2", "CUDA_VISIBLE_DEVICES": "0"}
    given |= {"CALLS": str(tmp_path / "calls"), "WAITING": str(tmp_path / "waiting"), "SLURM_CONF": "/etc/slurm.conf"}
    given |= {"REFUSES": "", "SILENT": "", "PREEMPTED": "None", "STATE": "COMPLETED", "PYTHON": sys.executable}
    return subprocess.run(
        [
            *("bash", "-euo", "pipefail", "-c"),
            f'python=$PYTHON; . "$COMMON"; . "$CHAIN"; PYTHON=$python gilbreth_pause=0.1; run=$RUN; {script}',
            "/spool/job42/script",
        ],
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
    done = bash('begin_link "$run" 3600; take_place "$run"; echo begun', tmp_path)
    assert (done.returncode, done.stdout) == (0, "begun\n"), done.stderr
    (call,) = (line for line in calls(tmp_path) if line.startswith("sbatch"))
    assert call == "sbatch --parsable --dependency=afterany:42,singleton /spool/job42/script"
    inherited = (tmp_path / "calls.env").read_text()
    assert "SLURM_NTASKS" not in inherited and "CUDA_VISIBLE_DEVICES" not in inherited
    assert "SLURM_CONF=/etc/slurm.conf" in inherited
    assert '"job_id": "43", "after": "42"' in (tmp_path / "runs" / "it's a run" / "links" / "43.json").read_text()


def test_a_job_that_finds_the_next_one_waiting_queues_none(tmp_path: Path) -> None:
    """It makes sure, too, that the run's folder tells of it."""
    (tmp_path / "waiting").write_text("44\n")
    done = bash('begin_link "$run" 3600; take_place "$run"', tmp_path)
    assert done.returncode == 0, done.stderr
    assert not any(line.startswith("sbatch") for line in calls(tmp_path))
    assert read_json(tmp_path / "runs" / "it's a run" / "links" / "44.json")["after"] == "42"


def test_a_job_of_a_run_that_is_complete_ends_at_once(tmp_path: Path) -> None:
    done = bash('touch "$run/done.json"; begin_link "$run" 3600; echo begun', tmp_path)
    assert done.returncode == 0
    assert done.stdout == "done: the run was complete before job 42 began\n"
    assert not calls(tmp_path)


def test_a_node_that_may_not_submit(tmp_path: Path) -> None:
    """THEN the job runs all the same, and says at its end that nothing goes on."""
    done = bash('begin_link "$run" 3600; take_place "$run"; go_on "$run"', tmp_path, REFUSES="yes")
    assert done.returncode == 1
    assert "--set resources.links=N" in done.stdout
    assert "python -m launch.jobs requeue it-is-a-run" in done.stderr


@pytest.mark.parametrize(("verdict", "code", "exit_code"), [(75, 0, 0), (75, 137, 137), (0, 0, 0), (1, 1, 1)])
def test_the_end_of_a_job(verdict: int, code: int, exit_code: int, tmp_path: Path) -> None:
    """GIVEN the next job waits THEN it goes on, or is cancelled where the run has ended; nothing is requeued."""
    (tmp_path / "waiting").write_text("43\n44\n")
    links = 'record_link "$run" 43; record_link "$run" 44'
    done = bash(f'PYTHON=decide; decide() {{ return {verdict}; }}; {links}; finish "$run" {code}', tmp_path)
    assert done.returncode == exit_code, done.stderr
    cancelled = [line for line in calls(tmp_path) if line.startswith("scancel")]
    assert (done.stdout == "handed on to job 43\n") == (verdict == 75)
    assert cancelled == ([] if verdict == 75 else ["scancel --state=PENDING 43", "scancel --state=PENDING 44"])
    # What was cancelled before it began must not stand for the run.
    assert len(list((tmp_path / "runs" / "it's a run" / "links").iterdir())) == (2 if verdict == 75 else 0)


def test_a_slurm_that_does_not_answer_ends_no_chain(tmp_path: Path) -> None:
    done = bash('PYTHON=decide; decide() { return 75; }; gilbreth_queued=43; finish "$run" 0', tmp_path, SILENT="yes")
    assert (done.returncode, done.stdout) == (0, "handed on to job 43: Slurm does not tell whether it waits\n")
    assert len(calls(tmp_path)) == 3, "it is asked three times, and nothing is cancelled"


MARK = 'mkdir -p "$run/attempts"; echo {} >"$run/attempts/42-000.begun"'


@pytest.mark.parametrize(("preempted", "ends"), [("None", True), ("2025-01-02T03:04:05", False)])
def test_term_ends_the_chain_unless_slurm_preempts(preempted: str, *, ends: bool, tmp_path: Path) -> None:
    """Either way the attempt does not count: it did not end by itself."""
    (tmp_path / "waiting").write_text("43\n")
    done = bash(f'{MARK}; gilbreth_limit=3600; gilbreth_terminated=1; finish "$run" 143', tmp_path, PREEMPTED=preempted)
    assert done.returncode == 143
    assert any(line.startswith("scancel") for line in calls(tmp_path)) == ends
    assert ("preempted: the next job goes on" in done.stdout) != ends
    assert not list((tmp_path / "runs" / "it's a run" / "attempts").iterdir())


def test_the_time_limit_hands_on_while_the_run_gets_on(tmp_path: Path) -> None:
    """GIVEN two jobs that hang until the limit THEN each leaves a record, and the second ends the chain."""
    run = tmp_path / "runs" / "it's a run"
    (tmp_path / "waiting").write_text("43\n")
    script = 'take_place "$run"; gilbreth_limit=5; gilbreth_terminated=1; export GILBRETH_CHAIN=1; finish "$run" 143'
    first = bash(script, tmp_path)
    assert first.returncode == 143, first.stderr
    assert "the time limit came before the stop; the next job goes on" in first.stdout
    assert not any(line.startswith("scancel") for line in calls(tmp_path))
    second = bash(script, tmp_path, SLURM_JOB_ID="43")
    assert "end: 2 attempts in a row made no progress from step 0" in second.stdout, second.stderr
    assert [line for line in calls(tmp_path) if line.startswith("scancel")] == ["scancel --state=PENDING 43"]
    assert [record.key for record in read_attempts(run)] == ["42-000", "43-000"]


def test_jobs_that_leave_no_word_end_the_chain(tmp_path: Path) -> None:
    """GIVEN two jobs that were killed with their batch scripts WHEN the third begins THEN it ends, and cancels."""
    (tmp_path / "waiting").write_text("45\n")
    script = 'begin_link "$run" 3600; take_place "$run"; echo begun'
    for job in ("42", "43"):
        assert bash(script, tmp_path, SLURM_JOB_ID=job).stdout == "begun\n"
    third = bash(script, tmp_path, SLURM_JOB_ID="44")
    assert (third.returncode, third.stdout) == (1, "end: 2 attempts in a row made no progress from step 0\n")
    assert [line for line in calls(tmp_path) if line.startswith("scancel")] == ["scancel --state=PENDING 45"]
    # Who takes it up by hand is not refused for what was decided already.
    assert bash(script, tmp_path, SLURM_JOB_ID="46").stdout == "begun\n"


def test_scancel_ends_the_chain_also_where_the_next_job_has_begun(tmp_path: Path) -> None:
    """GIVEN a job whose tasks took long to end WHEN Slurm has let the next one begin meanwhile THEN that one ends."""
    script = 'begin_link "$run" 3600; take_place "$run"; echo begun'
    assert bash(script, tmp_path).stdout == "begun\n"
    (tmp_path / "waiting").write_text("44\n")
    second = bash(script, tmp_path, SLURM_JOB_ID="43", STATE="CANCELLED")
    assert (second.returncode, second.stdout) == (1, "end: job 42 of this chain was cancelled\n")
    run = tmp_path / "runs" / "it's a run"
    assert [path.stem for path in (run / "links").iterdir()] == [], "the run was cancelled with the job before"
    # Taken up by hand, what was cancelled does not count.
    assert bash(script, tmp_path, SLURM_JOB_ID="50", STATE="CANCELLED").stdout == "begun\n"
    assert [path.name for path in (run / "attempts").iterdir()] == ["50-000.begun"]
    assert [line for line in calls(tmp_path) if line.startswith("scancel")] == ["scancel --state=PENDING 44"]
