"""When a run's policy takes the alias `best`, and that no other run's better one loses it unseen."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gilbreth_phase0.publishing import BEST, COMPARISON, LAST_SEED, Candidate, Trials, judge_best, publish_policy
from gilbreth_phase0.trials import TrialError
from tracking.gate import fresh_seeds
from tracking.store import Store, publish
from tracking.store.resolve import move_aliases
from tracking.store.root import VARIABLE

from model_store import save_bundle

HAND = "to make it the best: python -m tracking.models alias act-lift:latest best"


def outcomes(successes: int, trials: int = 20, first: int = 100) -> dict[int, float]:
    return {first + number: float(number < successes) for number in range(trials)}


def facts(successes: int, **more: Any) -> dict[str, Any]:
    found = outcomes(successes)
    return {"eval_seeds": list(found), "eval_outcomes": list(found.values()), **more}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "models"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return Store(tmp_path / "models")


def put_best(store: Store, metadata: dict[str, Any], value: float = -1.0) -> int:
    bundle = save_bundle(store.root.parent / f"best{value}", value)
    return publish(store, bundle, "act-lift", BEST, metadata, mirror=False).version.number


def candidate(store: Store, found: dict[int, float], value: float = 1.0) -> Candidate:
    folder = store.root.parent / f"candidate{value}"
    bundle = folder if folder.exists() else save_bundle(folder, value)
    return Candidate(store.root.parent / "run", bundle, "act", "lift", 100, found)


class Tried:
    """What policies get, by their folder's name, or for a version of the store by `best`."""

    def __init__(self, **rates: int) -> None:
        self.rates = rates
        self.asked: list[tuple[str, int, int]] = []

    def trials(self) -> Trials:
        return Trials(self.on, lambda used: fresh_seeds([119, *used], 20))

    def on(self, bundle: Path, seeds: Sequence[int]) -> dict[int, float]:
        who = "new" if bundle.name.startswith("candidate") else "best"
        self.asked.append((who, seeds[0], seeds[-1]))
        return outcomes(self.rates[who], len(seeds), seeds[0])


def test_the_first_one_is_the_best(store: Store) -> None:
    assert judge_best(store, candidate(store, {})).why == "it is the first"
    put_best(store, {})
    other = replace(candidate(store, outcomes(3)), policy="diffusion")
    assert judge_best(store, other).is_best


def test_another_takes_it_only_when_it_is_better_beyond_chance(store: Store) -> None:
    put_best(store, facts(8))
    clear = judge_best(store, candidate(store, outcomes(18)))
    assert clear.is_best and clear.why.startswith("against act-lift:v0: better on 10 and worse on 0 of 20 seeds")
    assert (clear.against, clear.facts["outcomes_of_the_other"]) == (0, list(outcomes(8).values()))
    unclear = judge_best(store, candidate(store, outcomes(10)))
    assert not unclear.is_best and "which may be chance" in unclear.why
    assert judge_best(store, candidate(store, outcomes(8))).is_best is False
    naive = judge_best(store, candidate(store, outcomes(9)), rule="naive")
    assert naive.is_best and "naive" in naive.why


@pytest.mark.parametrize(("new", "is_best"), [(16, True), (9, False)])
def test_what_may_be_chance_is_tried_on_seeds_that_nobody_has_seen(store: Store, new: int, is_best: bool) -> None:
    seen = {LAST_SEED: 159, COMPARISON: {"fresh_seeds": [170, 171]}}
    put_best(store, facts(8, **seen))
    tried = Tried(new=new, best=8)
    done, why = publish_policy(candidate(store, outcomes(10)), ["final"], may_be_best=True, trials=tried.trials())
    assert tried.asked == [("new", 172, 191), ("best", 172, 191)]
    assert (store.state("act-lift").aliases[BEST] == done.version.number) is is_best
    assert "on fresh seeds better on" in why
    told = done.version.metadata[COMPARISON]
    assert told["is_best"] is is_best and told["why"] == why
    assert told["against"] == "act-lift:v0" and told["fresh_seeds"] == list(range(172, 192))
    assert (sum(told["fresh_outcomes"]), sum(told["fresh_outcomes_of_the_other"])) == (new, 8)
    assert sum(told["outcomes_of_the_other"]) == 8 and sum(done.version.metadata["eval_outcomes"]) == 10


