"""What Slurm says about jobs: asked of the lab, of commands that are missing, and of a controller that is silent."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.lab import Lab
from tracking.metadata import slurm_facts
from tracking.sync.slurm import UNKNOWN, JobState, ending, job_states

from support import wait_until

WORDS = ("pending", "running", "completed", "failed", "cancelled")


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        (JobState("running", 0), None),
        (JobState("pending", 0), None),
        (JobState("running"), None),
        (JobState("running", 1), "preempted"),
        (JobState("pending", 1), "preempted"),
        (JobState("preempted", 0), "preempted"),
        (JobState("timeout", 0), "preempted"),
        (JobState("completed", 0), "crashed"),
        (JobState("failed", 0), "crashed"),
        (JobState("cancelled", 0), "crashed"),
        (JobState("node_fail", 0), "crashed"),
        (JobState("out_of_memory", 0), "crashed"),
        (UNKNOWN, None),
        (JobState("failed", 0, "elsewhere"), None),
        (JobState("failed", 0, "lab"), "crashed"),
    ],
)
def test_what_a_segment_without_an_end_came_to(state: JobState, expected: str | None) -> None:
    first = slurm_facts({"SLURM_JOB_ID": "12", "SLURM_CLUSTER_NAME": "lab"})
    assert ending(first, state) == expected
    assert ending(None, state) is None


def test_a_later_attempt_is_compared_with_its_own_count() -> None:
    second = slurm_facts({"SLURM_JOB_ID": "12", "SLURM_RESTART_COUNT": "1"})
    assert ending(second, JobState("running", 1)) is None
    assert ending(second, JobState("pending", 2)) == "preempted"


@contextmanager
def only(tmp_path: Path, *commands: str) -> Iterator[None]:
    """Leaves no other Slurm command on the PATH of this process."""
    folder = tmp_path / "commands"
    folder.mkdir()
    for name in commands:
        program = shutil.which(name)
        assert program is not None
        (folder / name).symlink_to(program)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(folder))
        yield


def test_without_slurm_nothing_is_known(tmp_path: Path) -> None:
    with only(tmp_path):
        assert job_states(["1", "2"]) == {"1": UNKNOWN, "2": UNKNOWN}
    assert job_states([]) == {}


def client(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def submit(tmp_path: Path, text: str, *options: str) -> str:
    return client("sbatch", "--parsable", f"--output={tmp_path}/%j.log", *options, f"--wrap={text}")


def wait_for(job: str, word: str) -> JobState:
    def state() -> JobState | None:
        now = job_states([job])[job]
        return now if now.word == word else None

    return wait_until(state, 60, f"job {job} to be {word}", interval=0.2)


@pytest.fixture
def in_lab(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """This process talks to the lab."""
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    for name, value in lab.variables().items():
        monkeypatch.setenv(name, value)
    return lab


@pytest.fixture
def jobs(in_lab: Lab, tmp_path: Path) -> Iterator[dict[str, str]]:
    """A job in each of `WORDS`."""
    made = {
        "pending": submit(tmp_path, "true", "--hold"),
        "running": submit(tmp_path, "sleep 300"),
        "completed": submit(tmp_path, "true"),
        "failed": submit(tmp_path, "exit 3"),
        "cancelled": submit(tmp_path, "true", "--hold"),
    }
    client("scancel", made["cancelled"])
    try:
        for word, job in made.items():
            wait_for(job, word)
        yield made
    finally:
        client("scancel", made["pending"], made["running"])


@pytest.mark.slurm
def test_many_jobs_are_asked_for_at_once(jobs: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN variables that would hide jobs WHEN all are asked for THEN each has its state, and strangers none."""
    monkeypatch.setenv("SQUEUE_PARTITION", "short")
    monkeypatch.setenv("SQUEUE_STATES", "PENDING")
    states = job_states([*jobs.values(), "987654", "; touch x"])
    assert {word: states[job] for word, job in jobs.items()} == {word: JobState(word, 0, "lab") for word in WORDS}
    assert states["987654"] == states["; touch x"] == UNKNOWN


@pytest.mark.slurm
def test_accounting_knows_what_squeue_has_forgotten(jobs: dict[str, str], tmp_path: Path) -> None:
    with only(tmp_path, "sacct"):
        # Accounting lags by some seconds.
        for word, job in jobs.items():
            assert wait_for(job, word) == JobState(word, None, "lab")


@pytest.mark.slurm
def test_scontrol_answers_where_squeue_does_not(jobs: dict[str, str], tmp_path: Path) -> None:
    with only(tmp_path, "scontrol"):
        states = job_states([*jobs.values(), "987654"])
    assert {word: states[job] for word, job in jobs.items()} == {word: JobState(word, 0) for word in WORDS}
    assert states["987654"] == UNKNOWN


@pytest.mark.slurm
def test_elements_of_an_array_are_told_apart(in_lab: Lab, tmp_path: Path) -> None:
    """GIVEN an array, whose last element has the array's own number WHEN asked by either way THEN each is its own."""
    array = submit(
        tmp_path, f"echo $SLURM_JOB_ID > {tmp_path}/$SLURM_ARRAY_TASK_ID; exit $SLURM_ARRAY_TASK_ID", "--array=0-1"
    )
    wait_for(array, "failed")
    files = [tmp_path / "0", tmp_path / "1"]
    good, bad = (file.read_text().strip() for file in files)
    wait_for(good, "completed")
    assert bad == array
    with only(tmp_path, "scontrol"):
        assert {job: state.word for job, state in job_states([good, bad]).items()} == {good: "completed", bad: "failed"}


@pytest.mark.slurm
def test_a_requeued_job_has_ended_its_segment(in_lab: Lab, tmp_path: Path) -> None:
    job = submit(tmp_path, f"env >> {tmp_path}/environment; sleep 300", "--requeue")
    try:
        wait_for(job, "running")
        environment = tmp_path / "environment"
        wait_until(environment.exists, 30, "the job's environment")
        first = slurm_facts(dict(line.partition("=")[::2] for line in environment.read_text().splitlines()))
        assert first is not None
        assert first["job_id"] == job
        assert ending(first, job_states([job])[job]) is None
        client("scontrol", "requeue", job)
        waiting = wait_for(job, "pending")
        assert waiting == JobState("pending", 1, "lab")
        assert waiting.is_alive
        assert ending(first, waiting) == "preempted"
        assert wait_for(job, "running").restarts == 1
    finally:
        client("scancel", job)
    over = wait_for(job, "cancelled")
    assert ending({**first, "restart_count": 1}, over) == "crashed"


@pytest.mark.slurm
def test_a_silent_controller_is_not_waited_for(in_lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a controller and an accounting that take the question and say nothing THEN nothing is known, in time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        conf = Path(os.environ["SLURM_CONF"]).read_text()
        port = silent.getsockname()[1]
        conf, changed = re.subn(r"^(SlurmctldPort|AccountingStoragePort)=.*$", rf"\1={port}", conf, flags=re.MULTILINE)
        assert changed == 2
        (tmp_path / "slurm.conf").write_text(conf)
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
        began = time.monotonic()
        assert job_states(["1", "2"], timeout=1.0) == {"1": UNKNOWN, "2": UNKNOWN}
        assert 0.5 < time.monotonic() - began < 5
