"""Signals set a flag, a job knows its end, and all ranks stop at the same step."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gilbreth_phase0.stop import Stop, StopProtocol, job_end_time

from rank_pairs import PROGRAMS, ROOT, rank_environment, run_pair

INSTALLED = """
import json, os, signal, subprocess, sys, time
from gilbreth_phase0.stop import Stop, StopProtocol, signals_held_back
def send(number):
    os.kill(os.getpid(), number)
"""


def python(script: str) -> subprocess.CompletedProcess[str]:
    """Runs a script in a session of its own, so that a signal to its process group reaches nobody else."""
    return subprocess.run(
        [sys.executable, "-c", INSTALLED + script],
        cwd=ROOT,
        env=rank_environment(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        start_new_session=True,
    )


def test_a_signal_only_sets_a_flag() -> None:
    done = python(
        """
stop = StopProtocol(0)
stop.install()
stop.connect(None)
seen = [stop.at_boundary()]
send(signal.SIGUSR2)
seen += [stop.at_boundary(), stop.at_boundary()]
print(json.dumps([answer.name for answer in seen]))
"""
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["NO", "REQUEUE", "REQUEUE"]


@pytest.mark.parametrize("order", ["SIGTERM, SIGUSR2", "SIGUSR2, SIGTERM"])
def test_term_beats_usr2(order: str) -> None:
    signals = ", ".join(f"signal.{name}" for name in order.split(", "))
    done = python(
        f"stop = StopProtocol(0)\nstop.install()\nfor number in [{signals}]: send(number)\n"
        "print(stop.at_boundary().name)"
    )
    assert done.stdout.split() == ["TERMINATE"], done.stderr


def test_a_child_survives_signals_that_are_held_back() -> None:
    """GIVEN a child started in the block WHEN USR2 reaches the whole group THEN both live and the flag is set after."""
    done = python(
        """
stop = StopProtocol(0)
stop.install()
with signals_held_back():
    child = subprocess.Popen(["sleep", "30"])
    os.killpg(0, signal.SIGUSR2)
    time.sleep(0.3)
    inside = [child.poll(), stop.at_boundary().name]
outside = [child.poll(), stop.at_boundary().name]
child.kill()
print(json.dumps([inside, outside, signal.pthread_sigmask(signal.SIG_BLOCK, []) == set()]))
"""
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[None, "NO"], [None, "REQUEUE"], True]


def test_a_child_started_outside_dies() -> None:
    """The counterpart of the test above: without the block, USR2 ends a child."""
    done = python(
        """
signal.signal(signal.SIGUSR2, lambda *_: None)
child = subprocess.Popen(["sleep", "30"])
os.killpg(0, signal.SIGUSR2)
print(child.wait(10) == -signal.SIGUSR2)
"""
    )
    assert done.stdout.split() == ["True"], done.stderr


HAND_ON = """
signal.signal(signal.SIGUSR2, lambda number, frame: (print("requeue", number == signal.SIGUSR2), sys.exit(9)))
stop = StopProtocol(0)
stop.install()
stop.hand_on(Stop.{answer}, may_requeue=lambda: print("recorded") is None)
"""


def test_rank_0_records_the_stop_and_then_asks_for_the_requeue() -> None:
    done = python(HAND_ON.format(answer="REQUEUE"))
    assert (done.returncode, done.stdout.splitlines()) == (9, ["recorded", "requeue True"]), done.stderr


def test_a_run_that_is_terminated_is_not_requeued() -> None:
    done = python(HAND_ON.format(answer="TERMINATE"))
    assert (done.returncode, done.stdout) == (143, ""), done.stderr


def test_without_anyone_to_requeue_the_batch_script_is_told() -> None:
    done = python("stop = StopProtocol(0)\nstop.install()\nstop.hand_on(Stop.REQUEUE, lambda: print('recorded'))")
    assert (done.returncode, done.stdout) == (75, ""), done.stderr


@pytest.fixture
def squeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the PATH hold nothing but a squeue that runs the given shell line."""
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("PATH", str(tmp_path))

    def make(line: str) -> None:
        (tmp_path / "squeue").write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / "squeue").chmod(0o755)

    return make


def test_squeue_is_asked_for_the_end_in_seconds(squeue) -> None:
    squeue('[ "$SLURM_TIME_FORMAT $*" = "%s --noheader --jobs 77 --format %e" ] && echo 1790000000')
    assert job_end_time() == 1790000000.0


