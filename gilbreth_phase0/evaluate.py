"""Stage program `eval`: full episodes of policies in the environment that they were trained for."""

from __future__ import annotations

import dataclasses
import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gilbreth_phase0 import comparison
from gilbreth_phase0.arguments import StageArguments, command, repeated
from gilbreth_phase0.contenders import Contender, agreed_environment, find_contenders, with_horizon
from gilbreth_phase0.environments import EnvironmentArguments, RobosuiteEnv
from gilbreth_phase0.parallel import Films, Trial, apart, together
from gilbreth_phase0.progress import progress
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.rollout import Episode, run_policy_episode
from gilbreth_phase0.run_folder import DONE_FILE, make_run_folder, write_done
from gilbreth_phase0.starts import Starts, choose_starts
from gilbreth_phase0.statistics import wilson_interval
from gilbreth_phase0.videos import FOLDER as VIDEOS
from gilbreth_phase0.videos import check_rendering, film
from tracking import ExperimentTracker, inbox
from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.store import open_store
from tracking.store.lineage import record_use

if TYPE_CHECKING:
    from gilbreth_phase0.policies import Policy

_REPORT = "report"


class Arguments(StageArguments):
    """Arguments of the stage program."""

    policy: Annotated[str, BeforeValidator(str)] | None = Field(
        None, description="a model by name (act-lift:best), or the folder of a policy bundle"
    )
    policies: list[str] = Field(
        [], description="several, all on the same seeds and compared with the first: A B C, or A,B,C"
    )
    episodes: int = Field(20, ge=1, description="episodes of each policy")
    starts: Literal["fixed", "fresh", "demonstrations"] = Field(
        "fixed",
        description="fixed: always the same seeds; fresh: drawn anew, and printed; demonstrations: the starts that were"
        " demonstrated, apart from as many fixed ones",
    )
    seed: int | None = Field(None, ge=0, description="seed of the first episode, to repeat fresh ones; 1000000 without")
    num_workers: int = Field(2, ge=1, description="processes that simulate; the result is the same with any number")
    acting: Literal["auto", "apart", "together"] = Field(
        "auto",
        description="apart: each process has its own copy of the policy; together: one policy acts for all; auto:"
        " together where the policy is on a GPU",
    )
    untrained: bool = Field(False, description="also evaluate a freshly initialised policy on the same seeds")
    dataset: Path | None = Field(None, description="dataset whose environment to use; its starts, where they are asked")
    max_steps: int | None = Field(None, ge=1, description="steps of an episode; the environment's horizon without it")
    device: Literal["cpu", "cuda"] = Field("cpu", description="where the policy runs; a small one is fastest on a CPU")
    save_video: bool = Field(False, description="film episodes, the outcome in the file's name; this takes time")
    video_episodes: int = Field(5, ge=1, description="with --save-video: so many of each policy, the first ones")
    run_dir: Path | None = Field(None, description="run folder to write evaluation.json, videos and done.json to")
    report_to: Path | None = Field(None, description="run folder of the training whose journal gets the result too")
    step: int | None = Field(None, ge=0, description="with --report-to: the training step that the policy is of")
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

    def metrics(self, namespace: str = "eval") -> dict[str, float]:
        """What the tracker logs of it."""
        low, high = self.interval
        return {
            f"{namespace}/success_rate": self.success_rate,
            f"{namespace}/success_rate_low": low,
            f"{namespace}/success_rate_high": high,
            f"{namespace}/reward_per_step": self.reward_per_step,
            f"{namespace}/mean_length": self.mean_length,
            f"{namespace}/episodes": float(len(self.episodes)),
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
    policy: Policy,
    environment: EnvironmentArguments,
    seeds: Sequence[int],
    max_steps: int | None = None,
    videos: Path | None = None,
) -> Iterator[Episode]:
    """Runs a policy over full episodes in this process, one each time the next is asked for.

    An episode follows from the policy and its seed alone, so that several processes may each take a share of the seeds;
    `summary` joins what they got.

    Args:
        policy: With the processors that belong to it.
        environment: What to rebuild.
        seeds: One an episode.
        max_steps: Steps of an episode, in place of the environment's horizon.
        videos: Where films of the episodes go; None for none.
    """
    plain = RobosuiteEnv(with_horizon(environment, max_steps), "rgb_array" if videos is not None else None)
    env = film(plain, videos, seeds)
    try:
        for seed in seeds:
            yield run_policy_episode(policy, env, seed)
    finally:
        env.close()


def write_evaluation(run_dir: Path, results: Mapping[str, EvaluationResult]) -> None:
    """Writes RUN/evaluation.json: results by the policy's name in this evaluation (`trained`, `untrained`)."""
    write_json(run_dir / "evaluation.json", {name: result.as_json() for name, result in results.items()})


