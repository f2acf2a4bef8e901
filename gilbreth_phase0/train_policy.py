"""Trains a LeRobot policy on demonstrations with DeepSpeed ZeRO: the stage `bc`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gilbreth_phase0.arguments import StageArguments, command
from gilbreth_phase0.datasets import open_dataset, open_metadata, read_environment, require_dataset
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.sampling import BatchPlan, micro_batch_size
from gilbreth_phase0.stop import Stop
from tracking.errors import UserError

if TYPE_CHECKING:
    from gilbreth_phase0.checkpointer import Restored
    from gilbreth_phase0.policies import Policy
    from gilbreth_phase0.training import Trainer
    from tracking import ExperimentTracker

BUNDLE = "bundle"
"""The folder in a run folder that the trained policy ends up in."""


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
    eval_episodes: int = Field(20, ge=0, description="episodes of the evaluation at the end; 0 for none")
    eval_seed: int = Field(100_000, ge=0, description="seed of the first of them; demonstrations use low seeds")
    wandb_project: str = Field("vla-lego", description="W&B project")


def train(arguments: Arguments) -> None:
    """Trains a LeRobot policy with DeepSpeed; resumes by itself from the newest whole checkpoint of the run folder."""
    if (arguments.run_dir / "done.json").is_file():
        print(f"{arguments.run_dir} is complete already; nothing to do", flush=True)
        return
    check(arguments)
    job = Job.start(arguments.run_dir, arguments.device)
    policy, trainer = build(arguments, job)
    outcome = trainer.run()
    if outcome is Stop.NO:
        outcome = finish(arguments, policy, trainer)
    if outcome is not Stop.NO:
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
    trainer = Trainer(
        engine=wrapped,
        preprocessor=policy.preprocessor,
        dataset=dataset,
        plan=plan,
        optimisation=optimisation,
        schedule=Schedule(
            arguments.log_interval, arguments.save_freq, Retention(arguments.keep_last_n, arguments.keep_every)
        ),
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


def finish(arguments: Arguments, policy: Policy, trainer: Trainer) -> Stop:
    """After the last step: the bundle, then the evaluation, the bundle's name, and the done record.

    Each part can be repeated, so that a job that is ended here goes on from the last checkpoint.

    Returns:
        `Stop.NO` when the run is complete, else why the ranks stopped before.
    """
    trainer.job.on_main(lambda: make_bundle(arguments, policy, trainer))
    stop = evaluate(arguments, trainer) if arguments.eval_episodes else Stop.NO
    if stop is Stop.NO:
        trainer.job.on_main(lambda: publish(arguments, trainer))
        trainer.complete()
    return stop


def make_bundle(arguments: Arguments, policy: Policy, trainer: Trainer) -> None:
    """Makes the policy bundle of the newest checkpoint, on rank 0."""
    from gilbreth_phase0.policies import save_bundle
    from tracking.consolidate import consolidated_weights

    trainer.job.check_ownership()
    environment = read_environment(arguments.root / arguments.repo_ids)
    weights = consolidated_weights(trainer.newest_checkpoint())
    save_bundle(policy, weights, environment, arguments.run_dir / BUNDLE)
    trainer.job.say(f"policy bundle: {arguments.run_dir / BUNDLE}")


def publish(arguments: Arguments, trainer: Trainer) -> None:
    """Gives the bundle its name in the model store, on rank 0; the run is complete without that, too."""
    from gilbreth_phase0.publishing import publish_bundle

    trainer.job.check_ownership()
    bundle, dataset = arguments.run_dir / BUNDLE, arguments.root / arguments.repo_ids
    try:
        published, why = publish_bundle(arguments.run_dir, bundle, arguments.policy, dataset, arguments.training_steps)
    except (UserError, OSError) as error:
        trainer.job.say(
            f"warning: the policy is not in the model store: {error}\n"
            f"  next: python -m tracking.models publish {bundle} {arguments.policy}-{dataset.name} --alias final"
        )
        return
    names = ", ".join(published.version.aliases)
    trainer.job.say(f"model {published} ({names}) in {published.folder}; best: {why}")


def evaluate(arguments: Arguments, trainer: Trainer) -> Stop:
    """Evaluates the bundle on fresh seeds, shared out over the ranks; rank 0 logs the result at the last step.

    Returns:
        Why the ranks stopped before the end, or `Stop.NO`.
    """
    from gilbreth_phase0.evaluate import TRAINED, evaluate_policy, summary, write_evaluation
    from gilbreth_phase0.policies import load_bundle
    from gilbreth_phase0.progress import progress

    job, ranks, bundle = trainer.job, trainer.job.ranks, arguments.run_dir / BUNDLE
    seeds = range(arguments.eval_seed, arguments.eval_seed + arguments.eval_episodes)
    own = evaluate_policy(load_bundle(bundle), read_environment(bundle), seeds[ranks.rank :: ranks.world_size])
    episodes = []
    rounds = -(-len(seeds) // ranks.world_size)
    with progress("evaluation rounds", rounds, shown=ranks.is_main) as advance:
        for _ in range(rounds):  # as many on every rank, or the ranks would not agree on a stop
            episodes += [episode for episode in [next(own, None)] if episode is not None]
            advance(f"rank 0: {sum(episode.success for episode in episodes)}/{len(episodes)} succeeded")
            stop = job.stop.at_boundary()
            if stop is not Stop.NO:
                return stop
    shares = job.gathered(episodes)
    if ranks.is_main:
        result = summary(episode for share in shares for episode in share)
        write_evaluation(arguments.run_dir, {TRAINED: result})
        trainer.tracker.log_metrics(result.metrics(), step=arguments.training_steps)
        job.say(f"evaluation on seeds {seeds[0]} to {seeds[-1]}: {result}")
    return Stop.NO


app = command(Arguments, train)

if __name__ == "__main__":
    sys.exit(app())
