"""A run has one job and a job has one run, whatever is killed, lost or pressed while it is submitted."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from launch import intent as intents
from launch import orphans, sbatch
from launch.config import ROOT, Config
from launch.intent import Intent, new_intent
from launch.lab import Lab
from launch.spec import JobSpec
from launch.submission import pick_up, submit
from tracking.errors import UserError
from tracking.files import write_json
from tracking.sync.claims import Holder

from launch_jobs import probe_job as job
from submit_trials import ANSWERED, CALLING, PHASES, jobs_of, judge, play, start
from support import free_port, wait_until

ELSEWHERE = Holder("submit", "other-login", "another-boot/pid:[1]", 1, 1, 0.0)


def dead() -> Holder:
    """A process of this host that has ended."""
    return dataclasses.replace(Holder.this_process("submit"), started=1)


def left_by_a_kill(config: Config, spec: JobSpec, holder: Holder | None = None) -> Intent:
    """What a command leaves that is killed before it calls sbatch."""
    intent = dataclasses.replace(new_intent(config, spec, ["--stage", "smoke"]), holder=holder or dead())
    intents.begin(intent)
    spec.run_dir.mkdir(parents=True)
    write_json(spec.run_dir / "submission.json", {"state": "submitting", "job_id": None, "key": intent.key})
    spec.log_dir.mkdir(parents=True)
    intent.log_mark.touch()
    return intent


def commands(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> None:
    """Puts scripts in the place of commands."""
    folder.mkdir(parents=True)
    for name, text in {"srun": "", "squeue": "", "sacct": "", **scripts}.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def record(run_dir: Path) -> dict[str, object]:
    value = json.loads((run_dir / "submission.json").read_text())
    assert isinstance(value, dict)
    return value


def test_what_was_never_submitted_is_removed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, spec = job(tmp_path, "local", "name=mine")
    left_by_a_kill(config, spec)
    assert pick_up(*job(tmp_path)) is None
    assert (
        capsys.readouterr().out
        == "mine was never submitted and is removed; again: python -m launch.submit --stage smoke\n"
    )
    assert not spec.run_dir.exists()
    assert not spec.log_dir.exists()
    assert intents.open_intents(tmp_path / "runs") == []


@pytest.mark.parametrize("made", ["nothing", "run folder", "half a record", "run and log folder"])
def test_every_earlier_moment_is_removed_too(made: str, tmp_path: Path) -> None:
    config, spec = job(tmp_path, "local", "name=mine")
    intents.begin(dataclasses.replace(new_intent(config, spec), holder=dead()))
    if made != "nothing":
        spec.run_dir.mkdir()
    if made == "half a record":
        (spec.run_dir / ".submission.json.0123.tmp").write_text("{")
    if made == "run and log folder":
        spec.log_dir.mkdir(parents=True)
    assert pick_up(*job(tmp_path)) is None
    assert not [path for path in tmp_path.rglob("*") if path.name == "mine"]
    assert intents.open_intents(tmp_path / "runs") == []


def test_a_run_of_the_same_name_is_left_alone(tmp_path: Path) -> None:
    """GIVEN an intent whose process died before it made a folder WHEN both folders are another run's THEN they stay."""
    config, spec = job(tmp_path, "local", "name=mine")
    spec.run_dir.mkdir(parents=True)
    write_json(spec.run_dir / "submission.json", {"state": "submitted", "job_id": "7", "key": "gilbreth:mine:0"})
    spec.log_dir.mkdir(parents=True)
    (spec.log_dir / "12_0_log.out").write_text("of another")
    intents.begin(dataclasses.replace(new_intent(config, spec), holder=dead()))
    pick_up(*job(tmp_path))
    assert record(spec.run_dir)["job_id"] == "7"
    assert (spec.log_dir / "12_0_log.out").exists()


