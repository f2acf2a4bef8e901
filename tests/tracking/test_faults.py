"""Every fault, with the real client and the loopback W&B: nothing lost, nothing twice, training held at most once."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest

from tracking import read_journal

from fault_trials import HALF, TRIALS, Outcome, play

pytestmark = pytest.mark.wandb

FINISH_S = 12.0
# Other work on the machine must not decide a test; the limits of the documentation are measured by the benchmark.
PATIENCE_S = 3.0

# A trial waits most of its time (for a server that does not answer, for W&B's service), so some go at once.
AT_ONCE = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def trials(folder: Path) -> Iterator[dict[str, Future[Outcome]]]:
    """Every trial, under way or played."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {
            title: pool.submit(play, trial, folder / str(number), FINISH_S)
            for number, (title, trial) in enumerate(TRIALS.items())
        }


def run_dir(folder: Path, title: str) -> Path:
    return folder / str(list(TRIALS).index(title)) / "run"


def check_nothing_lost(outcome: Outcome) -> None:
    assert (outcome.arrived, outcome.twice) == (outcome.logged, 0), outcome


def check_not_held(outcome: Outcome) -> None:
    assert outcome.held["start"] < 3.0 + PATIENCE_S
    assert outcome.held["longest"] < 0.5
    assert outcome.held["finish"] < FINISH_S + PATIENCE_S


@pytest.mark.parametrize("title", [title for title in TRIALS if "SIG" not in title and "full" not in title])
def test_no_fault_loses_a_row_or_sends_one_twice(trials: dict[str, Future[Outcome]], title: str) -> None:
    outcome = trials[title].result()
    check_nothing_lost(outcome)
    check_not_held(outcome)
    assert outcome.logged == 2 * HALF + (3 if "odd" in title else 0)
    replaced = [f"journal-000.jsonl: {HALF} rows were replaced by segment 1"] if "second process" in title else []
    assert outcome.problems == replaced
    assert ("Another process continues this run" in outcome.said) == ("second process" in title)


@pytest.mark.parametrize("title", [title for title in TRIALS if "SIG" in title])
def test_a_killed_training_leaves_every_row_that_it_logged(
    trials: dict[str, Future[Outcome]], folder: Path, title: str
) -> None:
    outcome = trials[title].result()
    check_nothing_lost(outcome)
    assert HALF <= outcome.logged < 2 * HALF
    assert read_journal(run_dir(folder, title)).end is None


def test_a_disk_with_room_again_loses_nothing_and_is_warned_of_once(trials: dict[str, Future[Outcome]]) -> None:
    outcome = trials["disk full, until before finish"].result()
    check_nothing_lost(outcome)
    check_not_held(outcome)
    assert outcome.logged == outcome.calls == 2 * HALF
    assert outcome.said.count("cannot be written: File too large") == 1


def test_a_disk_that_stays_full_costs_rows_and_no_training(trials: dict[str, Future[Outcome]]) -> None:
    outcome = trials["disk full, in the middle"].result()
    assert HALF < outcome.logged < outcome.calls == 2 * HALF
    assert (outcome.arrived, outcome.twice) == (outcome.logged, 0)
    check_not_held(outcome)
    assert outcome.said.count("cannot be written: File too large") == 1
    assert "bytes could not be written" in outcome.said
    assert f"{outcome.logged} of {2 * HALF} rows at " in outcome.said
    assert outcome.held["finish"] < FINISH_S