def test_what_cannot_be_compared_stays_as_it_is_and_the_way_by_hand_is_said(store: Store) -> None:
    put_best(store, facts(8))
    assert judge_best(store, candidate(store, {})).why == f"it was not evaluated; {HAND}"
    other_seeds = judge_best(store, candidate(store, outcomes(20, first=7)))
    assert not other_seeds.is_best and "different seeds" in other_seeds.why and other_seeds.why.endswith(HAND)
    put_best(store, {"success_rate": 0.5}, -2.0)
    assert judge_best(store, candidate(store, outcomes(20))).why == f"act-lift:v1 was not evaluated; {HAND}"


def test_a_best_one_that_was_not_tried_on_these_seeds_is_tried_here(store: Store) -> None:
    put_best(store, {"success_rate": 0.5})
    tried = Tried(new=20, best=3)
    assert judge_best(store, candidate(store, outcomes(20)), trials=tried.trials()).is_best
    assert tried.asked == [("best", 100, 119)]
    reward = replace(candidate(store, outcomes(20)), metric="reward_per_step")
    put_best(store, facts(8), -2.0)
    judge_best(store, reward, trials=tried.trials())
    assert len(tried.asked) == 2, "its successes say nothing of its rewards"

    def fails(bundle: Path, seeds: Sequence[int]) -> dict[int, float]:
        raise TrialError("rank 1: KeyError: 'observation.images.top'")

    found = judge_best(store, reward, trials=Trials(fails, lambda used: range(0)))
    assert (found.is_best, found.why) == (False, f"rank 1: KeyError: 'observation.images.top'; {HAND}")


def test_a_better_one_that_comes_meanwhile_keeps_the_alias(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN another run that moves `best` while this one is being judged THEN it is judged again, against that."""
    put_best(store, facts(8))
    tried = Tried(new=16, best=8)

    class Meanwhile(Tried):
        def on(self, bundle: Path, seeds: Sequence[int]) -> dict[int, float]:
            if not self.asked:
                put_best(store, facts(20), -2.0)
            return super().on(bundle, seeds)

    tried = Meanwhile(new=16, best=8)
    done, why = publish_policy(candidate(store, outcomes(10)), [], may_be_best=True, trials=tried.trials())
    assert "'best' was at act-lift:v0 and is at act-lift:v1 meanwhile" in capsys.readouterr().out
    assert why.startswith("against act-lift:v1: better on 0 and worse on 10")
    state = store.state("act-lift")
    assert (done.version.number, state.aliases[BEST], state.aliases["latest"]) == (2, 1, 2)
    assert len(list((store.root / "names/act-lift/files").iterdir())) == 3, "what was not published is not left"


def test_runs_that_finish_at_once_leave_the_best_one_best(store: Store) -> None:
    """GIVEN eight runs at once, each better beyond chance than the one before it THEN the last one has `best`."""
    rates = [0, 7, 14, 21, 28, 35, 42, 49]
    given = [candidate(store, outcomes(rate, 50), float(rate)) for rate in rates]
    gate = threading.Barrier(len(rates))

    def work(one: Candidate) -> None:
        gate.wait()
        publish_policy(one, [], may_be_best=True)

    threads = [threading.Thread(target=work, args=(one,)) for one in given]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    state = store.state("act-lift")
    successes = {number: sum(version.metadata["eval_outcomes"]) for number, version in state.versions.items()}
    assert successes[state.aliases[BEST]] == 49
    moves = [successes[number] for number in state.been[BEST]]
    assert moves == sorted(moves) and len(state.versions) == 8


def test_done_again_it_is_the_same_version(store: Store) -> None:
    one = candidate(store, outcomes(10))
    first, second = (publish_policy(one, ["final"], may_be_best=True)[0] for _ in range(2))
    assert (str(first), str(second), second.is_new) == ("act-lift:v0", "act-lift:v0", False)
    assert set(store.state("act-lift").aliases) == {"latest", "final", "best", "step-100"}
    move_aliases(store, "act-lift", {BEST: None})
    publish_policy(one, [], may_be_best=False)
    assert BEST not in store.state("act-lift").aliases


def test_what_stays_here_goes_to_wandb_when_it_passes_later(store: Store) -> None:
    one = candidate(store, outcomes(10))
    assert publish_policy(one, [], may_be_best=False, mirror=False)[0].intent is None
    assert store.state("act-lift").versions[0].target is None
    assert publish_policy(one, [], may_be_best=False)[0].intent is not None
    assert store.state("act-lift").versions[0].target == "vla-lego"
