"""What the programs that train a policy have in common: their arguments, and what is made of those on each rank."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gilbreth_phase0.arguments import StageArguments
from gilbreth_phase0.gating import Gating, check_rules, check_seeds
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.sampling import micro_batch_size
from gilbreth_phase0.seeds import check_selection
from gilbreth_phase0.videos import check_rendering
from tracking.errors import UserError
from tracking.gate import BestRule, ModelManagement, read_rules
from tracking.gate.rules import SECTION

if TYPE_CHECKING:
    from gilbreth_phase0.checkpointer import Checkpointer, Restored
    from gilbreth_phase0.engine import Optimisation
    from gilbreth_phase0.policies import Policy
    from gilbreth_phase0.training import Trainer
    from gilbreth_phase0.training_data import TrainingData
    from tracking import ExperimentTracker


class TrainingArguments(StageArguments):
    """What every program accepts that trains a policy; a program's own model derives from this."""

    root: Path = Field(Path("data"), description="folder that holds the datasets")
    batch_size: int = Field(16, ge=1, description="samples of one optimizer step, over all ranks")
    gradient_accumulation: int = Field(1, ge=1, description="micro-batches of one optimizer step on each rank")
    training_steps: int = Field(10_000, ge=1, description="optimizer steps")
    lr: float = Field(1e-4, gt=0, description="peak learning rate (cosine decay to a hundredth of it)")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    weight_decay: float = Field(1e-4, ge=0, description="AdamW's weight decay")
    clip_grad_norm: float = Field(10.0, ge=0, description="greatest gradient norm; 0 does not clip")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    seed: int = Field(0, ge=0, description="of the initial weights, the shuffling and the dropout")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto takes a GPU where there is one")
    num_workers: int = Field(4, ge=0, description="DataLoader processes a rank; 0 reads in the training process")
    log_interval: int = Field(10, ge=1, description="steps between logged rows")
    save_freq: int = Field(500, ge=1, description="steps between checkpoints")
    keep_last_n: int = Field(2, ge=1, description="newest checkpoints that stay")
    keep_every: int = Field(0, ge=0, description="checkpoints of every so many steps stay too; 0 for none")
    eval_episodes: int = Field(10, ge=0, description="episodes of an evaluation; 0 for none")
    eval_seed: int = Field(100_000, ge=0, description="seed of the first of them, 100000 to 999999")
    eval_freq: int = Field(1000, ge=0, description="steps between evaluations, each saved first; 0 for the last alone")
    eval_on: Literal["workers", "ranks"] = Field(
        "workers", description="workers: behind the training, on CPUs of rank 0; ranks: on all ranks, which wait for it"
    )
    eval_workers: int = Field(2, ge=1, description="processes that simulate behind the training")
    max_steps: int = Field(400, ge=0, description="steps of an evaluated episode; 0 for the environment's horizon")
    save_video: bool = Field(False, description="record videos of the last evaluation")
    best_rule: BestRule = Field("paired", description="paired: better beyond chance; naive: greater on average")
    model_management: Path | None = Field(
        None, description="YAML file whose section model_management says what is uploaded; RUN/config.yaml without it"
    )
    use_wandb: bool = Field(True, description="show the run on W&B; the run's own journal is written in any case")
    wandb_project: str = Field("vla-lego", description="W&B project")
    wandb_job_type: str | None = Field(None, description="W&B job type")
    wandb_notes: str | None = Field(None, description="W&B notes")


def check_training(arguments: TrainingArguments, run_dir: Path) -> None:
    """Refuses what can only fail later, before anything heavy is imported or anything is written.

    Raises:
        UserError: The arguments do not go together, or not with what the run folder holds.
    """
    micro_batch_size(arguments.batch_size, Ranks.from_environment().world_size, arguments.gradient_accumulation)
    default = TrainingArguments.model_fields["eval_freq"].default
    if arguments.eval_freq not in {0, default} and not arguments.eval_episodes:
        raise UserError(f"--eval-freq {arguments.eval_freq}: there is nothing to evaluate with --eval-episodes 0")
    if arguments.save_video and not arguments.eval_episodes:
        raise UserError("--save-video: there is nothing to film with --eval-episodes 0")
    check_selection(selection_seeds(arguments))
    check_seeds(run_dir, read_management(arguments, run_dir), selection_seeds(arguments))
    if arguments.save_video:
        check_rendering()


def selection_seeds(arguments: TrainingArguments) -> range:
    """The seeds that select a policy."""
    return range(arguments.eval_seed, arguments.eval_seed + arguments.eval_episodes)


def eval_workers(arguments: TrainingArguments) -> int:
    """Processes that evaluate behind the training; 0 where the ranks do it, or nothing is evaluated on the way."""
    is_behind = arguments.eval_on == "workers" and arguments.eval_episodes and arguments.eval_freq
    return arguments.eval_workers if is_behind else 0


def read_config(run_dir: Path) -> dict[str, Any] | None:
    """Reads the resolved configuration that `launch.submit` saved with the run, or None for a run by hand."""
    import yaml

    path = run_dir / "config.yaml"
    return yaml.safe_load(path.read_text()) if path.is_file() else None


def read_management(arguments: TrainingArguments, run_dir: Path) -> ModelManagement:
    """What is uploaded and when, by the file that was given or by what `launch.submit` saved with the run.

    Raises:
        UserError: It is not of this form, or is about what no evaluation measures.
    """
    source = arguments.model_management or read_config(run_dir) or {}
    rules = read_rules(source)
    check_rules(rules)
    return rules


