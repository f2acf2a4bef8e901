"""Asking the lab's Slurm: many jobs at once, with accounting that is absent, hangs or fails, and with nobody there."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from launch import slurm
from launch.follow import slurm_state
from launch.lab import Lab
from launch.slurm import JobState, SlurmRefused, SlurmSilent, run_slurm, states

from support import wait_until

Put = Callable[[str, str], None]


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts a command of the tests first on the PATH."""
    folder = tmp_path / "first"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setattr(slurm, "_accounting", slurm._Patience())

    def write(name: str, text: str) -> None:
        (folder / name).write_text(f"#!/bin/bash\necho x >> {folder}/{name}.calls\n{text}\n")
        (folder / name).chmod(0o755)

    return write


def calls(tmp_path: Path, name: str) -> int:
    file = tmp_path / "first" / f"{name}.calls"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_command_that_is_not_there_or_says_no(put: Put) -> None:
    with pytest.raises(SlurmSilent, match="no-such-command: No such file"):
        run_slurm(["no-such-command"])
    put("scancel", "echo 'scancel: error: Kill job error on job id 5: Access/permission denied' >&2; exit 1")
    with pytest.raises(SlurmRefused, match="permission denied"):
        run_slurm(["scancel", "5"])
    put("squeue", "echo 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1")
    with pytest.raises(SlurmRefused, match="Invalid job id"):
        run_slurm(["squeue", "--jobs=5"])