def main(arguments: Arguments) -> None:
    """Evaluates policies over full episodes: success rates with 95 % intervals, reward, steps, and who is better."""
    if Ranks.from_environment().rank > 0:
        return
    given = [arguments.policy] if arguments.policy is not None else []
    contenders = find_contenders([*given, *(one for text in arguments.policies for one in text.split(",") if one)])
    environment = agreed_environment(contenders, arguments.dataset, arguments.max_steps)
    groups = choose_starts(arguments.starts, arguments.seed, arguments.episodes, arguments.dataset)
    step = reported_step(arguments, contenders)
    if arguments.save_video:
        check_rendering()
    if arguments.run_dir is not None:
        make_run_folder(arguments.run_dir)
    with begin_run(arguments, contenders) as tracker:
        results = [run(contenders, environment, starts, arguments) for starts in groups]
        written: dict[str, Any] = {}
        for starts, found in zip(groups, results, strict=True):
            facts = {"starts": starts.kind}
            written |= {starts.key(name): one for name, one in comparison.as_json(found, facts).items()}
        # The last one is what a pipeline's gate looks at, too.
        main_result = results[0][contenders[-1].name]
        metrics = main_result.metrics()
        if len(contenders) > 1:
            for one in contenders:
                metrics |= results[0][one.name].metrics(f"eval/{one.name}")
        tracker.log_metrics(metrics, step=arguments.episodes)
        if arguments.run_dir is not None:
            write_json(arguments.run_dir / "evaluation.json", written)
    if arguments.run_dir is not None:
        policies = ", ".join(str(one.found) for one in contenders)
        write_done(arguments.run_dir, arguments.episodes, policy=policies)
    if arguments.report_to is not None and step is not None:
        report(arguments.report_to, step, main_result)


def reported_step(arguments: Arguments, contenders: Sequence[Contender]) -> int | None:
    """The step that a result is reported at; None where it is not.

    Raises:
        UserError: It is to be reported, and the step is not known or there are several policies.
    """
    if arguments.report_to is None:
        return None
    if len(contenders) > 1:
        raise UserError(f"--report-to {arguments.report_to}: a run gets the result of one policy, not of several")
    if read_json(arguments.report_to / "run.json") is None:
        raise UserError(f"--report-to {arguments.report_to}: no tracked run is there (run.json is missing)")
    found = contenders[0].found
    if arguments.step is not None:
        return arguments.step
    if found.version is not None and found.version.step is not None:
        return found.version.step
    name, _, number = found.path.name.partition("-")
    if name == "step" and number.isdigit():
        return int(number)
    raise UserError(f"--report-to {arguments.report_to}: of which training step is {found}?\n  next: --step N")


def report(run_dir: Path, step: int, result: EvaluationResult) -> None:
    """Hands a result to the run that trained the policy, and appends it where that has ended."""
    inbox.put(run_dir, _REPORT, step, result.metrics(_REPORT))
    if (run_dir / DONE_FILE).is_file():
        inbox.take_after_end(run_dir)
        print(f"the result of step {step} stands in the journal of {run_dir}", flush=True)
    else:
        print(f"{run_dir} takes the result of step {step} at its next checkpoint", flush=True)


def begin_run(arguments: Arguments, contenders: Sequence[Contender]) -> ExperimentTracker:
    """Begins the run of an evaluation, a user of the models; without a run folder nothing is tracked."""
    run_dir = arguments.run_dir
    config = json.loads(arguments.model_dump_json()) | {"model": ", ".join(str(one.found) for one in contenders)}
    tracker = ExperimentTracker(
        project=arguments.wandb_project,
        config=config,
        tags={
            "model": str(read_json(contenders[0].found.path / "config.json").get("type", "policy")),
            "dataset": f"{arguments.starts}-seeds",
            "objective": "eval",
            "experiment_group": "eval",
        },
        name=run_dir.name if run_dir is not None else None,
        run_dir=run_dir,
        enabled=run_dir is not None,
    )
    if tracker.is_active() and run_dir is not None:
        for one in contenders:
            record_use(open_store(), one.found, run_dir)
    return tracker


def run(
    contenders: Sequence[Contender], environment: EnvironmentArguments, starts: Starts, arguments: Arguments
) -> dict[str, EvaluationResult]:
    """Runs the episodes of every policy from the same starts, and shows what came out."""
    films = Films((arguments.run_dir or Path()) / VIDEOS, arguments.video_episodes) if arguments.save_video else None
    trial = Trial(
        bundles={one.name: one.found.path for one in contenders},
        environment=environment,
        seeds=starts.seeds,
        device=arguments.device,
        num_workers=arguments.num_workers,
        untrained=arguments.untrained,
        films=films,
    )
    acting = arguments.acting if arguments.acting != "auto" else "together" if arguments.device == "cuda" else "apart"
    episodes: dict[str, list[Episode]] = {name: [] for name in trial.names}
    began = time.monotonic()
    with (
        progress("episodes", len(episodes) * len(starts.seeds)) as advance,
        (together if acting == "together" else apart)(trial) as finished,
    ):
        for name, episode in finished:
            episodes[name].append(episode)
            advance(f"{name}: {sum(one.success for one in episodes[name])}/{len(episodes[name])} succeeded")
    results = {name: summary(found) for name, found in episodes.items()}
    comparison.show(results, f"{starts}; {time.monotonic() - began:.1f} s")
    if films is not None:
        print(f"videos: {films.folder}", flush=True)
    return results


app = command(Arguments, main)

if __name__ == "__main__":
    app(repeated(sys.argv[1:], "--policies"))
