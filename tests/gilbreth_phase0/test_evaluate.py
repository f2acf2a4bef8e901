from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from gilbreth_phase0 import evaluate, parallel
from gilbreth_phase0.contenders import Contender
from gilbreth_phase0.datasets import add_episode, create_dataset, open_metadata
from gilbreth_phase0.environments import EnvironmentArguments
from gilbreth_phase0.evaluate import Arguments, EvaluationResult, evaluate_policy, summary, write_evaluation
from gilbreth_phase0.rollout import Episode
from gilbreth_phase0.run_folder import write_done
from gilbreth_phase0.together import episodes_together
from tracking import ExperimentTracker, read_journal
from tracking.errors import UserError
from tracking.files import read_json
from tracking.store import Resolved, Store, publish

from model_store import as_reader, only_readable
from support import refusal

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy

ENVIRONMENT = EnvironmentArguments(start_range=0.06, horizon=40)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small untrained ACT with the statistics of one real demonstration."""
    import torch

    from gilbreth_phase0.demonstrations import Demonstrator
    from gilbreth_phase0.policies import make_config, make_policy, save_bundle

    folder = tmp_path_factory.mktemp("bun dle")
    dataset = create_dataset(folder / "lift", "lift", ENVIRONMENT)
    add_episode(dataset, ENVIRONMENT, Demonstrator(ENVIRONMENT, 0.0)(0).columns)
    dataset.finalize()
    small = {"dim_model": 32, "n_heads": 2, "dim_feedforward": 32, "n_encoder_layers": 1, "use_vae": False}
    config = make_config("act", "cpu", chunk_size=6, n_action_steps=3, **small)
    torch.manual_seed(1)
    policy = make_policy(config, open_metadata(folder / "lift", "lift"))
    save_bundle(policy, policy.model.state_dict(), ENVIRONMENT, folder / "bundle")
    return folder / "bundle"


@pytest.fixture(scope="module")
def policy(bundle: Path) -> Policy:
    from gilbreth_phase0.policies import load_bundle

    return load_bundle(bundle)


def frames_of(video: Path) -> tuple[int, int]:
    """How many pictures an mp4 has, and how many a second."""
    import av

    with av.open(str(video)) as container:
        return sum(1 for _ in container.decode(video=0)), int(container.streams.video[0].average_rate)


def result() -> EvaluationResult:
    return summary([Episode(3, True, 30, 9.0), Episode(1, False, 200, 11.0), Episode(2, True, 10, 4.0)])


def test_a_result_orders_its_episodes_and_counts_them() -> None:
    assert [episode.seed for episode in result().episodes] == [1, 2, 3]
    assert (result().successes, result().success_rate) == (2, pytest.approx(2 / 3))
    assert result().interval == pytest.approx((0.2077, 0.9385), abs=5e-5)
    assert result().mean_length == 80
    assert result().reward_per_step == 0.1
    assert str(result()) == "2/3 succeeded (95 % interval 21-94 %), 80 steps on average"
    assert result().metrics()["eval/success_rate"] == pytest.approx(2 / 3)


def test_the_evaluation_file_holds_every_episode(tmp_path: Path) -> None:
    write_evaluation(tmp_path, {"trained": result()})
    written = read_json(tmp_path / "evaluation.json")["trained"]
    assert written["episodes"][0] == {"seed": 1, "success": False, "length": 200, "reward": 11.0}
    assert (written["successes"], written["trials"]) == (2, 3)
    assert written["interval_95"] == list(result().interval)


def test_a_missing_bundle_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no policy bundle at .*nowhere"):
        evaluate.main(Arguments(policy=tmp_path / "nowhere", run_dir=tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_without_an_environment_asks_for_the_dataset(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="--dataset ROOT"):
        evaluate.main(Arguments(policy=tmp_path))


def test_a_run_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "environment.json").write_text(ENVIRONMENT.model_dump_json())
    with pytest.raises(UserError, match=r"the run folder .*config\.json/run cannot be written"):
        evaluate.main(Arguments(policy=tmp_path, run_dir=tmp_path / "config.json" / "run"))


def test_a_result_is_reported_to_the_run_that_trained_the_policy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN a run that goes on, and has ended THEN its journal gets the result, in the end, at the policy's step."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    run = tmp_path / "a run"
    policy = [Contender("trained", Resolved(run / "best" / "step-00000300"))]
    arguments = Arguments(policy="act-lift", report_to=run)
    assert "no tracked run is there" in refusal(lambda: evaluate.reported_step(arguments, policy))
    with ExperimentTracker(run_dir=run, tags=["mine"]) as tracker:
        assert evaluate.reported_step(arguments, policy) == 300
        evaluate.report(run, 300, result())
        assert "takes the result of step 300 at its next checkpoint" in capsys.readouterr().out
        tracker.take_inbox()
    assert evaluate.reported_step(arguments.model_copy(update={"step": 0}), policy) == 0
    assert "next: --step N" in refusal(lambda: evaluate.reported_step(arguments, [Contender("a", Resolved(run))]))
    assert "of one policy, not of several" in refusal(lambda: evaluate.reported_step(arguments, policy * 2))
    write_done(run, 500)
    evaluate.report(run, 500, result())
    assert [(row.step, dict(row.data)) for row in read_journal(run).rows] == [
        (step, result().metrics("report")) for step in (300, 500)
    ]


@pytest.mark.sim
def test_an_episode_follows_from_its_seed_alone(policy: Policy) -> None:
    together = list(evaluate_policy(policy, ENVIRONMENT, [7, 8, 9]))
    apart = [episode for seed in (9, 7, 8) for episode in evaluate_policy(policy, ENVIRONMENT, [seed])]
    assert summary(apart).episodes == tuple(together)
    assert len({episode.reward for episode in together}) == 3


@pytest.mark.sim
def test_an_environment_that_dies_is_built_again(policy: Policy, capfd: pytest.CaptureFixture[str]) -> None:
    """GIVEN a process of two that is killed in the middle THEN its episode is run again, with the same result."""
    seeds = range(7, 11)
    episodes = episodes_together(policy, ENVIRONMENT, seeds, 2)
    found = [next(episodes)]
    victim = next(child for child in multiprocessing.active_children() if "AsyncVectorEnv" in child.name)
    os.kill(victim.pid or 0, signal.SIGKILL)
    found += episodes
    assert summary(found) == summary(evaluate_policy(policy, ENVIRONMENT, seeds))
    assert capfd.readouterr().err.count("a worker process died") == 1
    assert not [child for child in multiprocessing.active_children() if "AsyncVectorEnv" in child.name]


@pytest.mark.sim
def test_max_steps_takes_the_place_of_the_horizon(policy: Policy) -> None:
    assert [episode.length for episode in evaluate_policy(policy, ENVIRONMENT, [7])] == [40]
    assert [episode.length for episode in evaluate_policy(policy, ENVIRONMENT, [7], max_steps=5)] == [5]


@pytest.mark.sim
def test_the_caller_is_left_as_it_was(policy: Policy) -> None:
    import torch

    policy.model.train()
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()
    list(evaluate_policy(policy, ENVIRONMENT, [7], max_steps=5))
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1].tolist(), torch.get_num_threads()) == before[1:]
    assert policy.model.training


@pytest.mark.sim
def test_an_untrained_policy_has_other_weights_and_the_same_ones_each_time(policy: Policy) -> None:
    import torch

    def weights(one: Policy) -> torch.Tensor:
        return torch.cat([parameter.flatten() for parameter in one.model.parameters()])

    fresh = parallel.untrained(policy)
    assert torch.equal(weights(fresh), weights(parallel.untrained(policy)))
    assert not torch.equal(weights(fresh), weights(policy))
    assert fresh.preprocessor is policy.preprocessor


@pytest.mark.sim
def test_the_program_gives_the_same_result_whoever_acts_and_films(
    bundle: Path, policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a folder, and the same policy by its name in a store that may only be read THEN the results are equal.

    In one case each process has its own policy and some episodes are filmed; in the other one policy acts for all.
    """
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = Store(tmp_path / "theirs")
    monkeypatch.setenv("GILBRETH_STORE", str(store.root))
    publish(store, bundle, "act-lift", "best", mirror=False)

    def run(name: str, policy: str | Path, *flags: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "gilbreth_phase0.evaluate", "--policy", policy, "--run-dir", tmp_path / name]
        line = as_reader(*command, "--episodes=3", "--seed=1000050", *flags)
        finished = subprocess.run(line, capture_output=True, text=True, timeout=200, check=False)
        assert finished.returncode == 0, finished.stderr
        return finished

    table = run("two", bundle, "--num-workers=2", "--untrained", "--save-video", "--video-episodes=1").stdout
    with only_readable(store.root):
        said = run("one", "act-lift:best", "--num-workers=2", "--acting=together").stderr
    assert said.count("may only be read here: the use of act-lift:v0 is not recorded there") == 1
    assert (tmp_path / "one" / "inputs" / "act-lift-v0.json").exists()
    one, two = (json.loads((tmp_path / name / "evaluation.json").read_text()) for name in ("one", "two"))
    assert one["trained"] == two["trained"]
    assert list(two) == ["trained", "untrained"]
    assert two["trained"]["episodes"] != two["untrained"]["episodes"]
    here = summary(evaluate_policy(policy, ENVIRONMENT, range(1_000_050, 1_000_053)))
    assert {**here.as_json(), "starts": "fixed"} == one["trained"]
    against = {"policy": "trained", "better": 0, "worse": here.successes, "p": 1.0, "p_holm": 1.0}
    assert two["untrained"]["against"] == against
    assert "untrained" in table
    assert "0-56 %" in table
    videos = tmp_path / "two" / "videos"
    names = [f"{name}/seed-1000050-failure.mp4" for name in ("trained", "untrained")]
    assert sorted(str(path.relative_to(videos)) for path in videos.rglob("*.mp4")) == names
    assert frames_of(videos / names[0]) == (ENVIRONMENT.horizon + 1, ENVIRONMENT.control_hz)
    assert read_json(tmp_path / "one" / "done.json")["outcome"] == "finished"
