"""Trains a LeRobot policy on demonstrations with DeepSpeed ZeRO: the stage `bc`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gilbreth_phase0.annotations import DaggerFilter
from gilbreth_phase0.arguments import command
from gilbreth_phase0.behind import Behind
from gilbreth_phase0.datasets import read_environment
from gilbreth_phase0.job import Job
from gilbreth_phase0.policy_kinds import PolicyName, settings_of
from gilbreth_phase0.run_folder import DONE_FILE
from gilbreth_phase0.stop import Stop
from gilbreth_phase0.training_arguments import (
    TrainingArguments,
    check_training,
    eval_workers,
    make_gating,
    make_tracker,
    make_trainer,
    prepare,
)
from gilbreth_phase0.training_data import TrainingData, read_sources, split_names
from tracking.errors import UserError
from tracking.names import slug
from tracking.words import many

if TYPE_CHECKING:
    from gilbreth_phase0.gating import Gating
    from gilbreth_phase0.policies import Policy
    from gilbreth_phase0.training import Trainer


class Arguments(TrainingArguments):
    """Arguments of `python -m gilbreth_phase0.train_policy`."""

    run_dir: Path | None = Field(None, description="run folder; a folder of --checkpoint-dir without it")
    checkpoint_dir: Path = Field(Path("checkpoints"), description="where run folders POLICY_DATASET are made")
    checkpoint_freq: int = Field(5000, ge=0, description="steps between policies that stay as checkpoint_N; 0: none")
    repo_ids: str = Field(description="datasets below --root, with commas between")
    weights: str | None = Field(
        None, description="how often a frame of each dataset is drawn in an epoch (1,3); once without it"
    )
    dagger_filter: DaggerFilter = Field("corrections", description="which episodes of DAgger's datasets are trained on")
    env: str | None = Field(None, description="robosuite task; the dataset's, which it must be")
    robot: str | None = Field(None, description="robosuite robot; the dataset's, which it must be")
    policy: PolicyName = Field("act", description="LeRobot policy type")
    policy_settings: str = Field("{}", description="further fields of LeRobot's policy configuration, as JSON")
    n_obs_steps: int | None = Field(None, ge=1, description="observations seen at once: act 1, diffusion 2")
    action_chunk_size: int | None = Field(None, ge=1, description="actions predicted at once: act 10, diffusion 16")
    n_action_steps: int | None = Field(
        None, ge=1, description="of which so many are executed before the next look: act 5, diffusion 8"
    )


def train(arguments: Arguments) -> None:
    """Trains a LeRobot policy with DeepSpeed; resumes by itself from the newest whole checkpoint of the run folder.

    In the run folder, best_model, final_model and checkpoint_N are the policies that evaluation and later stages load.
    """
    run_dir = run_folder(arguments)
    if (run_dir / DONE_FILE).is_file():
        print(f"{run_dir} is complete already; nothing to do", flush=True)
        return
    check(arguments)
    job = Job.start(run_dir, arguments.device)
    trainer, gating = build(arguments, job)
    with Behind(gating, eval_workers(arguments), trainer) as behind:
        outcome = trainer.run(behind.consider, is_behind=behind.is_behind)
        if outcome is Stop.NO:
            # Each part of it can be repeated: a job that is ended in here goes on from the last checkpoint.
            outcome = behind.finish(arguments.training_steps)
    if outcome is Stop.NO:
        trainer.complete()
    else:
        trainer.hand_on(outcome)


def run_folder(arguments: Arguments) -> Path:
    """The run folder: the given one, or `{checkpoint_dir}/{policy}_{dataset}`."""
    if arguments.run_dir is not None:
        return arguments.run_dir
    return arguments.checkpoint_dir / slug(f"{arguments.policy}_{'-'.join(split_names(arguments.repo_ids))}")


def check(arguments: Arguments) -> None:
    """Refuses what can only fail later, before anything heavy is imported or anything is written.

    Raises:
        UserError: The arguments do not go together, or a dataset is not there or of another environment.
    """
    policy_settings(arguments)
    sources = read_sources(arguments.root, arguments.repo_ids, arguments.weights)
    wanted = {"task": arguments.env, "robot": arguments.robot}
    if any(wanted.values()):
        for source in sources:
            recorded = read_environment(source.root)
            for name, flag in (("task", "--env"), ("robot", "--robot")):
                if wanted[name] not in {None, getattr(recorded, name)}:
                    raise UserError(
                        f"{flag} {wanted[name]}: dataset {source.repo_id} was recorded with {getattr(recorded, name)}\n"
                        f"  next: {flag} {getattr(recorded, name)}, or leave it out"
                    )
    check_training(arguments, run_folder(arguments))


def policy_settings(arguments: Arguments) -> dict[str, Any]:
    """Fields of LeRobot's policy configuration, the flags that have a name of their own included.

    Raises:
        UserError: `--policy-settings` is not a JSON object, or the fields do not go together.
    """
    try:
        settings = json.loads(arguments.policy_settings)
    except json.JSONDecodeError as error:
        raise UserError(f"--policy-settings {arguments.policy_settings!r} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(
            f'--policy-settings {arguments.policy_settings!r}: expected an object, as in {{"dim_model": 64}}'
        )
    given = {name: getattr(arguments, name) for name in ("n_obs_steps", "action_chunk_size", "n_action_steps")}
    return settings_of(arguments.policy, given | settings)


def build(arguments: Arguments, job: Job) -> tuple[Trainer, Gating]:
    """Makes the policy, its data, the engine and the tracker of this rank, and what decides about checkpoints."""
    from lerobot.utils.random_utils import set_seed

    from gilbreth_phase0.policies import make_config, make_policy
    from gilbreth_phase0.training_data import open_training_data

    set_seed(arguments.seed)
    config = make_config(arguments.policy, job.device, **policy_settings(arguments))
    sources = read_sources(arguments.root, arguments.repo_ids, arguments.weights)
    data = open_training_data(sources, config, dagger_filter=arguments.dagger_filter, say=job.say)
    policy = make_policy(config, data.meta, data.stats)
    for line in header(arguments, job, policy, data):
        job.say(line)
    prepared = prepare(arguments, job, policy)
    tracker = make_tracker(
        arguments, job, prepared.restored, model=arguments.policy, objective="bc", datasets=data.names
    )
    trainer = make_trainer(
        arguments, job, policy, data, prepared=prepared, tracker=tracker, checkpoint_freq=arguments.checkpoint_freq
    )
    gating = make_gating(
        arguments, policy, trainer, data, policy_type=arguments.policy, checkpoint_freq=arguments.checkpoint_freq
    )
    return trainer, gating


def header(arguments: Arguments, job: Job, policy: Policy, data: TrainingData) -> list[str]:
    """What will be done, in lines."""
    import torch

    parameters = sum(parameter.numel() for parameter in policy.model.parameters())
    environment = data.environment
    evaluation = "no evaluation"
    if arguments.eval_episodes:
        every = f"every {arguments.eval_freq} steps and " if arguments.eval_freq else ""
        evaluation = f"evaluated {every}at the end, {many(arguments.eval_episodes, 'episode')}"
        evaluation += f" of at most {arguments.max_steps or environment.horizon} steps"
    facts = {
        "policy": f"{arguments.policy}, {parameters:,} parameters",
        "data": f"{', '.join(data.names)}: {data.frames:,} frames of {many(data.episodes, 'episode')}",
        "steps": f"{arguments.training_steps:,} of {arguments.batch_size} samples",
        "device": f"{job.device}, {job.ranks.world_size} rank(s) x {torch.get_num_threads()} thread(s),"
        f" ZeRO stage {arguments.zero_stage}",
        "environment": f"{environment.task}, {environment.robot}, {environment.control_hz} Hz; {evaluation}",
        "folder": str(job.run_dir),
    }
    return [f"{name + ':':<13}{value}" for name, value in facts.items()]


app = command(Arguments, train)

if __name__ == "__main__":
    sys.exit(app())
