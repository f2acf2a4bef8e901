"""Level 3, and the last part of level 4: DeepSpeed ZeRO trains, saves a shard a rank, and goes on from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gilbreth_phase0.engine import Optimisation
from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.checks import SECONDS, Look, check, complete
from gilbreth_phase0.smoke.collectives import check_ranks
from gilbreth_phase0.smoke.problem import SAMPLES, loss_on_all, not_fallen, regression, samples, untrained_loss

if TYPE_CHECKING:
    import torch

    from gilbreth_phase0.checkpointer import Checkpointer

MICRO_BATCH = 8
SHARED_DISK = "is the run folder on a disk that all nodes share? Submit from one, or name one: cluster.run_root"
LEARNING = "look for inf or nan in the log above; then try level 1 on each of the nodes"


def run(arguments: Arguments, job: Job) -> tuple[str, ...]:
    """Runs the checks of DeepSpeed and returns the lines behind PASSED."""
    check_ranks(job, 2)
    return train_save_load(arguments, job)


def train_save_load(arguments: Arguments, job: Job) -> tuple[str, ...]:
    """Trains half of the steps, saves, loads into a fresh engine, and trains the rest."""
    half = arguments.steps // 2
    fix = "an import or a compiler has failed: see the lines above, and run 'make setup' on the login node"
    with check(job, "DeepSpeed trains", fix, SECONDS + arguments.steps) as look:
        first, checkpointer = make_engine(arguments, job)
        begun = checkpointer.restore().step  # an attempt before this one may have saved
        _train(first, arguments, job, begun, half)
        precision = "bf16 autocast" if job.device == "cuda" else "float32"
        look.seen = f"{half - begun} steps, ZeRO stage {arguments.zero_stage}, {precision}"
    with check(job, "a checkpoint holds a shard of each rank", SHARED_DISK) as look:
        if begun < half:
            checkpointer.save(half, {"step": half}, run_id=None, git_commit=None)
        _look_at_shards(arguments, job, half, look)
    with check(job, "a checkpoint gives back its step and the weights", SHARED_DISK) as look:
        second, checkpointer = make_engine(arguments, job)
        look.fault = not_back(half, checkpointer.restore().step, weights_of(first), weights_of(second))
        look.seen = f"step {half}"
    with check(job, "the loss falls", LEARNING, SECONDS + arguments.steps) as look:
        _train(second, arguments, job, half, arguments.steps)
        before, after = untrained_loss(arguments.seed), loss_on_all(second, arguments.seed, second.device)
        look.seen, look.fault = f"{before:.4f} -> {after:.4f}", not_fallen(before, after)
    complete(job, arguments.steps)
    ranks = f"{job.ranks.world_size} rank(s), ZeRO stage {arguments.zero_stage}"
    return (f"{arguments.steps} steps on {ranks}, saved and resumed at step {half}",)


def optimisation(arguments: Arguments, steps: int) -> Optimisation:
    """How the small network is trained up to `steps`."""
    return Optimisation(
        lr=1e-2,
        weight_decay=0.0,
        warmup_steps=2,
        training_steps=steps,
        clip_grad_norm=1.0,
        zero_stage=arguments.zero_stage,
        micro_batch_size=MICRO_BATCH,
        gradient_accumulation=1,
    )


def make_engine(arguments: Arguments, job: Job) -> tuple[Any, Checkpointer]:
    """Makes a fresh engine around the small network, and what saves and restores it."""
    from gilbreth_phase0 import engine
    from gilbreth_phase0.checkpointer import Checkpointer

    wrapped = engine.initialise(regression(arguments.seed), optimisation(arguments, arguments.steps), job)
    return wrapped, Checkpointer(wrapped, job)


def _train(wrapped: Any, arguments: Arguments, job: Job, first: int, last: int) -> None:
    from gilbreth_phase0.sampling import BatchPlan, ShardedBatches

    world_size = job.ranks.world_size
    plan = BatchPlan(SAMPLES, MICRO_BATCH * world_size, arguments.seed)
    for batch in ShardedBatches(plan, job.ranks.rank, world_size, 1, first_step=first, last_step=last):
        loss, _ = wrapped(samples(arguments.seed, wrapped.device, batch))
        wrapped.backward(loss)
        wrapped.step()


def _look_at_shards(arguments: Arguments, job: Job, step: int, look: Look) -> None:
    from tracking import checkpoints

    checkpoint = job.run_dir / "checkpoints" / checkpoints.step_tag(step)
    shards = len(list(checkpoint.glob("*optim_states.pt")))
    look.seen = f"{shards} shard(s) of the optimizer in {checkpoint.name}"
    if arguments.zero_stage and shards != job.ranks.world_size:
        look.fault = f"{shards} shards of the optimizer in {checkpoint}, {job.ranks.world_size} ranks"


def not_back(expected: int, resumed: int, saved: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> str:
    """Says what has not come back from a checkpoint; empty where all has."""
    if resumed != expected:
        return f"step {resumed}, not {expected}"
    other = [name for name, weight in saved.items() if not weight.equal(loaded[name])]
    return f"{', '.join(other)} differ" if other else ""


def weights_of(engine: Any) -> dict[str, torch.Tensor]:
    """The weights on this rank; under ZeRO 3 the rank's shard of each."""
    parameters = engine.module.named_parameters()
    return {name: getattr(value, "ds_tensor", value).detach().cpu().clone() for name, value in parameters}
