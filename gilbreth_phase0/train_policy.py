"""Trains a LeRobot policy on demonstrations with DeepSpeed ZeRO: the stage `bc`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gilbreth_phase0.arguments import StageArguments, command
from gilbreth_phase0.datasets import open_dataset, open_metadata, require_dataset
from gilbreth_phase0.gating import Gating, check_rules, check_seeds
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.sampling import BatchPlan, micro_batch_size
from gilbreth_phase0.stop import Stop
from tracking.errors import UserError
from tracking.gate import BestRule, ModelManagement, read_rules
from tracking.gate.rules import SECTION

if TYPE_CHECKING:
    from gilbreth_phase0.checkpointer import Restored
    from gilbreth_phase0.policies import Policy
    from gilbreth_phase0.training import Trainer
    from tracking import ExperimentTracker


class Arguments(StageArguments):
    """Arguments of `python -m gilbreth_phase0.train_policy`."""

    run_dir: Path = Field(description="run folder: journal, checkpoints and bundle go there")
    repo_ids: str = Field(description="dataset, by its name below --root")
    root: Path = Field(Path("data"), description="folder that holds the datasets")
    policy: Literal["act"] = Field("act", description="LeRobot policy type")
    policy_settings: str = Field("{}", description="further fields of LeRobot's policy configuration, as JSON")
    n_obs_steps: int = Field(1, ge=1, description="observations that the policy sees at once")
    action_chunk_size: int = Field(10, ge=1, description="actions that the policy predicts at once")
    n_action_steps: int = Field(5, ge=1, description="of which so many are executed before the next look")
    batch_size: int = Field(64, ge=1, description="samples of one optimizer step, over all ranks")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches of one optimizer step on each rank")
    training_steps: int = Field(10_000, ge=1, description="optimizer steps")
    lr: float = Field(1e-4, gt=0, description="peak learning rate (cosine decay to a hundredth of it)")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's weight decay")
    clip_grad_norm: float = Field(10.0, ge=0, description="greatest gradient norm; 0 does not clip")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    seed: int = Field(0, ge=0, description="of the initial weights, the shuffling and the dropout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    num_workers: int = Field(0, ge=0, description="DataLoader processes a rank")
    log_interval: int = Field(10, ge=1, description="steps between logged rows")
    save_freq: int = Field(500, ge=1, description="steps between checkpoints")
    keep_last_n: int = Field(2, ge=1, description="newest checkpoints that stay")
    keep_every: int = Field(0, ge=0, description="checkpoints of every so many steps stay too; 0 for none")
    eval_episodes: int = Field(20, ge=0, description="episodes of an evaluation; 0 for none")
    eval_seed: int = Field(100_000, ge=0, description="seed of the first of them; demonstrations use low seeds")
    eval_freq: int = Field(0, ge=0, description="steps between evaluations, each behind a save; 0 for the last alone")
    best_rule: BestRule = Field("paired", description="paired: better beyond chance; naive: greater on average")
    model_management: Path | None = Field(
        None, description="YAML file whose section model_management says what is uploaded; RUN/config.yaml without it"
    )
    wandb_project: str = Field("vla-lego", description="W&B project")


def train(arguments: Arguments) -> None:
    """Trains a LeRobot policy with DeepSpeed; resumes by itself from the newest whole checkpoint of the run folder."""
    if (arguments.run_dir / "done.json").is_file():
        print(f"{arguments.run_dir} is complete already; nothing to do", flush=True)
        return
    check(arguments)
    job = Job.start(arguments.run_dir, arguments.device)
    policy, trainer = build(arguments, job)
    gating = make_gating(arguments, policy, trainer)
    outcome = trainer.run(gating.consider)
    if outcome is Stop.NO:
        # Each part of it can be repeated: a job that is ended in here goes on from the last checkpoint.
        outcome = gating.consider(arguments.training_steps)
    if outcome is Stop.NO:
        trainer.complete()
    else:
        trainer.hand_on(outcome)


def check(arguments: Arguments) -> None:
    """Refuses what can only fail later, before anything heavy is imported or anything is written.

    Raises:
        UserError: The arguments do not go together, or the dataset is not there.
    """
    policy_settings(arguments)
    if arguments.n_action_steps > arguments.action_chunk_size:
        raise UserError(
            f"--n-action-steps {arguments.n_action_steps}: only the {arguments.action_chunk_size}"
            " actions of a chunk (--action-chunk-size) can be executed"
        )
    micro_batch_size(arguments.batch_size, Ranks.from_environment().world_size, arguments.gradient_accumulation)
    require_dataset(arguments.root / arguments.repo_ids)
    if arguments.eval_freq and not arguments.eval_episodes:
        raise UserError(f"--eval-freq {arguments.eval_freq}: there is nothing to evaluate with --eval-episodes 0")
    check_seeds(arguments.run_dir, read_management(arguments), selection_seeds(arguments))


def policy_settings(arguments: Arguments) -> dict[str, Any]:
    """Fields of LeRobot's policy configuration, the flags that have a name of their own included.

    Raises:
        UserError: `--policy-settings` is not a JSON object.
    """
    try:
        settings = json.loads(arguments.policy_settings)
    except json.JSONDecodeError as error:
        raise UserError(f"--policy-settings {arguments.policy_settings!r} is not JSON: {error}") from None
    if not isinstance(settings, dict):
        raise UserError(
            f'--policy-settings {arguments.policy_settings!r}: expected an object, as in {{"dim_model": 64}}'
        )
    return {
        "n_obs_steps": arguments.n_obs_steps,
        "chunk_size": arguments.action_chunk_size,
        "n_action_steps": arguments.n_action_steps,
        **settings,
    }


def build(arguments: Arguments, job: Job) -> tuple[Policy, Trainer]:
    """Makes the policy, its data, the engine and the tracker of this rank."""
    import torch
    from lerobot.datasets.factory import resolve_delta_timestamps
    from lerobot.utils.random_utils import set_seed

    from gilbreth_phase0 import engine
    from gilbreth_phase0.checkpointer import Checkpointer
    from gilbreth_phase0.policies import make_config, make_policy
    from gilbreth_phase0.samples import in_memory
    from gilbreth_phase0.training import Schedule, Trainer
    from tracking.checkpoints import Retention
    from tracking.metadata import git_facts

    set_seed(arguments.seed)
    root = arguments.root / arguments.repo_ids
    meta = open_metadata(root, arguments.repo_ids)
    config = make_config(arguments.policy, job.device, **policy_settings(arguments))
    dataset = in_memory(open_dataset(root, arguments.repo_ids, resolve_delta_timestamps(config, meta)))
    policy = make_policy(config, meta)

    plan = BatchPlan(len(dataset), arguments.batch_size, arguments.seed)
    optimisation = engine.Optimisation(
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        warmup_steps=arguments.warmup_steps,
        training_steps=arguments.training_steps,
        clip_grad_norm=arguments.clip_grad_norm,
        zero_stage=arguments.zero_stage,
        micro_batch_size=micro_batch_size(plan.batch_size, job.ranks.world_size, arguments.gradient_accumulation),
        gradient_accumulation=arguments.gradient_accumulation,
    )
    count = sum(parameter.numel() for parameter in policy.model.parameters())
    job.say(
        f"{arguments.policy}, {count:,} parameters, on {len(dataset):,} frames of {meta.total_episodes} episodes:"
        f" {arguments.training_steps} steps of {arguments.batch_size} samples,"
        f" {job.ranks.world_size} rank(s) x {torch.get_num_threads()} thread(s) on {job.device},"
        f" ZeRO stage {arguments.zero_stage}"
    )
    wrapped = engine.initialise(policy.model, optimisation, job)
    checkpointer = Checkpointer(wrapped, job)
    restored = checkpointer.restore()
    retention = Retention(arguments.keep_last_n, arguments.keep_every)
    trainer = Trainer(
        engine=wrapped,
        preprocessor=policy.preprocessor,
        dataset=dataset,
        plan=plan,
        optimisation=optimisation,
        schedule=Schedule(arguments.log_interval, arguments.save_freq, retention, arguments.eval_freq),
        checkpointer=checkpointer,
        job=job,
        tracker=make_tracker(arguments, job, restored),
        git_commit=git_facts(Path.cwd())["commit"],
        num_workers=arguments.num_workers,
        restored=restored,
    )
    return policy, trainer


def make_tracker(arguments: Arguments, job: Job, restored: Restored) -> ExperimentTracker:
    """Makes the tracker, which continues the run of the checkpoint or of an attempt that did not come to one."""
    from tracking import ExperimentTracker

    config = read_config(arguments.run_dir) or json.loads(arguments.model_dump_json())
    config |= {SECTION: read_management(arguments).model_dump(mode="json")}
    return ExperimentTracker(
        project=arguments.wandb_project,
        config=config,
        tags={
            "model": arguments.policy,
            "dataset": arguments.repo_ids,
            "objective": "bc",
            "experiment_group": str(config.get("experiment_group", "bc")),
        },
        name=arguments.run_dir.name,
        resume_id=restored.run_id,
        resumed_step=restored.step or None,
        log_interval=arguments.log_interval,
        run_dir=arguments.run_dir,
        before_flush=job.check_ownership,
    )


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """Reads the resolved configuration that `launch.submit` saved with the run, or None for a run by hand."""
    import yaml

    path = run_dir / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def read_management(arguments: Arguments) -> ModelManagement:
    """What is uploaded and when, by the file that was given or by what `launch.submit` saved with the run.

    Raises:
        UserError: It is not of this form, or is about what no evaluation measures.
    """
    source = arguments.model_management or read_config(arguments.run_dir) or {}
    rules = read_rules(source)
    check_rules(rules)
    return rules


def selection_seeds(arguments: Arguments) -> range:
    """The seeds that select a policy."""
    return range(arguments.eval_seed, arguments.eval_seed + arguments.eval_episodes)


def make_gating(arguments: Arguments, policy: Policy, trainer: Trainer) -> Gating:
    """Makes what evaluates checkpoints and decides about them."""
    dataset = arguments.root / arguments.repo_ids
    meta = open_metadata(dataset, arguments.repo_ids)
    return Gating(
        policy=policy,
        policy_type=arguments.policy,
        dataset=dataset,
        facts={"dataset_episodes": meta.total_episodes, "dataset_frames": meta.total_frames},
        seeds=selection_seeds(arguments),
        rules=read_management(arguments),
        best_rule=arguments.best_rule,
        last_step=arguments.training_steps,
        job=trainer.job,
        tracker=trainer.tracker,
    )


app = command(Arguments, train)

if __name__ == "__main__":
    sys.exit(app())
