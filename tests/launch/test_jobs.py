"""Runs as `launch.jobs` shows them, read from run folders; without Slurm, and with the processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gilbreth_phase0.attempt import Outcome
from launch.config import ROOT
from launch.jobs.__main__ import main
from launch.jobs.folders import choose_run, find_runs
from launch.jobs.reasons import explain_reason
from launch.jobs.view import RunView, look_at
from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.sync.pushed import PushState, write_push_state

from job_runs import TOTAL, end_attempt, finish, log_rows, make_run, measure_pace

HEAVY = ("torch", "wandb", "lerobot", "deepspeed", "robosuite", "submitit", "numpy", "pydantic", "typer")


@pytest.fixture(autouse=True)
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PATH without Slurm."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("SLURM_CONF", raising=False)


def look(*folders: Path) -> list[RunView]:
    return look_at(find_runs(folders), time.time(), in_full=True)[0]


def test_runs_are_found_also_in_groups_the_last_active_first(tmp_path: Path) -> None:
    old, young = make_run(tmp_path / "runs", "old"), make_run(tmp_path / "runs" / "group", "young", "13")
    (tmp_path / "runs" / ".submitting").mkdir()
    (tmp_path / "runs" / "not-a-run").mkdir()
    os.utime(old / "submission.json", (1, 1))
    runs = find_runs([tmp_path / "runs", tmp_path / "nowhere"])
    assert [run.path for run in runs] == [young, old]
    assert not runs[0].has_begun
    log_rows(old, 3)
    assert find_runs([tmp_path / "runs"])[0].name == "old"


def test_a_run_is_meant_by_name_beginning_folder_or_job(tmp_path: Path) -> None:
    for number in range(3):
        make_run(tmp_path / "runs", f"act_{number}", str(12 + number))
    runs = find_runs([tmp_path / "runs"])
    for given, name in (("act_1", "act_1"), ("14", "act_2"), (str(tmp_path / "runs" / "act_0"), "act_0")):
        assert choose_run(runs, given).name == name
    with pytest.raises(UserError, match="beginning of 3 runs"):
        choose_run(runs, "act")
    with pytest.raises(UserError, match="Did you mean 'act_"):
        choose_run(runs, "bct_1")
    # A name goes before the beginning of another.
    make_run(tmp_path / "runs", "act_10")
    assert choose_run(find_runs([tmp_path / "runs"]), "act_1").name == "act_1"


def test_how_far_a_run_is_comes_from_the_end_of_its_journal(tmp_path: Path) -> None:
    """GIVEN two jobs' rows, a measured pace and a push THEN step, rate, metrics, jobs to come and what W&B lacks."""
    run = make_run(tmp_path, "mine", rows=30)
    log_rows(run, 30)
    measure_pace(run, 60)
    write_push_state(run, PushState(rows=60, confirmed=45, url="https://wandb.example/mine"))
    (view,) = look(tmp_path)
    progress = view.progress
    assert (progress.step, progress.total, progress.rows, progress.segments) == (60, TOTAL, 60, 2)
    assert progress.rate is not None
    assert progress.metrics["loss/total"] == pytest.approx(1 / 60)
    # 5,940 steps are left, and an hour's job does about 1,700: four more jobs, this one included.
    assert (view.segment, view.of) == (2, 5)
    assert progress.lag is not None
    assert 0 <= progress.lag < 60
    assert (progress.on_server, progress.url) == (45, "https://wandb.example/mine")


