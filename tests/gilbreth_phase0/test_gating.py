"""What rank 0 does with a policy that was evaluated, without training one: the checkpoints are folders with weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gilbreth_phase0 import gating
from gilbreth_phase0.evaluate import EvaluationResult, summary
from gilbreth_phase0.gating import Gating, check_rules, check_seeds
from gilbreth_phase0.job import Job
from gilbreth_phase0.kept_bundles import BUNDLE
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.rollout import Episode
from gilbreth_phase0.stop import Stop, StopProtocol
from gilbreth_phase0.trials import Stopped
from tracking import ExperimentTracker, checkpoints
from tracking.errors import UserError
from tracking.files import read_json
from tracking.gate import ModelManagement, read_rules
from tracking.identity import claim_identity
from tracking.models.best import read_outcomes
from tracking.store import Store
from tracking.store.root import VARIABLE

from model_store import save_bundle

SEEDS = range(100, 120)


class Run:
    """A run folder with checkpoints whose policies succeed so often on any 20 seeds."""

    def __init__(self, folder: Path, rules: ModelManagement, last: int = 1000) -> None:
        folder.mkdir()
        claim_identity(folder, None, folder.name, "vla-lego", None)
        self.folder, self.last = folder, last
        self.rules = rules
        self.successes: dict[str, list[int]] = {}
        self.asked: list[tuple[str, int]] = []
        self.stops = False

    def consider(self, step: int, *successes: int, seeds: range = SEEDS) -> None:
        """As `Gating.consider`; the numbers are the successes in each trial in turn, the last one in all further."""
        bundle = self.folder / BUNDLE
        if bundle.exists():
            bundle.rename(self.folder / f"old-{len(list(self.folder.iterdir()))}")
        save_bundle(bundle, float(step))
        if successes:
            self.successes[str(step)] = list(successes)
        checkpoint = self.folder / "checkpoints" / checkpoints.step_tag(step)
        checkpoint.mkdir(parents=True, exist_ok=True)
        job = Job(self.folder, Ranks(), "cpu", None, StopProtocol(0), None)
        of = Gating(
            policy=None,  # type: ignore[arg-type]
            policy_type="act",
            datasets=(Path("data/lift"),),
            facts={"dataset_episodes": 30},
            seeds=seeds,
            rules=self.rules,
            best_rule="paired",
            last_step=self.last,
            job=job,
            tracker=ExperimentTracker(enabled=False, tags=["gating"]),
        )
        of.decide(step, checkpoint, self.tries)

    def tries(self, bundle: Path, seeds: Sequence[int]) -> EvaluationResult:
        import numpy as np
        from safetensors.numpy import load_file

        step = str(int(np.asarray(load_file(bundle / "model.safetensors")["w"])[0]))
        self.asked.append((step, seeds[0]))
        if self.stops:
            raise Stopped(Stop.REQUEUE)
        known = self.successes[step]
        good = known.pop(0) if len(known) > 1 else known[0]
        return summary(Episode(seed, n < good, 50, 10.0) for n, seed in enumerate(seeds))

    def mark(self) -> str:
        return (self.folder / "checkpoints" / "best").read_text()


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "models"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    return Store(tmp_path / "models")


def aliases(store: Store) -> dict[str, list[str]]:
    state = store.state("act-lift")
    return {f"v{number}": state.aliases_of(number) for number in state.versions}


def test_only_what_passes_gets_a_name(store: Store, tmp_path: Path) -> None:
    rules = read_rules({"model_management": {"upload_periodic_every": 0, "keep_last_n": 2}})
    run = Run(tmp_path / "run", rules)
    run.consider(100, 4)
    assert aliases(store) == {"v0": ["latest", "best", "step-100"]}
    run.consider(200, 3)
    assert (run.mark(), len(aliases(store))) == ("step-00000100", 1)
    run.consider(300, 16)
    assert (run.mark(), aliases(store)["v1"]) == ("step-00000300", ["latest", "best", "step-300"])
    assert [path.name for path in (run.folder / "best").iterdir()] == ["step-00000300"]
    run.consider(1000, 15)
    assert aliases(store) == {
        "v0": ["step-100"],
        "v1": ["best", "step-300"],
        "v2": ["latest", "final", "step-1000"],
    }
    facts = store.state("act-lift").versions[2].metadata
    assert (facts["success_rate"], facts["keep_last_n"], facts["dataset_episodes"]) == (0.75, 2, 30)
    assert facts["comparison"] == {"is_best": False, "why": "it is not its run's best"}
    assert facts["gate"][-1] == "the last one" and facts["selected_up_to_seed"] == 119
    assert read_json(run.folder / "evaluation.json")["trained"]["successes"] == 15
    # Any of them can be compared by hand.
    assert sum(read_outcomes(run.folder / "evaluations" / "step-00000300.json").values()) == 16


def test_what_looks_better_is_tried_again_beside_the_best_one(store: Store, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", ModelManagement())
    run.consider(100, 10, 4)
    run.consider(200, 12)
    assert run.asked[1:] == [("200", 100), ("200", 120), ("100", 120)]
    assert (run.mark(), aliases(store)["v1"]) == ("step-00000200", ["latest", "best", "step-200"])
    run.consider(300, 14, 12)
    assert run.asked[4:] == [("300", 100), ("300", 140), ("200", 140)]
    assert run.mark() == "step-00000200"


def test_an_attempt_that_was_ended_in_it_is_made_up_for(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN ends in the evaluation, in the confirmation and at the publication THEN each step is decided once."""
    run = Run(tmp_path / "run", ModelManagement())
    run.stops = True
    with pytest.raises(Stopped):
        run.consider(100, 10)
    run.stops = False
    run.consider(100, 10, 4)
    asked = len(run.asked)
    run.consider(100)
    assert len(run.asked) == asked and list(aliases(store)) == ["v0"], "all of it was done"

    with monkeypatch.context() as patch:
        patch.setattr(gating, "publish_policy", ends)
        with pytest.raises(KeyboardInterrupt):
            run.consider(200, 12)
    assert run.asked[asked:] == [("200", 100), ("200", 120), ("100", 120)]
    asked = len(run.asked)
    run.consider(200)
    assert len(run.asked) == asked, "neither the evaluation nor the confirmation is done a second time"
    assert (run.mark(), aliases(store)["v1"]) == ("step-00000200", ["latest", "best", "step-200"])
    # Trained again on other ranks, the weights of a step are not quite the same.
    (run.folder / "evaluations" / "step-00000200.json").write_text('{"weights": "others", "complete": true}')
    run.consider(200)
    assert len(run.asked) == asked + 1


