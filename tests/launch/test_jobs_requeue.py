"""A run that is taken up again gets one new job, whatever is lost, refused or killed in between."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from launch import orphans, sbatch
from launch.jobs import actions
from launch.jobs.__main__ import main
from launch.jobs.actions import submit_again
from launch.jobs.folders import find_runs
from launch.slurm import SlurmSilent
from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.sync.claims import Holder

from job_runs import make_run

Slurm = Callable[[str], None]
TAKES = "echo Submitted batch job 40"
# The answer is lost, and so is whoever waits for it.
HANGS = "exec sleep 60"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose job, 12, is over; its script is there."""
    folder = make_run(tmp_path / "it's here", "mine")
    log_dir = folder.parent / "logs" / folder.name
    log_dir.mkdir(parents=True)
    (log_dir / sbatch.SCRIPT).write_text("#!/bin/bash\n")
    return folder


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """Sets what sbatch does; squeue lists what stands in `queue`."""
    folder, root = tmp_path / "bin", tmp_path / "it's here"
    folder.mkdir()
    root.mkdir(exist_ok=True)
    (root / "queue").touch()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setattr(sbatch, "LONGEST_S", 0.5)
    monkeypatch.setattr(orphans, "_SECONDS_UNTIL_LISTED", 0.3)

    def command(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / name).chmod(0o755)

    def sbatch_does(text: str) -> None:
        command("sbatch", f"printf '%s\\n' \"$1\" >>{shlex.quote(str(root / 'asked'))}\n{text}")

    command("squeue", f"cat {shlex.quote(str(root / 'queue'))}")
    command("sacct", "")
    return sbatch_does


def again(run: Path) -> str:
    """The run is read anew, as each command does."""
    (found,) = find_runs([run])
    return submit_again(found)


def asked(run: Path) -> list[str]:
    """The comments that sbatch was called with."""
    return (run.parent / "asked").read_text().splitlines()


def mark(run: Path) -> Path:
    return max((run / "requeues").glob("*.json"))


def kill(run: Path, **changes: Any) -> None:
    """As if the last command had been killed before it could record its job."""
    fields = {key: value for key, value in read_json(mark(run)).items() if key != "job_id"}
    holder = dataclasses.replace(Holder.this_process("requeue"), started=1)
    write_json(mark(run), {**fields, "holder": dataclasses.asdict(holder), **changes})
    record = read_json(run / "submission.json")
    write_json(run / "submission.json", {**record, "job_id": record.get("earlier_jobs", ["12"])[0], "earlier_jobs": []})


def test_each_job_of_a_run_has_a_key_of_its_own(run: Path, slurm: Slurm) -> None:
    key = read_json(run / "submission.json")["key"]
    for number in ("40", "41"):
        slurm(f"echo Submitted batch job {number}")
        assert again(run) == f"submitted mine again as job {number}: it goes on where it was saved"
    assert len({*asked(run), f"--comment={key}"}) == 3
    assert all(one.startswith("--comment=gilbreth:mine:") for one in asked(run))
    record = read_json(run / "submission.json")
    assert (record["job_id"], record["earlier_jobs"], record["key"]) == ("41", ["12", "40"], key)


@pytest.mark.parametrize("listed", [True, False])
def test_an_answer_that_is_lost_makes_no_second_job(listed: bool, run: Path, slurm: Slurm) -> None:
    """GIVEN an sbatch that hangs THEN nothing more is submitted until Slurm lists the job, or certainly has none."""
    slurm(HANGS)
    with pytest.raises(SlurmSilent, match=r"did not end in .*the new job of mine is not known\n  next: the same"):
        again(run)
    slurm(TAKES)
    for _ in range(2):
        with pytest.raises(SlurmSilent, match=r"answer was lost and it lists no such job; certain in 10 min"):
            again(run)
    assert len(asked(run)) == 1
    key = asked(run)[0].removeprefix("--comment=")
    if listed:
        (run.parent / "queue").write_text(f"12|1|mine|gilbreth:mine:0a\n33|1|mine|{key}\n")
        assert again(run) == "mine was submitted again as job 33 by another command; it is recorded now"
    else:
        os.utime(sbatch.called_at(mark(run).with_suffix("")), (0, 0))
        assert again(run).startswith("submitted mine again as job 40")
    assert len(asked(run)) == (1 if listed else 2)
    assert read_json(run / "submission.json")["job_id"] == ("33" if listed else "40")