def test_what_a_living_process_submits_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a process of another host THEN it counts as alive for five minutes by the clock of the disk."""
    config, spec = job(tmp_path, "generic", "name=mine")
    commands(tmp_path / "bin", monkeypatch)
    intent = left_by_a_kill(config, spec, ELSEWHERE)
    own = left_by_a_kill(*job(tmp_path, "generic", "name=other"), holder=Holder.this_process("submit"))
    assert list(orphans.settle(tmp_path / "runs", "generic")) == []
    with pytest.raises(UserError, match="is there already, from another run or from a command that submits it now"):
        submit(config, spec)
    assert record(spec.run_dir)["key"] == intent.key
    os.utime(intent.path, (0, 0))
    assert [found.intent.name for found in orphans.settle(tmp_path / "runs", "generic")] == ["mine"]
    assert intents.open_intents(tmp_path / "runs") == [own]


def test_only_one_command_takes_an_orphan(tmp_path: Path) -> None:
    intent = left_by_a_kill(*job(tmp_path, "local", "name=mine"))
    with ThreadPoolExecutor(8) as pool:
        taken = list(pool.map(intents.take_over, [intent] * 8))
    assert len([one for one in taken if one is not None]) == 1
    assert [one.number for one in intents.open_intents(tmp_path / "runs")] == [1]


def test_an_intent_of_a_version_to_come_is_left(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / intents.FOLDER
    folder.mkdir(parents=True)
    (folder / "x~00.000.json").write_text('{"name": "x"}')
    (folder / "y~00.000.json").write_text("not JSON")
    assert list(orphans.settle(tmp_path / "runs", "local")) == []
    assert len(list(folder.iterdir())) == 2


def test_another_clusters_slurm_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path / "bin", monkeypatch, squeue="echo asked >&2; exit 1")
    left_by_a_kill(*job(tmp_path, "generic", "name=mine"))
    (found,) = orphans.settle(tmp_path / "runs", "gilbreth")
    assert not found.is_settled
    assert found.line.startswith(
        f"mine was being submitted with profile generic on {os.uname().nodename} with no SLURM"
    )
    assert (tmp_path / "runs" / "mine").exists()


@pytest.mark.parametrize("listed", [True, False])
def test_an_answer_that_is_lost(
    listed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN an sbatch that hangs WHEN Slurm lists the job THEN the next command adopts it, and until then waits."""
    jobs = tmp_path / "jobs"
    jobs.touch()
    commands(tmp_path / "bin", monkeypatch, sbatch="exec sleep 60", squeue=f"cat {shlex.quote(str(jobs))}")
    monkeypatch.setattr(sbatch, "LONGEST_S", 0.5)
    config, spec = job(tmp_path, "generic", "name=mine")
    with pytest.raises(SystemExit, match=r"sbatch did not end in .* whether Slurm has the job is not known"):
        submit(config, spec)
    assert record(spec.run_dir)["state"] == "submitting"
    with pytest.raises(
        UserError, match=r"(?s)mine: .*answer was lost and it lists no such job.*the same command again"
    ):
        pick_up(config, spec)
    if listed:
        jobs.write_text(f"11|1|mine|gilbreth:mine:of-another\n12|1|mine|{record(spec.run_dir)['key']}\n")
    else:
        os.utime(sbatch.called_at(spec.log_dir), (0, 0))
    earlier = pick_up(config, spec)
    if listed:
        assert earlier is not None
        assert (earlier[1].job_id, record(spec.run_dir)["state"]) == ("12", "adopted")
    else:
        assert earlier is None
        assert "was never submitted and is removed" in capsys.readouterr().out
    assert intents.open_intents(tmp_path / "runs") == []


