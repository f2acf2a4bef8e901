"""Smoke test 05 on two processes; tests/launch/test_smoke_templates.py has all five as jobs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracking import checkpoints, read_journal
from tracking.files import read_json

from rank_pairs import Ended, run_pair

pytestmark = pytest.mark.train


def smoke(run: Path, steps: int) -> list[Ended]:
    command = ["-m", "gilbreth_phase0.smoke", f"--run-dir={run}", f"--steps={steps}"]
    return run_pair(command, timeout=120)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("smoke") / "it's a run"


@pytest.fixture(scope="module")
def passed(run: Path) -> list[Ended]:
    return smoke(run, 8)


def test_it_passes_and_says_where_the_run_is(run: Path, passed: list[Ended]) -> None:
    assert [rank.returncode for rank in passed] == [0, 0], passed
    assert "2 rank(s) have met over gloo" in passed[0].output
    assert "PASSED: 8 steps on 2 rank(s), ZeRO stage 1, saved and resumed at step 4" in passed[0].output
    assert str(run) in passed[0].output.partition("PASSED")[2]
    assert "PASSED" not in passed[1].output, "once for all ranks"
    assert [row.step for row in read_journal(run).rows] == list(range(1, 9))
    assert read_json(run / "done.json")["step"] == 8
    newest = checkpoints.newest_whole(run / "checkpoints", print)
    assert newest is not None and newest[1].run_id == read_journal(run).segments[0].run_id
    assert not (run / "refused").exists()


def test_a_check_that_does_not_hold_is_named_with_its_fix(run: Path, passed: list[Ended]) -> None:
    """GIVEN the journal of a run of eight steps WHEN a smoke test of four writes into it THEN it does not pass."""
    failed = smoke(run, 4)
    assert [rank.returncode for rank in failed] == [2, 2], failed
    assert "PASSED" not in failed[0].output
    _, _, said = failed[0].output.partition("error: FAILED: ")
    check, seen, fix = said.splitlines()[:3]
    assert check == "the journal has every step once"
    assert seen.startswith("  seen: 8 rows, 8 steps of 4 (rank 0 on ")
    assert fix.startswith("  fix:  is the disk full? df -h ")
    assert "Traceback" not in failed[0].output + failed[1].output
    assert (run / "refused").exists(), "the batch script must not requeue it"