def test_slurms_own_variable_is_taken_first(squeue, monkeypatch: pytest.MonkeyPatch) -> None:
    squeue("echo 5")
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1790000001")
    assert job_end_time() == 1790000001.0


@pytest.mark.parametrize("answer", ["echo N/A", "echo NONE", "exit 0"])
def test_a_job_without_an_end(answer: str, squeue) -> None:
    squeue(answer)
    assert job_end_time() is None


@pytest.mark.parametrize("answer", [None, "echo 'slurm_load_jobs error' >&2; exit 1"])
def test_a_squeue_that_fails_is_said_and_the_signal_is_waited_for(
    answer: str | None, squeue, capsys: pytest.CaptureFixture
) -> None:
    if answer is not None:
        squeue(answer)
    assert job_end_time() is None
    assert "waiting for Slurm's signal instead" in capsys.readouterr().out


def test_outside_slurm_nobody_is_asked(squeue, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.delenv("SLURM_JOB_ID")
    assert job_end_time() is None
    assert capsys.readouterr().out == ""


@pytest.fixture
def ends_in(monkeypatch: pytest.MonkeyPatch):
    """Makes the stop protocol of a job that ends in so many seconds."""

    def make(seconds: float, rank: int = 0, save_seconds: float = 0.0) -> StopProtocol:
        monkeypatch.setenv("SLURM_JOB_END_TIME", str(round(time.time() + seconds)))
        stop = StopProtocol(rank)
        stop.connect(None)
        stop.save_seconds = save_seconds
        stop.restart_clock()
        return stop

    return make


@pytest.mark.parametrize(
    ("seconds", "save_seconds", "answer"),
    [
        (100, 0.0, Stop.NO),
        (3, 0.0, Stop.REQUEUE),  # the reserve alone
        (100, 40.0, Stop.NO),  # 1.5 * 40 + 5 s
        (100, 90.0, Stop.REQUEUE),
        (-10, 0.0, Stop.REQUEUE),
    ],
)
def test_a_job_stops_when_a_measured_save_no_longer_fits(
    seconds: float, save_seconds: float, answer: Stop, ends_in
) -> None:
    assert ends_in(seconds, save_seconds=save_seconds).at_boundary() is answer


def test_a_measured_save_takes_the_place_of_an_estimate_and_the_longest_one_counts(ends_in) -> None:
    stop = ends_in(100, save_seconds=90.0)
    stop.saved_in(2.0)
    assert stop.at_boundary() is Stop.NO
    stop.saved_in(90.0)
    stop.saved_in(2.0)
    assert stop.at_boundary() is Stop.REQUEUE


def test_a_save_that_is_under_way_is_given_its_time_too(ends_in) -> None:
    stop = ends_in(100, save_seconds=40.0)  # 1.5 * 40 + 5 s
    stop.save_begun()
    assert stop.at_boundary() is Stop.REQUEUE
    stop.saved_in(40.0)
    assert stop.at_boundary() is Stop.NO
    assert stop.at_boundary(save_is_due=True) is Stop.REQUEUE, "else a stop a moment after it began would come too late"


def test_a_job_stops_when_two_more_steps_no_longer_fit(ends_in) -> None:
    """GIVEN 10 s (± 0.5) to the end THEN two steps of 0.45 s and the reserve of 5 s fit, and two of 1.8 s do not."""
    stop = ends_in(10)
    time.sleep(0.45)
    assert stop.at_boundary() is Stop.NO
    for _ in range(2):
        time.sleep(0.9)
    assert stop.at_boundary() is Stop.REQUEUE


def test_a_save_is_not_taken_for_a_slow_step(ends_in) -> None:
    stop = ends_in(9)
    for _ in range(2):
        time.sleep(0.9)
    stop.restart_clock()
    assert stop.at_boundary() is Stop.NO


def test_only_the_clock_of_rank_0_counts(ends_in) -> None:
    assert ends_in(-10, rank=1).at_boundary() is Stop.NO


@pytest.mark.train
def test_both_ranks_learn_at_the_same_step_of_a_signal_and_of_a_save() -> None:
    """GIVEN USR2 for rank 1 in step 5, and its share of a save on the disk in step 3, rank 0's in step 2
    THEN both learn it a step later.
    """
    ended = run_pair([PROGRAMS / "stop_together.py"], timeout=60)
    assert [rank.returncode for rank in ended] == [0, 0], ended
    assert [rank.output.splitlines()[-1] for rank in ended] == ["sealed at step 4, REQUEUE at step 6"] * 2