@pytest.mark.parametrize(
    ("complaint", "message"),
    [
        ("QOSMaxSubmitJobPerUserLimit", "as many of your jobs are queued as QOS, account or partition allow"),
        ("Batch job submission failed: Unable to contact slurm controller (connect failure)", "nothing was submitted"),
        ("Batch job submission failed: Invalid qos specification", "you may not use that QOS"),
        ("Batch job submission failed: Something new", "sbatch refused the job: .*Something new"),
        ("Batch job submission failed: Socket timed out on send/recv operation", None),
        ("", None),
    ],
)
def test_an_sbatch_that_fails(
    complaint: str, message: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a failure after which Slurm may have the job all the same THEN the intent stays; else nothing does."""
    commands(tmp_path / "bin", monkeypatch, sbatch=f"echo 'sbatch: error: {complaint}' >&2; exit 1")
    config, spec = job(tmp_path, "generic", "name=mine")
    with pytest.raises(UserError if message else SystemExit, match=message):
        submit(config, spec)
    assert spec.run_dir.exists() == spec.log_dir.exists() == (message is None)
    assert len(intents.open_intents(tmp_path / "runs")) == (message is None)


def test_a_disk_that_takes_nothing_more_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands(tmp_path / "bin", monkeypatch, sbatch="echo 'Submitted batch job 7'")
    config, spec = job(tmp_path, "generic", "name=mine")
    (tmp_path / "logs").write_text("in the way")
    with pytest.raises(UserError, match="cannot make"):
        submit(config, spec)
    assert not spec.run_dir.exists()
    assert intents.open_intents(tmp_path / "runs") == []


def test_ctrl_c_before_sbatch_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def press(path: Path, content: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("launch.submission.write_atomic", press)
    config, spec = job(tmp_path, "local", "name=mine")
    with pytest.raises(UserError, match="interrupted: nothing was submitted, and nothing is left") as error:
        submit(config, spec)
    assert error.value.exit_code == 130
    assert not spec.run_dir.exists()
    assert intents.open_intents(tmp_path / "runs") == []


def test_a_job_of_this_machine_is_adopted(tmp_path: Path) -> None:
    """GIVEN a command that died between the start of the controller and its record THEN the next one finds it."""
    config, spec = job(tmp_path, "local", "name=mine", argv=("sleep",))
    submitted = submit(config, spec)
    written = record(spec.run_dir)
    intent = dataclasses.replace(new_intent(config, spec), holder=dead(), nonce=str(written["key"]).rpartition(":")[2])
    write_json(spec.run_dir / "submission.json", {**written, "state": "submitting", "job_id": None})
    intents.begin(intent)
    try:
        earlier = pick_up(config, spec)
        assert earlier is not None
        assert (earlier[1].job_id, earlier[1].state()) == (submitted.job_id, "RUNNING")
        assert record(spec.run_dir)["state"] == "adopted"
    finally:
        os.kill(int(submitted.job_id), signal.SIGTERM)


def test_the_command_line_finishes_a_submission(tmp_path: Path) -> None:
    config, spec = job(tmp_path, "local", "name=mine")
    arguments = ["--stage", "smoke", "--cluster", "local", "--dry-run", "--set", f"cluster.run_root={tmp_path}/runs"]
    intent = left_by_a_kill(config, spec)
    intents.close(intent)
    intents.begin(dataclasses.replace(intent, arguments=tuple(arguments)))
    command = [sys.executable, "-m", "launch.submit", "--resume-submission", str(spec.run_dir)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("mine was never submitted and is removed")
    assert "\nname: mine\n" in done.stdout
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, "was interrupted" in done.stderr) == (2, True)


@pytest.fixture
def environment(lab: Lab) -> dict[str, str]:
    return lab.environment()


def slow_sbatch(folder: Path, environment: dict[str, str], before: str, after: str) -> dict[str, str]:
    """The lab's own sbatch, with commands around it."""
    folder.mkdir(parents=True)
    real = shutil.which("sbatch", path=environment["PATH"])
    (folder / "sbatch").write_text(f'#!/bin/bash\n{before}\n{real} "$@"\ncode=$?\n{after}\nexit $code\n')
    (folder / "sbatch").chmod(0o755)
    return {**environment, "PATH": f"{folder}:{environment['PATH']}"}


@pytest.mark.slurm
def test_five_kills(tmp_path: Path, environment: dict[str, str]) -> None:
    draw = random.Random(0)
    trials = [
        play(tmp_path / str(number), phase, draw, environment, *(["name=mine"] if number % 2 else []))
        for number, phase in enumerate(PHASES)
    ]
    for trial in trials:
        judge(trial, environment)
    assert [trial for trial in trials if trial.faults] == []
    assert {trial.phase for trial in trials} & {CALLING, ANSWERED}, "under load one of them may be missed"


@pytest.mark.slurm
@pytest.mark.parametrize("comment", ["kept", "rewritten by the site"])
def test_slurm_is_asked_for_a_job_whose_answer_was_lost(
    comment: str, tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rewrite = 'set -- "${@/--comment=gilbreth*/--comment=accounting: 12|34}"' if comment != "kept" else ""
    for name, value in slow_sbatch(
        tmp_path / "bin", environment, f"exec 3>&1 >/dev/null; {rewrite}", "sleep 60"
    ).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sbatch, "LONGEST_S", 3.0)
    config, spec = job(tmp_path, "lab", "name=lost-" + comment[:4])
    with pytest.raises(SystemExit, match="not known"):
        submit(config, spec)
    earlier = pick_up(config, spec)
    assert earlier is not None
    assert jobs_of(tmp_path, os.environ) == {spec.name: [earlier[1].job_id]}
    wait_until((spec.run_dir / "done.json").exists, 120, "the end of the job that was adopted")


@pytest.mark.slurm
def test_ctrl_c_while_sbatch_runs(tmp_path: Path, environment: dict[str, str]) -> None:
    waiting = tmp_path / "waiting"
    slow = slow_sbatch(tmp_path / "bin", environment, f"touch {waiting}; sleep 1", "")
    during = start(tmp_path / "during", slow, "name=during")
    wait_until(waiting.exists, 60, "sbatch")
    during.send_signal(signal.SIGINT)
    said = during.communicate(timeout=60)[0]
    ((_, (number,)),) = jobs_of(tmp_path / "during", environment).items()
    assert f"interrupted: during is queued as job {number} and recorded; to cancel it: scancel {number}" in said
    assert record(tmp_path / "during" / "runs" / "during")["job_id"] == number


@pytest.mark.slurm
def test_of_two_commands_with_one_name_one_is_refused(tmp_path: Path, environment: dict[str, str]) -> None:
    both = [start(tmp_path, environment, "name=mine") for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert sorted(process.returncode for process in both) == [0, 2], said
    assert "is there already" in said[[process.returncode for process in both].index(2)]
    assert [len(jobs) for jobs in jobs_of(tmp_path, environment).values()] == [1]


@pytest.mark.slurm
def test_a_full_queue_and_a_slurm_that_is_down(
    tmp_path: Path, environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    limit = ["sacctmgr", "-i", "modify", "qos", "where", "name=standby", "set"]
    config, spec = job(tmp_path, "lab", "cluster.qos=standby", "name=full")
    subprocess.run([*limit, "MaxSubmitJobsPerUser=0"], check=True, capture_output=True)
    try:
        with pytest.raises(UserError, match="as many of your jobs are queued as QOS, account or partition allow"):
            submit(config, spec)
    finally:
        subprocess.run([*limit, "MaxSubmitJobsPerUser=-1"], check=True, capture_output=True)
    conf = Path(environment["SLURM_CONF"])
    folder = tmp_path / "etc"
    shutil.copytree(conf.parent, folder)
    lines = [line for line in conf.read_text().splitlines() if not line.startswith("SlurmctldPort=")]
    (folder / "slurm.conf").write_text("\n".join([*lines, f"SlurmctldPort={free_port()}", "MessageTimeout=2", ""]))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    config, spec = job(tmp_path, "lab", "name=down")
    with pytest.raises(UserError, match="Slurm does not answer, and nothing was submitted"):
        submit(config, spec)
    assert not list((tmp_path / "runs").glob("[!.]*"))
