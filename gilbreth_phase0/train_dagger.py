"""Corrects a policy where it fails, with an expert that takes over: the stage `dagger`.

Each round rolls the policy out with interventions, adds what the expert did to the data, trains on all of it, evaluates
and publishes. A run that is killed anywhere goes on where it was: no roll-out is made twice, and none is counted twice.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from gilbreth_phase0.arguments import command, names, parse
from gilbreth_phase0.dagger.rounds import RUN_FILE
from gilbreth_phase0.datasets import read_environment, require_dataset
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.seeds import ROLLOUTS
from gilbreth_phase0.stop import Stop
from gilbreth_phase0.training_arguments import TrainingArguments, check_training
from tracking.errors import UserError
from tracking.names import slug

if TYPE_CHECKING:
    from lerobot.policies.pretrained import PreTrainedPolicy
    from lerobot.processor import PolicyProcessorPipeline

    from gilbreth_phase0.environments import EnvironmentArguments

PERSONS = ("keyboard", "spacemouse")

Name = Annotated[str, BeforeValidator(str)]


class Arguments(TrainingArguments):
    """Arguments of `python -m gilbreth_phase0.train_dagger`."""

    run_dir: Path = Field(description="run folder: rounds, journal, checkpoints and bundle go there")
    policy_artifact: Name | None = Field(None, description="the policy to correct, by name (act-lift:best)")
    from_checkpoint: Path | None = Field(None, description="the policy to correct, as the folder of a bundle")
    repo_ids: Name = Field(description="datasets that it was trained on, below --root, separated by commas")
    weights: str | None = Field(None, description="how often a frame of each is drawn in an epoch, by commas; once")
    correction_weight: float = Field(1.0, gt=0, description="how often a frame of the rounds' datasets is drawn")
    dagger_filter: Literal["corrections", "success", "all"] = Field(
        "corrections", description="episodes of them to train on"
    )
    dagger_repo_id: str | None = Field(None, description="name of the rounds' datasets; the run's name without it")
    rounds: int = Field(3, ge=1, description="rounds of roll out, aggregate, train, evaluate")
    episodes: int = Field(20, ge=1, description="roll-outs of a round")
    rollout_seed: int = Field(ROLLOUTS.start, ge=0, description="seed of the first roll-out; the next ones follow")
    rollout_workers: int = Field(2, ge=1, description="processes of each rank that simulate; changes no result")
    training_steps: int = Field(1000, ge=1, description="optimizer steps of a round")
    max_steps: int = Field(
        0, ge=0, description="steps of a roll-out and of an evaluated episode; 0 for the environment's horizon"
    )
    from_scratch: bool = Field(False, description="train each round's policy anew instead of going on with the last")

    expert: Literal["scripted", "policy", "keyboard", "spacemouse", "recorded"] = Field(
        "scripted", description="who corrects"
    )
    expert_policy: Name | None = Field(None, description="the policy that corrects (--expert policy), by name or path")
    corrections: Name | None = Field(None, description="datasets with corrections (--expert recorded), below --root")
    gate: Literal["oracle", "beta", "ensemble", "random"] = Field("oracle", description="what asks the expert")
    num_interventions: int = Field(
        0, ge=0, description="takeovers of all rounds together, shared out over them; 0 for any number"
    )
    takeover_steps: int = Field(10, ge=1, description="steps of a takeover at least")
    settle_steps: int = Field(5, ge=0, description="steps after it in which no gate asks again")
    disagreement: float = Field(0.6, gt=0, description="oracle: distance of the two actions at which it takes over")
    agreement: float = Field(0.2, gt=0, description="oracle: distance below which it hands back")
    no_progress: int = Field(40, ge=1, description="oracle: steps without a new greatest reward")
    near_timeout: int = Field(80, ge=0, description="oracle: steps before the end at which it takes over for good")
    beta_schedule: Literal["linear", "exponential"] = Field("linear", description="beta: how it falls over the rounds")
    beta_base: float = Field(0.5, gt=0, lt=1, description="beta: share of the expert's steps in round 1 (exponential)")
    ensemble: Name | None = Field(None, description="ensemble: further policies, by name or path, by commas")
    switch_rate: float = Field(0.02, gt=0, lt=1, description="ensemble: takeovers for each step of the policy")
    intervention_frequency: float = Field(0.1, gt=0, lt=1, description="random: chance of a takeover at each step")


def train(arguments: Arguments) -> None:
    """Corrects a policy by DAgger: rounds of roll-outs with interventions, training, evaluation; resumes by itself."""
    if (arguments.run_dir / "done.json").is_file():
        print(f"{arguments.run_dir} is complete already; nothing to do", flush=True)
        return
    check(arguments)
    from gilbreth_phase0.dagger.run import DaggerRun

    run = DaggerRun.begin(arguments, Job.start(arguments.run_dir, arguments.device))
    outcome = run.run()
    if outcome is Stop.NO:
        run.complete()
    else:
        run.hand_on(outcome)


def check(arguments: Arguments) -> None:
    """Refuses what can only fail later, before anything heavy is imported or anything is written.

    Raises:
        UserError: The arguments do not go together, or a dataset is not there.
    """
    if (arguments.policy_artifact is None) == (arguments.from_checkpoint is None):
        raise UserError(
            "which policy is to be corrected? Expected --policy-artifact act-lift:best or --from-checkpoint FOLDER, and"
            " one of them alone\n  next: python -m tracking.models list"
        )
    needed = {
        "recorded": ("corrections", "datasets below --root with the columns source and success"),
        "policy": ("expert_policy", "a policy that solves the task"),
    }
    if arguments.expert in needed:
        name, what = needed[arguments.expert]
        if getattr(arguments, name) is None:
            raise UserError(f"--expert {arguments.expert} needs --{name.replace('_', '-')}: {what}")
    if arguments.gate == "ensemble" and arguments.ensemble is None:
        raise UserError("--gate ensemble needs --ensemble A,B: policies whose disagreement with the first one is doubt")
    if arguments.expert == "recorded" and arguments.rounds > 1:
        raise UserError(
            f"--rounds {arguments.rounds}: corrections that are recorded already are one round\n  next: --rounds 1"
        )
    ranks = Ranks.from_environment().world_size
    if arguments.expert in PERSONS and ranks > 1:
        raise UserError(f"--expert {arguments.expert}: a person cannot sit at {ranks} ranks; start one")
    last = arguments.rollout_seed + arguments.rounds * arguments.episodes - 1
    if arguments.rollout_seed not in ROLLOUTS or last not in ROLLOUTS:
        raise UserError(
            f"--rollout-seed {arguments.rollout_seed}: {arguments.rounds} rounds of {arguments.episodes} roll-outs go"
            f" up to seed {last}; those for roll-outs are {ROLLOUTS.start} to {ROLLOUTS[-1]}: none is evaluated on"
        )
    for name in (*names(arguments.repo_ids), *names(arguments.corrections)):
        require_dataset(arguments.root / name)
    check_training(arguments, arguments.run_dir)


class DAggerTrainer:
    """Corrects a policy that is in hand, as `python -m gilbreth_phase0.train_dagger` does one that is on the disk.

    Args:
        initial_policy: A LeRobot policy.
        preprocessor: Its own.
        postprocessor: Its own.
        num_human_interventions: Takeovers of all rounds together, shared out over them; 0 for any number.
        intervention_frequency: Chance of a takeover at each step of the policy (gate `random`).
        run_dir: The run folder; `checkpoints/dagger_{dataset}` without it.
        rounds: Rounds that the episodes are shared out over.
        **arguments: Further arguments of the program, as `gate="oracle"`, `expert="keyboard"`, `training_steps=500`.
    """

    def __init__(
        self,
        initial_policy: PreTrainedPolicy,
        preprocessor: PolicyProcessorPipeline[Any, Any],
        postprocessor: PolicyProcessorPipeline[Any, Any],
        num_human_interventions: int = 100,
        intervention_frequency: float = 0.1,
        *,
        run_dir: Path | str | None = None,
        rounds: int = 5,
        **arguments: Any,
    ) -> None:
        self._parts = (initial_policy, preprocessor, postprocessor)
        self._run_dir = Path(run_dir) if run_dir is not None else None
        self._given: dict[str, Any] = {
            "gate": "random",
            **arguments,
            "rounds": rounds,
            "num_interventions": num_human_interventions,
            "intervention_frequency": intervention_frequency,
        }

    def train(self, dataset_repo_id: str, num_episodes: int = 500, max_steps_per_episode: int = 500) -> Path:
        """Corrects the policy, in rounds; called again after a kill, it goes on.

        Args:
            dataset_repo_id: The dataset that the policy was trained on, below `root` (`data`).
            num_episodes: Roll-outs of all rounds together, rounded up to the same number in each.
            max_steps_per_episode: Steps of a roll-out and of an evaluated episode.

        Returns:
            The folder of the corrected policy; `load_pretrained.load_policy_from_checkpoint` loads it.

        Raises:
            UserError: As the program says it.
        """
        run_dir = self._run_dir or Path("checkpoints") / f"dagger_{slug(dataset_repo_id)}"
        initial = run_dir / "initial"
        arguments = parse(
            Arguments,
            {
                **self._given,
                "run_dir": run_dir,
                "from_checkpoint": initial,
                "repo_ids": dataset_repo_id,
                "episodes": -(-num_episodes // self._given["rounds"]),
                "max_steps": max_steps_per_episode,
            },
        )
        check(arguments)
        if Ranks.from_environment().is_main:
            self._save(initial, read_environment(arguments.root / names(dataset_repo_id)[0]))
        train(arguments)
        return run_dir / "bundle"

    def _save(self, initial: Path, environment: EnvironmentArguments) -> None:
        """Has the policy on the disk; where a run began from one there already, it must be the same."""
        from gilbreth_phase0.policies import Policy, save_bundle
        from tracking.store.contents import file_digest

        model, preprocessor, postprocessor = self._parts
        initial.parent.mkdir(parents=True, exist_ok=True)
        given = initial.with_name("given")
        save_bundle(Policy(model, preprocessor, postprocessor), model.state_dict(), environment, given)
        if not (initial.parent / RUN_FILE).is_file():
            shutil.rmtree(initial, ignore_errors=True)
            given.rename(initial)
            return
        digests = [file_digest(folder / "model.safetensors") for folder in (given, initial)]
        shutil.rmtree(given)
        if digests[0] != digests[1]:
            raise UserError(
                f"{initial.parent} is a run that began from another policy\n  next: another run_dir, or remove it"
            )


app = command(Arguments, train)

if __name__ == "__main__":
    sys.exit(app())