def test_a_silent_slurm_is_asked_again_where_that_changes_nothing(
    put: Put, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a controller that answers the third time THEN a query gets it; what is done once is done once."""
    monkeypatch.setattr(slurm, "_PAUSES", (0.05, 0.1, 0.2))
    silence = "echo 'slurm_load_jobs error: Unable to contact slurm controller (connect failure)' >&2; exit 1"
    put("squeue", f"[ $(wc -l < {tmp_path}/first/squeue.calls) -lt 3 ] && {{ {silence}; }}; echo there")
    assert run_slurm(["squeue"], tries=4) == "there\n"
    assert calls(tmp_path, "squeue") == 3
    put("sbatch", silence)
    with pytest.raises(SlurmSilent, match="scontrol ping"):
        run_slurm(["sbatch", "x.sh"])
    assert calls(tmp_path, "sbatch") == 1


def test_a_command_that_hangs_is_not_waited_for(put: Put) -> None:
    put("squeue", "exec sleep 300")
    began = time.monotonic()
    with pytest.raises(SlurmSilent, match="did not answer in time"):
        run_slurm(["squeue"], timeout=0.5)
    assert time.monotonic() - began < 5


def test_nobody_answers(put: Put, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm, "_PAUSES", (0.05,))
    for name in ("squeue", "sacct", "scontrol"):
        put(name, f"echo '{name}: error: slurm_persist_conn_open: timed out' >&2; exit 1")
    with pytest.raises(SlurmSilent):
        states(["1"], timeout=1)
    assert slurm_state("1") == "UNKNOWN"
    assert states([]) == {}
    assert states(["; touch x", "a b"]) == {}


@pytest.fixture
def in_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)


def batch(tmp_path: Path, text: str, *options: str) -> str:
    command = ["sbatch", "--parsable", f"--output={tmp_path}/%j.log", *options, f"--wrap={text}"]
    return run_slurm(command).strip()


def wait_for(job: str, state: str) -> JobState:
    def asked() -> JobState | None:
        found = states([job]).get(job)
        return found if found is not None and found.state == state else None

    return wait_until(asked, 60, f"job {job} to be {state}", interval=0.2)


@pytest.mark.slurm
def test_all_that_is_known_of_many_jobs(in_lab: None, put: Put, tmp_path: Path) -> None:
    """GIVEN jobs in five states and an array WHEN asked for at once THEN each has its facts, by any of the commands."""
    began = time.time()
    failed = batch(tmp_path, "exit 3", "--comment=gilbreth:a b|c:0a", "--job-name=it's mine")
    killed = batch(tmp_path, "kill -9 $$")
    held = batch(tmp_path, "true", "--hold", "--time=1:02:00")
    running = batch(tmp_path, "sleep 300", "--time=5")
    array = batch(tmp_path, "exit $SLURM_ARRAY_TASK_ID", "--array=0-1")
    try:
        for job, state in ((failed, "FAILED"), (killed, "FAILED"), (running, "RUNNING"), (f"{array}_1", "FAILED")):
            wait_for(job, state)
        wait_for(f"{array}_0", "COMPLETED")
        found = states([failed, killed, held, running, f"{array}_0", f"{array}_1", "987654"])
        assert "987654" not in found
        one = found[failed]
        assert (one.state, one.exit_code, one.signal, one.reason) == ("FAILED", 3, None, "NonZeroExitCode")
        assert (one.name, one.comment, one.restarts, one.cluster) == ("it's mine", "gilbreth:a b|c:0a", 0, "lab")
        assert one.submit is not None
        assert abs(one.submit - began) < 60
        assert (found[killed].exit_code, found[killed].signal) == (0, 9)
        assert (found[held].state, found[held].reason) == ("PENDING", "JobHeldUser")
        assert found[held].time_limit == 3720
        assert (found[held].start, found[held].node_list) == (None, None)
        going = found[running]
        assert going.start is not None
        assert going.end == going.start + 300
        assert going.node_list is not None
        assert (found[f"{array}_0"].state, found[f"{array}_1"].exit_code) == ("COMPLETED", 1)

        put("squeue", "exit 1")
        by_scontrol = states(list(found))
        assert {job: (state.state, state.exit_code, state.end) for job, state in by_scontrol.items()} == {
            job: (state.state, state.exit_code, state.end) for job, state in found.items()
        }
        assert by_scontrol[failed].comment == "gilbreth:a b|c:0a"
        put("scontrol", "exit 1")
        wait_until(lambda: states([failed, killed]).keys() >= {failed, killed}, 30, "accounting", interval=0.5)
        by_sacct = states([failed, "987654"])
        assert (by_sacct[failed].exit_code, by_sacct[failed].restarts) == (3, None)
        assert by_sacct["987654"].state == "UNKNOWN"
    finally:
        subprocess.run(["scancel", held, running], check=True)


@pytest.mark.slurm
@pytest.mark.parametrize(
    "answer", ["exec sleep 300", "echo 'sacct: error: Problem talking to the database' >&2; exit 1", "exit 127"]
)
def test_accounting_that_hangs_or_fails_does_not_hide_what_the_controller_knows(
    answer: str, in_lab: None, put: Put, tmp_path: Path
) -> None:
    """GIVEN a sacct that is no use THEN squeue's answer stands, in time, and sacct is left alone for a while."""
    job = batch(tmp_path, "true", "--hold")
    put("sacct", answer)
    try:
        began = time.monotonic()
        found = states([job, "987654"], timeout=2)
        assert time.monotonic() - began < 5
        assert (found[job].state, "987654" in found) == ("PENDING", False)
        states([job, "987654"], timeout=2)
        assert calls(tmp_path, "sacct") == 1
        assert slurm._accounting.pause == 15
    finally:
        subprocess.run(["scancel", job], check=True)


@pytest.mark.slurm
def test_a_controller_that_takes_the_question_and_says_nothing(
    in_lab: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        lines = Path(os.environ["SLURM_CONF"]).read_text().splitlines()
        ports = ("SlurmctldPort=", "AccountingStoragePort=")
        changed = [
            f"{line.partition('=')[0]}={silent.getsockname()[1]}" if line.startswith(ports) else line for line in lines
        ]
        assert sum(line not in lines for line in changed) == 2
        (tmp_path / "slurm.conf").write_text("\n".join(changed) + "\n")
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
        began = time.monotonic()
        with pytest.raises(SlurmSilent):
            states(["1", "2"], timeout=2)
        assert time.monotonic() - began < 10
