"""How many episodes a minute an evaluation gets done, by four ways of running them.

    python benchmarks/evaluation_speed.py [--policy BUNDLE] [--episodes 100] [--workers 2] [--repeats 3]

The same policy and the same seeds each time:
(a) one after another: `evaluate.evaluate_policy` in this process,
(b) apart: `parallel.apart`, processes that have a policy each (what `--acting apart` does),
(c) together: `parallel.together`, gymnasium's AsyncVectorEnv with one policy here (`--acting together`),
(d) LeRobot's own `rollout` on a vector environment of our adapter, as many episodes at once as there are workers; it
    takes a SyncVectorEnv alone, which has them all in this process.
Each way runs as a program of its own: `whole` is all of its time, imports and processes that start included; `steady`
begins where its first episode ends. (a), (b) and (c) must agree bit for bit, which is checked; (d) infers in batches,
so that its successes may differ. Without --policy a small ACT is trained on 10 demonstrations first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gilbreth_phase0.contenders import TRAINED
from gilbreth_phase0.datasets import read_environment
from gilbreth_phase0.environments import RobosuiteEnv
from gilbreth_phase0.evaluate import EvaluationResult, evaluate_policy, summary
from gilbreth_phase0.parallel import Trial, apart, together
from gilbreth_phase0.rollout import Episode, undisturbed
from gilbreth_phase0.seeds import REPORT

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy

SMALL = '{"dim_model": 64, "n_heads": 4, "dim_feedforward": 256, "n_encoder_layers": 1, "n_decoder_layers": 1, "use_vae": false}'  # noqa: E501
WAYS = {"a": "(a) one after another", "b": "(b) apart", "c": "(c) together", "d": "(d) LeRobot's rollout"}
Spread = Callable[[Trial], AbstractContextManager[Iterator[tuple[str, Episode]]]]


def make_bundle(folder: Path) -> Path:
    """Trains a small ACT on 10 demonstrations of Lift."""
    python = [sys.executable, "-m"]
    collect = [*python, "gilbreth_phase0.collect", f"--root={folder}", "--episodes=10", "--num-workers=2"]
    train = [*python, "gilbreth_phase0.train_policy", f"--root={folder}", "--repo-ids=lift", f"--run-dir={folder}/run"]
    train += [f"--policy-settings={SMALL}", "--training-steps=300", "--batch-size=64", "--lr=1e-3", "--device=cpu"]
    train += ["--num-workers=0", "--eval-freq=0", "--eval-episodes=0", "--save-freq=300"]
    for command in (collect, train):
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return folder / "run" / "bundle"


def spread(way: Spread, trial: Trial) -> Iterator[Episode]:
    """The episodes of (b) or (c)."""
    with way(trial) as finished:
        for _, episode in finished:
            yield episode


def by_lerobot(policy: Policy, trial: Trial) -> Iterator[Episode]:
    """(d): LeRobot's rollout over groups of as many seeds as there are workers."""
    seeds, workers = trial.seeds, trial.num_workers
    import gymnasium
    from lerobot.processor import PolicyProcessorPipeline
    from lerobot.scripts.lerobot_eval import rollout

    nothing: PolicyProcessorPipeline = PolicyProcessorPipeline(steps=[])
    make = partial(RobosuiteEnv, trial.environment)
    # It asks the vector environment for `envs`, which only one in this process has.
    environments = gymnasium.vector.SyncVectorEnv(
        [make] * workers, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP
    )
    try:
        with undisturbed(policy.model):
            for first in range(0, len(seeds), workers):
                group = list(seeds[first : first + workers])
                found = rollout(
                    environments,
                    policy.model,
                    nothing,
                    nothing,
                    policy.preprocessor,
                    policy.postprocessor,
                    seeds=group,
                )
                for index, seed in enumerate(group):
                    length = int(found["done"][index].int().argmax()) + 1
                    reward = float(found["reward"][index, :length].sum())
                    yield Episode(seed, bool(found["success"][index].any()), length, reward)
    finally:
        environments.close()


def episodes_of(way: str, trial: Trial) -> Iterator[Episode]:
    """The episodes of a way, in this process and those that it starts."""
    if way in "bc":
        return spread(apart if way == "b" else together, trial)
    policy = trial.load(TRAINED)
    return evaluate_policy(policy, trial.environment, trial.seeds) if way == "a" else by_lerobot(policy, trial)


def run_one(way: str, trial: Trial) -> None:
    """Runs all episodes; prints them and the seconds from the first one's end on."""
    episodes: list[Episode] = []
    first = 0.0
    for episode in episodes_of(way, trial):
        episodes.append(episode)
        first = first or time.monotonic()
    steady = time.monotonic() - first
    print(json.dumps({"steady": steady, "episodes": [asdict(episode) for episode in episodes]}))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--policy", type=Path, help="folder of a bundle; one is trained without it")
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = arguments.policy or make_bundle(Path(folder))
        count = arguments.episodes // arguments.workers * arguments.workers
        seeds = range(REPORT.start, REPORT.start + count)
        if arguments.way:
            environment = read_environment(bundle)
            run_one(arguments.way, Trial({TRAINED: bundle}, environment, seeds, arguments.device, arguments.workers))
            return
        command = [sys.executable, __file__, f"--policy={bundle}", f"--episodes={count}"]
        command += [f"--device={arguments.device}", f"--workers={arguments.workers}"]
        show(command, count, arguments.repeats)


def show(command: list[str], count: int, repeats: int) -> None:
    """Runs every way in turn, so often, and prints the best of each against (a)."""
    best = dict.fromkeys(WAYS, (float("inf"), float("inf")))
    results: dict[str, EvaluationResult] = {}
    for repeat in range(repeats):
        for way, name in WAYS.items():
            began = time.monotonic()
            # LeRobot's rollout draws a bar for every group: what it says is shown only where it fails.
            done = subprocess.run([*command, f"--way={way}"], check=False, capture_output=True, text=True)
            whole = time.monotonic() - began
            if done.returncode != 0:
                sys.exit(f"{name} failed with {done.returncode}:\n{done.stderr}")
            said = json.loads(done.stdout.splitlines()[-1])
            results[way] = summary(Episode(**episode) for episode in said["episodes"])
            best[way] = min(best[way][0], whole), min(best[way][1], said["steady"])
            print(f"{repeat + 1}/{repeats} {name}: {whole:.1f} s, {results[way]}", file=sys.stderr, flush=True)
    if not results["a"] == results["b"] == results["c"]:
        sys.exit("(a), (b) and (c) do not agree")
    print(f"{count} episodes, best of {repeats}\n")
    print("| way | whole, episodes/minute | ratio | steady | ratio | successes |\n|---|---|---|---|---|---|")
    for way, (whole, steady) in best.items():
        rates = 60 * count / whole, 60 * (count - 1) / steady
        ratios = best["a"][0] / whole, best["a"][1] / steady
        print(
            f"| {WAYS[way]} | {rates[0]:.0f} | {ratios[0]:.2f}x | {rates[1]:.0f} | {ratios[1]:.2f}x"
            f" | {results[way].successes} |"
        )


if __name__ == "__main__":
    main()
