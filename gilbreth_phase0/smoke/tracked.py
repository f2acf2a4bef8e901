"""Level 5: the whole way of a training stage, with tracking, checkpoints and a resume."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.checks import SECONDS, Look, check
from gilbreth_phase0.smoke.problem import SAMPLES, loss_on_all, not_fallen, regression, synthetic, untrained_loss
from gilbreth_phase0.smoke.zero import LEARNING, MICRO_BATCH, SHARED_DISK, not_back, optimisation, weights_of
from gilbreth_phase0.stop import Stop

if TYPE_CHECKING:
    from gilbreth_phase0.training import Trainer
    from tracking import ExperimentTracker


def run(arguments: Arguments, job: Job) -> tuple[str, ...]:
    """Trains, tracks, saves and resumes, and returns the lines behind PASSED."""
    fix = "see the lines above; level 3 tries DeepSpeed without tracking"
    half = arguments.steps // 2
    with check(job, "training is tracked and saved", fix, SECONDS + arguments.steps) as look:
        tracker = _make_tracker(arguments, job)
        first = _make_trainer(arguments, job, tracker, half)
        stopped = first.run()
        look.seen = f"step {first.saved_step}"
    with check(job, "a checkpoint gives back its step and the weights", SHARED_DISK) as look:
        second = _make_trainer(arguments, job, tracker, arguments.steps)
        look.fault = not_back(first.saved_step, second.saved_step, weights_of(first.engine), weights_of(second.engine))
        look.seen = f"step {second.saved_step}"
    with check(job, "training goes on from it", fix, SECONDS + arguments.steps) as look:
        stopped = stopped or second.run()
        look.seen = f"step {second.saved_step}"
    if stopped is not Stop.NO:
        second.hand_on(stopped)
    with check(job, "the loss falls", LEARNING) as look:
        before = untrained_loss(arguments.seed)
        after = loss_on_all(second.engine, arguments.seed, second.engine.device)
        look.seen, look.fault = f"{before:.4f} -> {after:.4f}", not_fallen(before, after)
    fix = f"is the disk full? df -h {arguments.run_dir}; then look at {arguments.run_dir}/journal-*.jsonl"
    with check(job, "the journal has every step once", fix) as look:
        if job.ranks.is_main:
            _look_at_journal(arguments, look)
    second.complete()
    ranks = f"{job.ranks.world_size} rank(s), ZeRO stage {arguments.zero_stage}"
    return (
        f"{arguments.steps} steps on {ranks}, saved and resumed at step {half}",
        f"  W&B:   run {tracker.get_run_id()}, {arguments.run_dir}/wandb",
    )


def _look_at_journal(arguments: Arguments, look: Look) -> None:
    from tracking import read_journal

    steps = [row.step for row in read_journal(arguments.run_dir).rows]
    look.seen = f"{len(steps)} rows"
    if steps != list(range(1, arguments.steps + 1)):
        look.fault = f"{len(steps)} rows, {len(set(steps))} steps of {arguments.steps}"


def _make_tracker(arguments: Arguments, job: Job) -> ExperimentTracker:
    """Makes the tracker of the smoke run, which logs every step."""
    from tracking import ExperimentTracker

    return ExperimentTracker(
        config={"smoke": arguments.model_dump(mode="json")},
        tags={"model": "mlp", "dataset": "synthetic", "objective": "smoke", "experiment_group": "smoke"},
        name=arguments.run_dir.name,
        log_interval=1,
        run_dir=arguments.run_dir,
        before_flush=job.check_ownership,
    )


def _make_trainer(arguments: Arguments, job: Job, tracker: ExperimentTracker, steps: int) -> Trainer:
    """Makes a fresh engine around a small regression, to be trained up to `steps`."""
    from gilbreth_phase0 import engine
    from gilbreth_phase0.checkpointer import Checkpointer
    from gilbreth_phase0.sampling import BatchPlan
    from gilbreth_phase0.training import Schedule, Trainer
    from tracking.checkpoints import Retention

    chosen = optimisation(arguments, steps)
    wrapped = engine.initialise(regression(arguments.seed), chosen, job)
    checkpointer = Checkpointer(wrapped, job)
    restored = checkpointer.restore()
    return Trainer(
        engine=wrapped,
        preprocessor=lambda batch: [value.to(wrapped.device) for value in batch],
        dataset=synthetic(arguments.seed),
        plan=BatchPlan(SAMPLES, MICRO_BATCH * job.ranks.world_size, arguments.seed),
        optimisation=chosen,
        schedule=Schedule(1, arguments.steps, Retention(last=2)),
        checkpointer=checkpointer,
        job=job,
        tracker=tracker,
        restored=restored,
    )