def test_a_run_that_collects_shows_its_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a run of DAgger THEN roll-outs stand where steps do, and nobody says when it ends from its steps alone."""
    run = make_run(tmp_path, "mine", rows=30)
    measure_pace(run, 30)
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(f"{config}dagger:\n  rounds: 3\n  episodes: 20\n  training_steps: 600\n")
    record = read_json(run / "submission.json")
    write_json(run / "submission.json", {**record, "stage": "dagger", "steps": None})
    for number, made in ((1, 20), (2, 7)):
        (run / f"rounds/{number:02}/rollouts").mkdir(parents=True)
        for seed in range(made):
            (run / f"rounds/{number:02}/rollouts/seed-{seed}.npz").touch()
    (run / "rounds/01/round.json").write_text("{}")
    (run / "rounds/02/policy").mkdir()
    (view,) = look(tmp_path)
    assert str(view.progress.round) == "2 of 3, roll-outs 7/20"
    assert (view.progress.total, view.ends, view.of) == (1800, None, None)
    assert main([f"--root={tmp_path}"]) == 0
    assert "round 2: 7/20" in capsys.readouterr().out
    (run / "rounds/02/round.json").write_text("{}")
    assert main(["status", "mine", f"--root={tmp_path}"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "round 2 of 3 step 30 of 1,800" in shown


def test_a_long_journal_is_not_read(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine", rows=2)
    with (run / "journal-000.jsonl").open("rb+") as file:
        header, row, _ = file.read().split(b"\n")[:3]
        file.truncate(len(header) + 1 + 300 * 2**20)  # a hole, which costs no disk
        file.seek(0, 2)
        file.write(b"\n" + row.replace(b'"n":0', b'"n":99999').replace(b'"step":1', b'"step":777') + b"\n")
    began = time.monotonic()
    (run_folder,) = find_runs([tmp_path])
    (view,), _ = look_at([run_folder], time.time())
    # Only the lines behind the hole are whole; what is asked for is there at once.
    assert view.progress.step == 777
    assert time.monotonic() - began < 5


def test_what_is_known_without_slurm(tmp_path: Path) -> None:
    finish(make_run(tmp_path, "complete", rows=5))
    make_run(tmp_path, "queued", "13")
    make_run(tmp_path, "interrupted", None)
    runs = find_runs([tmp_path])
    views, problem = look_at(runs, time.time())
    assert {view.run.name: view.word for view in views} == {
        "complete": "done",
        "queued": "unknown",
        "interrupted": "submitting",
    }
    assert problem is not None
    assert problem.startswith("Slurm did not answer: squeue: No such file")


@pytest.fixture
def alive(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process whose command line names the log folder of the run `mine`, as a controller's does."""
    command = [sys.executable, "-c", "import time; time.sleep(300)", str(tmp_path / "logs" / "mine")]
    process = subprocess.Popen(command)
    yield process
    process.kill()
    process.wait()


def test_a_run_of_this_machine_lives_as_long_as_its_process(
    tmp_path: Path, alive: subprocess.Popen[bytes], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "mine", str(alive.pid), cluster="local")
    make_run(tmp_path, "other", str(alive.pid), cluster="local")  # the number was given out again
    assert {view.run.name: view.word for view in look(tmp_path)} == {"mine": "runs", "other": "failed"}
    assert main(["cancel", "mine", f"--root={tmp_path}"]) == 0
    assert f"ended mine (process {alive.pid})" in capsys.readouterr().out
    log = tmp_path / "logs" / "mine" / f"{alive.pid}_0_log.out"
    log.parent.mkdir(parents=True)
    log.write_text("error: dataset 'lift' is not in /data\n")
    (run / "refused").touch()
    assert main(["status", "mine", f"--root={tmp_path}"]) == 1
    assert "failed: the input was refused: dataset 'lift' is not in /data (rank 0)" in capsys.readouterr().out