def ends(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_what_the_conditions_refuse_stays_here(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    form = {"upload_conditions": {"min_success_rate": 0.6, "mean_length": {"max": 60}}}
    run = Run(tmp_path / "run", read_rules({"model_management": form}))
    run.consider(500, 10)
    assert not store.exists
    run.consider(1000, 11)
    assert aliases(store) == {"v0": ["latest", "final", "step-1000"]}
    assert store.state("act-lift").versions[0].target is None
    said = capsys.readouterr().out
    assert "step 1000: not uploaded: success_rate is 0.55, at least 0.6 is asked for" in said
    assert "python -m tracking.models push act-lift:v0" in said


def test_another_runs_best_is_tried_here(store: Store, tmp_path: Path) -> None:
    """GIVEN a run whose first policy only looks better than another run's best THEN both are tried on fresh seeds."""
    first, second = (Run(tmp_path / name, ModelManagement()) for name in ("a", "b"))
    first.consider(100, 10)
    second.successes["100"] = [4]
    second.consider(200, 12)
    assert second.asked == [("200", 100), ("200", 120), ("100", 120)]
    assert aliases(store)["v1"] == ["latest", "best", "step-200"]
    first.consider(300, 20)
    assert aliases(store)["v2"] == ["latest", "best", "step-300"], "8 of 20 more than the other run's"
    assert store.state("act-lift").versions[2].metadata["comparison"]["against"] == "act-lift:v1"


def test_without_an_evaluation(store: Store, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", ModelManagement())
    run.consider(1000, seeds=range(0))
    assert (run.asked, aliases(store)) == ([], {"v0": ["latest", "best", "final", "step-1000"]})


def test_a_store_that_cannot_be_written_does_not_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "thesis.tex").touch()
    monkeypatch.setenv(VARIABLE, str(tmp_path / "models"))
    run = Run(tmp_path / "run", ModelManagement())
    run.consider(1000, 10)
    said = capsys.readouterr().out
    assert "warning: the policy is not in the model store: " in said and "thesis.tex" in said
    assert f"python -m tracking.models publish {run.folder / BUNDLE} act-lift --alias final" in said
    (tmp_path / "models" / "thesis.tex").unlink()
    run.consider(1000, 10)
    assert set(aliases(Store(tmp_path / "models"))["v0"]) == {"latest", "final", "best", "step-1000"}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"best_model_metric": "eval/sucess_rate"}, "unknown model_management.best_model_metric 'eval/sucess_rate'"),
        ({"best_model_metric": "mean_length"}, "valid: reward_per_step, success_rate"),
        ({"upload_conditions": {"min_sucess_rate": 0.5}}, "'sucess_rate'. Did you mean 'success_rate'"),
    ],
)
def test_rules_about_what_is_not_measured(form: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        check_rules(read_rules({"model_management": form}))
    assert message in str(error.value)
    check_rules(read_rules({"model_management": {"best_model_metric": "eval/reward_per_step"}}))


def test_other_seeds_in_the_same_run(store: Store, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", ModelManagement())
    check_seeds(run.folder, run.rules, SEEDS)
    run.consider(100, 10)
    check_seeds(run.folder, run.rules, SEEDS)
    with pytest.raises(UserError, match=r"20 seeds from 100 on.*\n  next: --eval-seed 100 --eval-episodes 20"):
        check_seeds(run.folder, run.rules, range(100, 130))