def test_the_command_says_so_without_a_traceback(run: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm(HANGS)
    with pytest.raises(SystemExit) as ended:
        main(["requeue", "mine", f"--root={run.parent}"])
    assert ended.value.code == 1
    assert "whether Slurm has the new job of mine is not known" in capsys.readouterr().err


def test_after_a_refusal_the_next_command_may_try_at_once(run: Path, slurm: Slurm) -> None:
    slurm("echo 'sbatch: error: Batch job submission failed: Invalid qos specification' >&2; exit 1")
    for _ in range(2):
        with pytest.raises(UserError, match="you may not use that QOS"):
            again(run)
    slurm(TAKES)
    assert again(run).startswith("submitted mine again as job 40")
    assert len(asked(run)) == 3


def test_a_job_that_a_killed_command_left_is_the_runs(run: Path, slurm: Slurm) -> None:
    """GIVEN sbatch's answer, or only Slurm's list, where a site has rewritten the comments THEN the job is adopted."""
    slurm(TAKES)
    again(run)
    kill(run)
    assert again(run) == "mine was submitted again as job 40 by another command; it is recorded now"
    kill(run)
    (mark(run).with_suffix("") / "sbatch.out").write_text("")
    now = int(read_json(mark(run))["time"])
    (run.parent / "queue").write_text(f"12|{now}|mine|accounting\n40|{now}|mine|accounting\n")
    assert again(run) == "mine was submitted again as job 40 by another command; it is recorded now"
    assert len(asked(run)) == 1
    # One that was killed before it called sbatch has left none.
    kill(run)
    (mark(run).with_suffix("") / "sbatch.out").unlink()
    slurm("echo Submitted batch job 41")
    assert again(run).startswith("submitted mine again as job 41")


def test_two_commands_that_saw_the_same(run: Path, slurm: Slurm) -> None:
    """GIVEN two commands that have read the run WHEN one has submitted it THEN the other takes that job for its own."""
    slurm(TAKES)
    first, second = find_runs([run]), find_runs([run])
    assert [one.jobs for one in (*first, *second)] == [["12"]] * 2
    submit_again(first[0])
    assert "submitted again as job 40 by another command" in submit_again(second[0])
    assert len(asked(run)) == 1
    kill(run, holder=dataclasses.asdict(Holder.this_process("requeue")))
    with pytest.raises(UserError, match=r"another command takes mine up at this moment \(requeue on"):
        again(run)


def test_another_slurm_is_not_asked(run: Path, slurm: Slurm) -> None:
    slurm(TAKES)
    again(run)
    kill(run, slurm="/elsewhere/slurm.conf")
    with pytest.raises(UserError, match=r"SLURM_CONF=/elsewhere/slurm.conf; that Slurm may have its job") as error:
        again(run)
    command = str(error.value).rpartition("for certain: ")[2]
    assert shlex.split(command) == ["rm", str(mark(run))]
    assert len(asked(run)) == 1


def test_a_run_folder_that_takes_nothing(run: Path, slurm: Slurm) -> None:
    slurm(TAKES)
    (run / "requeues").write_text("in the way")
    with pytest.raises(UserError, match=r"cannot write .*requeues"):
        again(run)


def test_ctrl_c_is_answered_with_the_command(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(actions, "requeue", interrupted)
    assert main(["requeue", run.name, "--root", str(run.parent)]) == 130
    assert "interrupted: Slurm may have the job\n  next: the same command again" in capsys.readouterr().err
