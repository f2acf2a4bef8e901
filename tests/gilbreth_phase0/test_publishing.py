"""When a run's policy takes the alias `best`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gilbreth_phase0.publishing import judge_best
from tracking.store import Store, publish

from model_store import save_bundle


def outcomes(successes: int, trials: int = 20, first: int = 100) -> dict[str, Any]:
    return {
        "eval_seeds": list(range(first, first + trials)),
        "eval_outcomes": [int(number < successes) for number in range(trials)],
    }


def store_with(tmp_path: Path, facts: dict[str, Any]) -> Store:
    store = Store(tmp_path / "models")
    publish(store, save_bundle(tmp_path / "b"), "act-lift", "best", facts, mirror=False)
    return store


def test_the_first_one_is_the_best(tmp_path: Path) -> None:
    assert judge_best(Store(tmp_path / "none"), "act-lift", {}) == (True, "it is the first")
    assert judge_best(store_with(tmp_path, {}), "other", outcomes(3)) == (True, "it is the first")


def test_another_takes_it_only_when_it_is_better_beyond_chance(tmp_path: Path) -> None:
    store = store_with(tmp_path, outcomes(8))
    is_best, why = judge_best(store, "act-lift", outcomes(18))
    assert is_best and why.startswith("against act-lift:v0: better on 10 and worse on 0 of 20 seeds")
    is_best, why = judge_best(store, "act-lift", outcomes(10))
    assert not is_best and "which may be chance" in why
    assert judge_best(store, "act-lift", outcomes(8))[0] is False


def test_what_cannot_be_compared_stays_as_it_is_and_the_way_by_hand_is_said(tmp_path: Path) -> None:
    store = store_with(tmp_path, outcomes(8))
    hand = "to make it the best: python -m tracking.models alias act-lift:latest best"
    assert judge_best(store, "act-lift", {}) == (False, f"it was not evaluated; {hand}")
    is_best, why = judge_best(store, "act-lift", outcomes(20, first=7))
    assert not is_best and "different seeds" in why and why.endswith(hand)
    other = store_with(tmp_path / "other", {"success_rate": 0.5})
    assert judge_best(other, "act-lift", outcomes(20)) == (False, f"act-lift:v0 was not evaluated; {hand}")
