"""A run of three attempts in the lab, requeued and rolled back to a checkpoint each time, and what W&B makes of it."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from launch.lab import Lab
from tracking import read_journal

from support import wait_until
from sync_site import PROJECT, Site
from wandb_server import WandbServer
from wandb_server.client import WandbClient

pytestmark = [pytest.mark.slurm, pytest.mark.wandb, pytest.mark.timeout(300)]

PROGRAM = Path(__file__).parent / "programs" / "rolls_back.py"
NAME = "requeued"
INTERVAL_S = 2.0


@pytest.fixture
def site(lab: Lab, wandb_server: WandbServer, wandb_client: WandbClient, tmp_path: Path) -> Iterator[Site]:
    """A login node and compute nodes of the lab, with one W&B."""
    with Site(tmp_path / "site", wandb_server, wandb_client, variables=lab.variables()) as site:
        yield site


def slurm(site: Site, *command: str) -> str:
    done = subprocess.run(command, env=site.environment(), capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


@contextmanager
def job(site: Site) -> Iterator[str]:
    """The job of `rolls_back.py`; it is cancelled at the end."""
    options = ["--parsable", "--requeue", "--open-mode=append", f"--output={site.folder}/job.log"]
    command = f"exec '{sys.executable}' '{PROGRAM}' '{site.root / NAME}'"
    number = slurm(site, "sbatch", *options, f"--wrap={command}")
    try:
        yield number
    finally:
        slurm(site, "scancel", number)


@contextmanager
def states_of(site: Site) -> Iterator[list[str]]:
    """Every state that the run has on the server, in order, each as often as it was entered."""
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        ends = False
        while not ends:
            ends = over.wait(0.05)  # once more after that
            state = site.state(NAME)
            if not seen or seen[-1] != state:
                seen.append(state)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield seen
    finally:
        over.set()
        thread.join()


def trained(site: Site) -> list[tuple[int, int]]:
    """Attempt and step of everything that was trained."""
    path = site.root / f"{NAME}.trained.jsonl"
    return [tuple(json.loads(line)) for line in path.read_text().splitlines()] if path.exists() else []


def wait_for_step(site: Site, attempt: int, step: int) -> None:
    def there() -> bool:
        return (attempt, step) in trained(site)

    try:
        wait_until(there, 60, f"step {step} of attempt {attempt}")
    except AssertionError as error:
        log = site.folder / "job.log"
        raise AssertionError(f"{error}; the job says:\n{log.read_text() if log.exists() else '(nothing)'}") from None


def test_three_attempts_are_one_run(site: Site) -> None:
    """GIVEN a daemon beside a job that is requeued twice, each time past its checkpoint WHEN it is done THEN W&B has
    one run that holds each step of each metric once, as the journal does, and that was not shown as finished before.
    """
    site.daemon(interval=INTERVAL_S)
    with job(site) as number, states_of(site) as states:
        for attempt, last in ((0, 50), (1, 90)):
            wait_for_step(site, attempt, last)
            # All of it arrives while the attempt goes on.
            site.wait_rows(NAME, read_journal(site.root / NAME).next_row)
            wait_until(lambda: site.state(NAME) == "running", 30, f"attempt {attempt} to be shown as running")
            slurm(site, "scontrol", "requeue", number)
        wait_for_step(site, 2, 120)
        site.wait_whole([NAME])
        wait_until(lambda: site.state(NAME) == "finished", 60, f"the run's end: {site.said()}")
    assert states.index("finished") == len(states) - 1, states
    assert set(states) <= {"absent", "running", "preempting", "preempted", "finished"}, states

    steps = Counter(step for _, step in trained(site))
    assert sorted(steps) == list(range(1, 121))
    assert [step for step, times in steps.items() if times == 2] == [*range(41, 51), *range(81, 91)]
    assert len(read_journal(site.root / NAME).segments) == 3

    runs = site.server.runs(site.server.entity, PROJECT)
    assert len(runs) == 1
    rows = site.server_rows(NAME)
    for metric, expected in {
        "loss/total": range(1, 121),
        "lr": range(1, 121),
        "eval/success": range(10, 121, 10),
    }.items():
        assert [row["train/step"] for row in rows if metric in row] == list(expected)
    tally = site.tally(NAME)
    assert tally.is_whole, tally
    assert (tally.expected, tally.there, tally.state) == (len(rows), len(rows), "finished")


def test_after_the_last_attempt_a_push_by_hand_adds_nothing(site: Site) -> None:
    """GIVEN no daemon while the job ran WHEN the run is pushed twice afterwards THEN it is there once."""
    with job(site) as number:
        for attempt, last in ((0, 50), (1, 90)):
            wait_for_step(site, attempt, last)
            slurm(site, "scontrol", "requeue", number)
        wait_for_step(site, 2, 120)
        wait_until(
            lambda: "COMPLETED" in slurm(site, "squeue", "-h", "-t", "all", "-j", number, "-o", "%T"), 60, "the end"
        )
    assert site.state(NAME) == "absent"
    for _ in range(2):
        command = [sys.executable, "-m", "tracking.sync", "run", str(site.root / NAME)]
        done = subprocess.run(
            command, cwd=site.folder, env=site.environment(), capture_output=True, text=True, check=False, timeout=120
        )
        assert done.returncode == 0, done.stdout + done.stderr
        tally = site.tally(NAME)
        assert tally.is_whole, tally
        assert tally.state == "finished"
