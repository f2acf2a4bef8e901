"""Every fault of pushing runs from a login node: nothing lost, nothing twice, every state right."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from sync_play import Outcome
from sync_trials import TRIALS, play

pytestmark = pytest.mark.wandb

# A trial waits most of its time for a server that does not answer, so some go at once.
AT_ONCE = 6


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Outcome]]]:
    """Every trial, under way or played."""
    folder = tmp_path_factory.mktemp("sync")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield {title: pool.submit(play, title, folder / str(number)) for number, title in enumerate(TRIALS)}


@pytest.mark.parametrize("title", TRIALS)
def test_no_fault_loses_a_row_or_shows_one_twice(trials: dict[str, Future[Outcome]], title: str) -> None:
    outcome = trials[title].result()
    assert outcome.problems == []
    assert outcome.is_good, outcome.tallies
