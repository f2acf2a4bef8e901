"""Stage program `eval`: full episodes of a policy bundle in the environment that it was trained for."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gilbreth_phase0.arguments import StageArguments, command
from gilbreth_phase0.datasets import read_environment, require_dataset
from gilbreth_phase0.environments import EnvironmentArguments, RobosuiteEnv
from gilbreth_phase0.progress import progress
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.rollout import Episode, run_policy_episode
from gilbreth_phase0.run_folder import make_run_folder, write_done
from gilbreth_phase0.statistics import wilson_interval
from gilbreth_phase0.workers import ordered_map
from tracking import ExperimentTracker
from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.store import Resolved, open_store, resolve
from tracking.store.lineage import record_use
from tracking.store.reference import parse

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy

TRAINED, UNTRAINED = "trained", "untrained"

# Imported once for all workers: LeRobot and its policies take seconds.
_PRELOAD = ("gilbreth_phase0.policies", "lerobot.policies.factory", "lerobot.envs.utils")


class Arguments(StageArguments):
    """Arguments of the stage program."""

    policy: Annotated[str, BeforeValidator(str)] = Field(
        description="a model by name (act-lift:best), or the folder of a policy bundle"
    )
    episodes: int = Field(20, ge=1, description="episodes to run")
    seed: int = Field(100_000, ge=0, description="seed of the first episode; demonstrations use low seeds")
    num_workers: int = Field(2, ge=1, description="processes that simulate; the result is the same with any number")
    untrained: bool = Field(False, description="also evaluate a freshly initialised policy on the same seeds")
    dataset: Path | None = Field(None, description="dataset folder whose environment to use, for a bundle without one")
    max_steps: int | None = Field(None, ge=1, description="steps of an episode; the environment's horizon without it")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the policy runs; a small one is fastest on a CPU")
    run_dir: Path | None = Field(None, description="run folder to write evaluation.json and done.json to")
    wandb_project: str = Field("vla-lego", description="W&B project of the run")


@dataclass(frozen=True)
class EvaluationResult:
    """Full episodes of one policy, in the order of their seeds."""

    episodes: tuple[Episode, ...]

    @property
    def successes(self) -> int:
        """How many episodes succeeded."""
        return sum(episode.success for episode in self.episodes)

    @property
    def success_rate(self) -> float:
        """Share of the episodes that succeeded."""
        return self.successes / len(self.episodes)

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval of the success rate."""
        return wilson_interval(self.successes, len(self.episodes))

    @property
    def reward_per_step(self) -> float:
        """Mean shaped reward of a step; a sum would favour episodes that go on because they fail."""
        return sum(episode.reward for episode in self.episodes) / self._steps

    @property
    def mean_length(self) -> float:
        """Mean number of steps of an episode."""
        return self._steps / len(self.episodes)

    @property
    def _steps(self) -> int:
        return sum(episode.length for episode in self.episodes)

    def metrics(self) -> dict[str, float]:
        """What the tracker logs of it."""
        low, high = self.interval
        return {
            "eval/success_rate": self.success_rate,
            "eval/success_rate_low": low,
            "eval/success_rate_high": high,
            "eval/reward_per_step": self.reward_per_step,
            "eval/mean_length": self.mean_length,
            "eval/episodes": float(len(self.episodes)),
        }

    def as_json(self) -> dict[str, Any]:
        """The result and each episode, for evaluation.json."""
        return {
            "successes": self.successes,
            "trials": len(self.episodes),
            "success_rate": self.success_rate,
            "interval_95": list(self.interval),
            "reward_per_step": self.reward_per_step,
            "mean_length": self.mean_length,
            "episodes": [dataclasses.asdict(episode) for episode in self.episodes],
        }

    def __str__(self) -> str:
        low, high = self.interval
        return (
            f"{self.successes}/{len(self.episodes)} succeeded"
            f" (95 % interval {100 * low:.0f}-{100 * high:.0f} %), {self.mean_length:.0f} steps on average"
        )


def summary(episodes: Iterable[Episode]) -> EvaluationResult:
    """Joins episodes, whoever ran them and in whatever order."""
    return EvaluationResult(tuple(sorted(episodes, key=lambda episode: episode.seed)))


def evaluate_policy(
    policy: Policy, environment: EnvironmentArguments, seeds: Iterable[int], max_steps: int | None = None
) -> Iterator[Episode]:
    """Runs a policy over full episodes in this process, one each time the next is asked for.

    An episode follows from the policy and its seed alone, so that several processes may each take a share of the seeds;
    `summary` joins what they got.

    Args:
        policy: With the processors that belong to it.
        environment: What to rebuild.
        seeds: One an episode.
        max_steps: Steps of an episode, in place of the environment's horizon.
    """
    env = RobosuiteEnv(with_horizon(environment, max_steps))
    try:
        for seed in seeds:
            yield run_policy_episode(policy, env, seed)
    finally:
        env.close()


def with_horizon(environment: EnvironmentArguments, max_steps: int | None) -> EnvironmentArguments:
    """The same environment with another horizon, where one is given."""
    return environment if max_steps is None else environment.model_copy(update={"horizon": max_steps})


def write_evaluation(run_dir: Path, results: dict[str, EvaluationResult]) -> None:
    """Writes RUN/evaluation.json: results by the policy's name in this evaluation (`trained`, `untrained`)."""
    write_json(run_dir / "evaluation.json", {name: result.as_json() for name, result in results.items()})