@dataclass(frozen=True)
class Prepared:
    """A policy under DeepSpeed, as far as its run has come.

    Attributes:
        engine: DeepSpeed engine around the policy.
        optimisation: How the policy is optimised.
        checkpointer: Saves the engine.
        restored: What the run's newest checkpoint gave back.
    """

    engine: Any
    optimisation: Optimisation
    checkpointer: Checkpointer
    restored: Restored


def prepare(arguments: TrainingArguments, job: Job, policy: Policy, first_step: int = 0) -> Prepared:
    """Wraps a policy in an engine and restores the run's newest checkpoint; every rank must call it.

    Args:
        arguments: The program's.
        job: This rank and its job.
        policy: What is trained.
        first_step: The run's step that this training begins with.
    """
    from gilbreth_phase0 import engine
    from gilbreth_phase0.checkpointer import Checkpointer

    optimisation = engine.Optimisation(
        lr=arguments.lr,
        weight_decay=arguments.weight_decay,
        warmup_steps=arguments.warmup_steps,
        training_steps=arguments.training_steps,
        clip_grad_norm=arguments.clip_grad_norm,
        zero_stage=arguments.zero_stage,
        micro_batch_size=micro_batch_size(arguments.batch_size, job.ranks.world_size, arguments.gradient_accumulation),
        gradient_accumulation=arguments.gradient_accumulation,
    )
    wrapped = engine.initialise(policy.model, optimisation, job)
    checkpointer = Checkpointer(wrapped, job)
    return Prepared(wrapped, optimisation, checkpointer, checkpointer.restore(first_step))


def make_tracker(
    arguments: TrainingArguments, job: Job, restored: Restored, *, model: str, objective: str, datasets: Sequence[str]
) -> ExperimentTracker:
    """Makes the tracker, which continues the run of the checkpoint or of an attempt that did not come to one.

    Args:
        arguments: The program's.
        job: This rank and its job.
        restored: What the run's newest checkpoint gave back.
        model: What is trained (`act`).
        objective: How (`bc`, `dagger`).
        datasets: Names of what it is trained on.
    """
    from tracking import ExperimentTracker

    config = read_config(job.run_dir) or json.loads(arguments.model_dump_json())
    config |= {SECTION: read_management(arguments, job.run_dir).model_dump(mode="json")}
    return ExperimentTracker(
        project=arguments.wandb_project,
        config=config,
        tags={
            "model": model,
            "dataset": ",".join(datasets),
            "objective": objective,
            "experiment_group": str(config.get("experiment_group", objective)),
        },
        name=job.run_dir.name,
        resume_id=restored.run_id,
        resumed_step=restored.step or None,
        log_interval=arguments.log_interval,
        run_dir=job.run_dir,
        job_type=arguments.wandb_job_type,
        notes=arguments.wandb_notes,
        before_flush=job.check_ownership,
        wandb=arguments.use_wandb,
    )


def make_trainer(
    arguments: TrainingArguments,
    job: Job,
    policy: Policy,
    data: TrainingData,
    *,
    prepared: Prepared,
    tracker: ExperimentTracker,
    first_step: int = 0,
    steps_of_run: int | None = None,
    checkpoint_freq: int = 0,
) -> Trainer:
    """Makes the step loop of this rank.

    Args:
        arguments: The program's.
        job: This rank and its job.
        policy: What is trained.
        data: What it is trained on.
        prepared: From `prepare`, with the same first step.
        tracker: Logs on rank 0.
        first_step: The run's step that this training begins with.
        steps_of_run: Steps of the whole run, where it has several rounds.
        checkpoint_freq: Steps between the bundles that stay; 0 for none.
    """
    from gilbreth_phase0.training import Schedule, Trainer
    from tracking.checkpoints import Retention
    from tracking.metadata import git_facts

    eval_freq = arguments.eval_freq if arguments.eval_episodes else 0
    retention = Retention(arguments.keep_last_n, arguments.keep_every)
    return Trainer(
        engine=prepared.engine,
        preprocessor=policy.preprocessor,
        dataset=data.dataset,
        plan=data.plan(arguments.batch_size, arguments.seed),
        optimisation=prepared.optimisation,
        schedule=Schedule(arguments.log_interval, arguments.save_freq, retention, eval_freq, checkpoint_freq),
        checkpointer=prepared.checkpointer,
        job=job,
        tracker=tracker,
        git_commit=git_facts(Path.cwd())["commit"],
        num_workers=arguments.num_workers,
        restored=prepared.restored,
        first_step=first_step,
        steps_of_run=steps_of_run,
    )


def make_gating(
    arguments: TrainingArguments,
    policy: Policy,
    trainer: Trainer,
    data: TrainingData,
    *,
    policy_type: str,
    checkpoint_freq: int = 0,
) -> Gating:
    """Makes what evaluates checkpoints and decides about them.

    Args:
        arguments: The program's.
        policy: What is trained.
        trainer: The step loop.
        data: What it is trained on.
        policy_type: What its model is called before the datasets' names (`act`).
        checkpoint_freq: Steps between the bundles that stay; 0 for none.
    """
    return Gating(
        policy=policy,
        policy_type=policy_type,
        datasets=data.folders,
        facts=data.facts,
        seeds=selection_seeds(arguments),
        rules=read_management(arguments, trainer.job.run_dir),
        best_rule=arguments.best_rule,
        last_step=arguments.training_steps,
        job=trainer.job,
        tracker=trainer.tracker,
        max_steps=arguments.max_steps or None,
        mirror=arguments.use_wandb,
        save_video=arguments.save_video,
        eval_freq=arguments.eval_freq if arguments.eval_episodes else 0,
        checkpoint_freq=checkpoint_freq,
    )
