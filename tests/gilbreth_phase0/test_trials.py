"""Trials that all ranks share, where they fail and where they are stopped; that they work is `test_gated_run`'s."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rank_pairs import PROGRAMS, run_pair


@pytest.mark.train
def test_a_fault_and_a_stop_are_the_same_on_all_ranks(tmp_path: Path) -> None:
    """GIVEN a bundle that nobody can load, and a signal to rank 1 THEN both ranks go on, refuse and stop together."""
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "model.safetensors").touch()
    ended = run_pair([PROGRAMS / "trials_together.py", tmp_path], timeout=300)
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].output + ended[1].output
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert first[0].startswith(f"{tmp_path / 'broken'} could not be tried: rank 0: UserError: ")
    assert first[1:] == ["no", "REQUEUE"]