class PolicyWorker:
    """Runs episodes of a bundle's policy, or of a fresh one of the same kind, in a process of its own."""

    def __init__(self, bundle: Path, environment: EnvironmentArguments, device: str) -> None:
        """Loads the bundle and builds the environment."""
        from gilbreth_phase0.policies import load_bundle

        self._env = RobosuiteEnv(environment)
        self._policies = {TRAINED: load_bundle(bundle, device)}

    def __call__(self, item: tuple[str, int]) -> Episode:
        """Runs one episode of the named policy from a seed."""
        name, seed = item
        if name not in self._policies:
            self._policies[name] = untrained(self._policies[TRAINED])
        return run_policy_episode(self._policies[name], self._env, seed)


def untrained(policy: Policy, seed: int = 0) -> Policy:
    """A policy of the same configuration with fresh weights and the same processors."""
    import torch

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = type(policy.model)(policy.config)
    return dataclasses.replace(policy, model=model.to(policy.config.device))


def main(arguments: Arguments) -> None:
    """Evaluates a policy bundle over full episodes: success rate with its 95 % interval, reward and steps."""
    if Ranks.from_environment().rank > 0:
        return
    found = find_policy(arguments.policy)
    if arguments.dataset is not None:
        require_dataset(arguments.dataset)
    environment = with_horizon(read_environment(arguments.dataset or found.path), arguments.max_steps)
    if arguments.run_dir is not None:
        make_run_folder(arguments.run_dir)
    names = [TRAINED, UNTRAINED] if arguments.untrained else [TRAINED]
    with begin_run(arguments, found) as tracker:
        started = time.monotonic()
        results = run(partial(PolicyWorker, found.path, environment, arguments.device), names, arguments)
        show(results, arguments, time.monotonic() - started)
        tracker.log_metrics(results[TRAINED].metrics(), step=arguments.episodes)
        if arguments.run_dir is not None:
            write_evaluation(arguments.run_dir, results)
    if arguments.run_dir is not None:
        write_done(arguments.run_dir, arguments.episodes, policy=str(found))


def find_policy(given: str) -> Resolved:
    """Finds a policy by name, in the model store or on W&B, or as a folder.

    Raises:
        UserError: There is none.
    """
    wanted = parse(given)
    found = Resolved(wanted.absolute()) if isinstance(wanted, Path) else resolve(given, open_store())
    if not (found.path / "config.json").is_file():
        raise UserError(
            f"no policy bundle at {found.path} (config.json is missing)."
            " Expected the `bundle` folder of a finished bc run, or a model's name: python -m tracking.models list"
        )
    if found.note:
        print(found.note, flush=True)
    return found


def begin_run(arguments: Arguments, found: Resolved) -> ExperimentTracker:
    """Begins the run of an evaluation, a user of the model; without a run folder nothing is tracked."""
    run_dir = arguments.run_dir
    config = json.loads(arguments.model_dump_json()) | {"model": str(found)}
    tracker = ExperimentTracker(
        project=arguments.wandb_project,
        config=config,
        tags={
            "model": str(read_json(found.path / "config.json").get("type", "policy")),
            "dataset": "fresh-seeds",
            "objective": "eval",
            "experiment_group": "eval",
        },
        name=run_dir.name if run_dir is not None else None,
        run_dir=run_dir,
        enabled=run_dir is not None,
    )
    if tracker.is_active() and run_dir is not None:
        record_use(open_store(), found, run_dir)
    return tracker


def run(
    make_worker: Callable[[], Callable[[tuple[str, int]], Episode]], names: list[str], arguments: Arguments
) -> dict[str, EvaluationResult]:
    """Runs the episodes of every policy in worker processes."""
    seeds = range(arguments.seed, arguments.seed + arguments.episodes)
    items = [(name, seed) for name in names for seed in seeds]
    episodes: dict[str, list[Episode]] = {name: [] for name in names}
    with (
        progress("episodes", len(items)) as advance,
        ordered_map(make_worker, items, arguments.num_workers, _PRELOAD) as finished,
    ):
        for (name, _), episode in zip(items, finished, strict=True):
            episodes[name].append(episode)
            advance(f"{name}: {sum(one.success for one in episodes[name])}/{len(episodes[name])} succeeded")
    return {name: summary(found) for name, found in episodes.items()}


def show(results: dict[str, EvaluationResult], arguments: Arguments, seconds: float) -> None:
    """Prints a table, one row a policy."""
    from rich.console import Console
    from rich.table import Table

    last = arguments.seed + arguments.episodes - 1
    title = f"{arguments.policy}: seeds {arguments.seed} to {last}, {seconds:.1f} s"
    table = Table(
        "policy", "success", "95 % interval", "reward a step", "mean steps", title=title, title_justify="left"
    )
    for name, result in results.items():
        low, high = result.interval
        table.add_row(
            name,
            f"{result.successes}/{len(result.episodes)}",
            f"{100 * low:.0f}-{100 * high:.0f} %",
            f"{result.reward_per_step:.2f}",
            f"{result.mean_length:.0f}",
        )
    Console().print(table)


app = command(Arguments, main)

if __name__ == "__main__":
    app()
