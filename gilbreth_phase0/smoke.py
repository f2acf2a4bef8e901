"""Smoke test 05: does DeepSpeed train, track, checkpoint and resume on these nodes? Minutes, not a queue of hours."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from gilbreth_phase0.arguments import StageArguments, command
from gilbreth_phase0.job import Job
from gilbreth_phase0.stop import Stop
from tracking.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset

    from gilbreth_phase0.training import Trainer
    from tracking import ExperimentTracker

_FEATURES = 16
_HIDDEN = 64
_SAMPLES = 512


class Arguments(StageArguments):
    """Arguments of `python -m gilbreth_phase0.smoke`."""

    run_dir: Path = Field(description="run folder")
    steps: int = Field(40, ge=4, description="optimizer steps; the run is resumed in the middle")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage")
    seed: int = Field(0, ge=0, description="of the weights and the data")


class SmokeError(UserError):
    """A check that did not hold; the message ends with the fix."""


def failed(check: str, seen: str, fix: str) -> SmokeError:
    """Makes the error of a check that did not hold."""
    return SmokeError(f"FAILED: {check}\n  seen: {seen}\n  fix:  {fix}")


def smoke(arguments: Arguments) -> None:
    """Trains a small model under DeepSpeed, tracks it, saves it, resumes it and prints PASSED."""
    start = time.monotonic()
    job = Job.start(arguments.run_dir)
    how = "NCCL on GPUs" if job.device == "cuda" else "gloo on CPUs (PyTorch sees no GPU here)"
    job.say(f"smoke: {job.ranks.world_size} rank(s) have met over {how}")
    tracker = make_tracker(arguments, job)

    half = arguments.steps // 2
    first = make_trainer(arguments, job, tracker, half)
    stopped = first.run()

    second = make_trainer(arguments, job, tracker, arguments.steps)
    check_resume(second.saved_step, first.saved_step, weights_of(first), weights_of(second))
    stopped = stopped or second.run()
    if stopped is not Stop.NO:
        second.hand_on(stopped)
    before, after = untrained_loss(arguments), loss_of(second)
    if not after < before:
        raise failed("the loss falls", f"{before:.4f} before, {after:.4f} after", "look at the gradients above")
    job.on_main(lambda: check_journal(arguments))
    second.complete()
    job.say(
        f"PASSED: {arguments.steps} steps on {job.ranks.world_size} rank(s), ZeRO stage {arguments.zero_stage},"
        f" saved and resumed at step {half}, loss {before:.4f} -> {after:.4f}, {time.monotonic() - start:.0f} s\n"
        f"  run:   {arguments.run_dir}\n"
        f"  W&B:   run {tracker.get_run_id()}, {arguments.run_dir}/wandb"
    )


def check_resume(resumed: int, expected: int, saved: dict[str, torch.Tensor], loaded: dict[str, torch.Tensor]) -> None:
    """Compares what was saved with what came back.

    Raises:
        SmokeError: Another step or other weights came back.
    """
    fix = "is the run folder on a disk that all nodes share? Ask for one with: sbatch --chdir, or a profile's run_root"
    if resumed != expected:
        raise failed("a checkpoint resumes at its step", f"step {resumed}, not {expected}", fix)
    other = [name for name, weight in saved.items() if not weight.equal(loaded[name])]
    if other:
        raise failed("a checkpoint gives back the weights", f"{', '.join(other)} differ", fix)


def check_journal(arguments: Arguments) -> None:
    """Looks for every step in the journal.

    Raises:
        SmokeError: A step is missing or stands there twice.
    """
    from tracking import read_journal

    steps = [row.step for row in read_journal(arguments.run_dir).rows]
    if steps != list(range(1, arguments.steps + 1)):
        raise failed(
            "the journal has every step once",
            f"{len(steps)} rows, {len(set(steps))} steps of {arguments.steps}",
            f"is the disk full? df -h {arguments.run_dir}; then look at {arguments.run_dir}/journal-*.jsonl",
        )


def make_tracker(arguments: Arguments, job: Job) -> ExperimentTracker:
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


def make_trainer(arguments: Arguments, job: Job, tracker: ExperimentTracker, steps: int) -> Trainer:
    """Makes a fresh engine around a small regression, to be trained up to `steps`."""
    from gilbreth_phase0 import engine
    from gilbreth_phase0.checkpointer import Checkpointer
    from gilbreth_phase0.sampling import BatchPlan
    from gilbreth_phase0.training import Schedule, Trainer
    from tracking.checkpoints import Retention

    optimisation = engine.Optimisation(
        lr=1e-2,
        weight_decay=0.0,
        warmup_steps=2,
        training_steps=steps,
        clip_grad_norm=1.0,
        zero_stage=arguments.zero_stage,
        micro_batch_size=8,
        gradient_accumulation=1,
    )
    wrapped = engine.initialise(regression(arguments.seed), optimisation, job)
    checkpointer = Checkpointer(wrapped, job)
    restored = checkpointer.restore()
    return Trainer(
        engine=wrapped,
        preprocessor=lambda batch: [value.to(wrapped.device) for value in batch],
        dataset=synthetic(arguments.seed),
        plan=BatchPlan(_SAMPLES, 8 * job.ranks.world_size, arguments.seed),
        optimisation=optimisation,
        schedule=Schedule(1, arguments.steps, Retention(last=2)),
        checkpointer=checkpointer,
        job=job,
        tracker=tracker,
        restored=restored,
    )


def regression(seed: int) -> torch.nn.Module:
    """A small network that returns its loss, as LeRobot's policies do; the same one for each seed."""
    import torch

    class Regression(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(_FEATURES, _HIDDEN), torch.nn.Tanh(), torch.nn.Linear(_HIDDEN, 1)
            )

        def forward(self, batch: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layers(inputs), targets), {}

    torch.manual_seed(seed)
    return Regression()


def synthetic(seed: int) -> Dataset[Any]:
    """Inputs (512, 16) and the sine of their sum (512, 1)."""
    import torch
    from torch.utils.data import TensorDataset

    inputs = torch.randn(_SAMPLES, _FEATURES, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


def untrained_loss(arguments: Arguments) -> float:
    """The loss on all samples before the first step; a job that was requeued has no engine in that state."""
    import torch

    with torch.no_grad():
        loss, _ = regression(arguments.seed)(list(synthetic(arguments.seed)[:]))
    return float(loss)


def loss_of(trainer: Trainer) -> float:
    """The loss on all samples; the same on every rank."""
    import torch

    with torch.no_grad():
        loss, _ = trainer.engine(trainer.preprocessor(list(trainer.dataset[:])))
    return float(loss)


def weights_of(trainer: Trainer) -> dict[str, torch.Tensor]:
    """The weights on this rank; under ZeRO 3 the rank's shard of each."""
    parameters = trainer.engine.module.named_parameters()
    return {name: getattr(value, "ds_tensor", value).detach().cpu().clone() for name, value in parameters}


app = command(Arguments, smoke)

if __name__ == "__main__":
    sys.exit(app())