def test_the_list_fits_80_columns_and_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finish(make_run(tmp_path, "act_bc_lift_20250102_030405_abcdef0", rows=5))
    run = make_run(tmp_path, "diffusion_bc_lift-and-stack_20250102_030405_abcdef0", "1234567", rows=9)
    end_attempt(run, "1234567-000", Outcome.REQUEUE, None)
    assert main([f"--root={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].endswith("2 runs")
    assert lines[1].split() == ["run", "job", "state", "job", "no", "step", "ends", "metric", "W&B"]
    assert any(line.startswith("act_bc") and "done" in line for line in lines)
    assert any("1234567" in line and "unknown" in line and "9/6,000" in line for line in lines)


def test_more_runs_than_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN 30 runs that are done and an old one that waits for its first job THEN that one is shown, too."""
    first = make_run(tmp_path, "waits", "99")
    os.utime(first / "submission.json", (1, 1))
    for number in range(30):
        finish(make_run(tmp_path, f"done-{number:02}", str(number)))
    assert main(["list", f"--root={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "31 runs, 26 of them shown; --all shows the rest" in shown
    assert "waits " in shown
    assert main(["list", "--all", "--json", f"--root={tmp_path}"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 31


def test_json_holds_what_the_screens_show(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "mine", rows=5)
    end_attempt(run, "12-000", Outcome.END, 2)
    finish(run)
    assert main(["status", "mine", "--json", f"--root={tmp_path}"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["run"], shown["state"], shown["step"], shown["total"]) == ("mine", "done", 5, TOTAL)
    assert shown["attempts"][0]["key"] == "12-000"


@pytest.mark.parametrize("file", ["submission.json", "config.yaml", "owner.json", "push.json", "attempts/12-000.json"])
@pytest.mark.parametrize("content", [b"", b'{"state": "subm', b"[1, 2]\n", b"\xff\xfe\x00"])
def test_a_file_that_is_not_whole_hides_no_run(
    file: str, content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "damaged", rows=3)
    end_attempt(run, "12-000", Outcome.REQUEUE)
    (run / file).write_bytes(content)
    finish(make_run(tmp_path, "whole", "13"))
    assert main(["list", f"--root={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    assert "damaged" in shown
    assert "whole" in shown


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "--root=/nowhere"], "--root /nowhere: there is no such folder"),
        (["list", f"--root=/{'x' * 256}"], "there is no such folder, or you may not list it"),
        (["list", "--cluster=labb"], "unknown cluster 'labb'. Did you mean 'lab'?"),
        (["status", "nobody"], "unknown run 'nobody'"),
        (["logs", "mine", "--rank=-1"], "'-1' is not a whole number"),
        (["logs", "mine", "--rank=7"], "has written no log yet"),
        (["requeue", "mine"], "mine is complete (done"),
        (["cancel", "mine"], "mine is over (done"),
        (["lisst"], "invalid choice: 'lisst'"),
    ],
)
def test_bad_input_is_refused(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    finish(make_run(tmp_path, "mine"))
    root = (
        []
        if any(one.startswith("--root=/") for one in arguments) or "--cluster=labb" in arguments
        else [f"--root={tmp_path}"]
    )
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(SystemExit) as ended:
        main([*arguments, *root])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_that_nobody_can_tell_of_is_not_submitted_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, "mine")
    before = read_json(run / "submission.json")
    with pytest.raises(SystemExit):
        main(["requeue", "mine", f"--root={tmp_path}"])
    assert "nobody can tell whether a job of mine waits or runs" in capsys.readouterr().err
    assert read_json(run / "submission.json") == before


def test_jobs_that_a_chain_handed_on_to_are_the_runs_too(tmp_path: Path) -> None:
    run = make_run(tmp_path, "mine")
    (run / "links").mkdir()
    for number, job in enumerate(("40", "7")):
        write_json(run / "links" / f"{job}.json", {"job_id": job, "after": "12", "time": 100 + number})
    (run / "links" / ".41").write_text('{"job_id": "41"')
    assert find_runs([tmp_path])[0].jobs == ["12", "40", "7"]


@pytest.mark.parametrize("arguments", [["--help"], ["list", "--root=."]])
def test_it_starts_without_anything_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from launch.jobs.__main__ import main
try:
    main({arguments!r})
finally:
    print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


@pytest.mark.parametrize(
    ("reason", "words", "is_stuck"),
    [
        ("Resources", "first in line", False),
        ("Priority", "higher priority", False),
        (None, "not looked at it yet", False),
        ("BeginTime", "after a requeue Slurm waits some minutes", False),
        ("DependencyNeverSatisfied", "ended otherwise than it needs", True),
        ("JobHeldUser", "you have held it", True),
        ("QOSMaxGRESPerUser", "you have reached what its QOS allows each user (GPUs)", False),
        ("AssocGrpGRES", "all jobs of its account together have reached its limit (GPUs)", False),
        ("AssocGrpCPUMinutesLimit", "limit (core hours)", False),
        ("QOSMaxWallDurationPerJobLimit", "more than its QOS allows a job (time)", True),
        ("QOSMaxJobsPerUserLimit", "each user (running jobs)", False),
        ("QOSMinGRES", "less than its QOS demands (GPUs)", True),
        ("ReqNodeNotAvail, UnavailableNodes:k[1-2]", "reserved for maintenance (k[1-2])", False),
        ("Nodes required for job are DOWN, DRAINED or reserved", "down, drained or held for others", False),
        ("SomethingNew", "Slurm says SomethingNew", False),
    ],
)
def test_slurms_reasons_in_plain_words(reason: str | None, words: str, is_stuck: bool) -> None:
    explained = explain_reason(reason)
    assert words in explained.words
    assert explained.is_stuck == is_stuck
    assert explained.advice or not is_stuck
