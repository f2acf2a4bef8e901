"""The step loop: batches in, optimizer steps, tracking, checkpoints, and a stop at a step boundary."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.attempt import claim_requeue
from gilbreth_phase0.checkpointer import Checkpointer, Restored, Saved
from gilbreth_phase0.clock import StepClock
from gilbreth_phase0.engine import Optimisation
from gilbreth_phase0.job import Job
from gilbreth_phase0.progress import progress
from gilbreth_phase0.run_folder import write_done
from gilbreth_phase0.sampling import BatchPlan, ShardedBatches
from gilbreth_phase0.stop import TERMINATED_EXIT_CODE, Stop
from tracking import ExperimentTracker, checkpoints
from tracking.checkpoints import Retention
from tracking.inbox import take_after_end
from tracking.journal.lines import State
from tracking.ownership import AttemptKey

if TYPE_CHECKING:
    import torch
    from torch.utils.data import Dataset


@dataclass(frozen=True)
class Schedule:
    """When a training run saves and logs.

    Attributes:
        log_interval: Steps between logged rows.
        save_freq: Steps between checkpoints; the last step is saved in any case.
        retention: Checkpoints that stay.
        eval_freq: Steps between evaluations, before each of which the step is saved; 0 for none but the last.
        checkpoint_freq: Steps between the bundles that stay, each made of a saved step; 0 for none.
    """

    log_interval: int
    save_freq: int
    retention: Retention
    eval_freq: int = 0
    checkpoint_freq: int = 0

    def saves_soon(self, step: int) -> bool:
        """Whether this step or the next one is saved in any case."""
        return any(each % self.save_freq == 0 or self.is_evaluated(each) for each in (step, step + 1))

    def is_evaluated(self, step: int) -> bool:
        """Whether a step before the last one is evaluated, or its policy stays."""
        return step > 0 and any(each and step % each == 0 for each in (self.eval_freq, self.checkpoint_freq))


@dataclass
class Trainer:
    """One rank of a training run.

    Attributes:
        engine: DeepSpeed engine around the policy.
        preprocessor: LeRobot's, before the policy.
        dataset: Samples by index, as LeRobot's policies want them.
        plan: Which sample is trained at which step.
        optimisation: How the policy is optimised.
        schedule: When it is saved.
        checkpointer: Saves the engine.
        job: This rank and its job.
        tracker: Logs on rank 0.
        git_commit: Goes into the manifests.
        num_workers: DataLoader processes.
        restored: What the checkpoint gave back; training goes on behind it.
        first_step: The run's step that this training begins with; other than 0 in the later rounds of a run.
        steps_of_run: Steps of all rounds; those of this one where it is None.
    """

    engine: Any
    preprocessor: Any
    dataset: Dataset[Any]
    plan: BatchPlan
    optimisation: Optimisation
    schedule: Schedule
    checkpointer: Checkpointer
    job: Job
    tracker: ExperimentTracker
    git_commit: str | None = None
    num_workers: int = 0
    restored: Restored = field(default_factory=Restored)
    first_step: int = 0
    steps_of_run: int | None = None

    def __post_init__(self) -> None:
        self._evaluate_behind: Callable[[int], Stop] | None = None
        self.saved_step = self.restored.step
        self.job.stop.save_seconds = self.restored.save_seconds
        samples = self.restored.samples if self.restored.samples is not None else 0
        if self.restored.samples is not None or self.first_step:
            self.plan = self.plan.going_on(self.restored.step, samples)

    @property
    def last_step(self) -> int:
        """The run's step that this training ends with."""
        return self.first_step + self.optimisation.training_steps

    def run(self, evaluate: Callable[[int], Stop] = lambda _: Stop.NO, *, is_behind: bool = False) -> Stop:
        """Trains up to the configured number of steps and saves the last one.

        Args:
            evaluate: Called on every rank behind the saved steps that `schedule` evaluates, the last one apart; also
                at the step that is resumed, where an attempt may have been killed in it.
            is_behind: Whether it returns at once: then the steps do not wait for what it is called behind, either.

        Returns:
            `Stop.NO` when all steps are done, else why the ranks stopped; the step is saved in both cases.
        """
        total, first_step = self.last_step, self.saved_step
        is_resumed = self.first_step < first_step < total
        if is_resumed and self.schedule.is_evaluated(first_step):
            stop = evaluate(first_step)
            if stop is not Stop.NO:
                return stop
        batches = self._batches(first_step)
        self._evaluate_behind = evaluate if is_behind else None
        self._clock = StepClock(first_step, self.steps_of_run or total, self.schedule.save_freq)
        self.job.stop.restart_clock()
        with progress("steps", total, first_step, shown=self.job.ranks.is_main) as advance:
            for step in range(first_step, total):
                loss = self._step(step, batches)
                done = step + 1
                share = self.plan.batch_size // self.job.ranks.world_size
                self.tracker.log_training_step(loss, done, share, optimizer=self.engine.optimizer, model=self.engine)
                advance(f"ZeRO stage {self.optimisation.zero_stage}")
                stop = self.job.stop.at_boundary(self.checkpointer.is_sealed, self.schedule.saves_soon(done))
                if self.job.stop.all_sealed:
                    self._finish_save(done)
                last = done == total
                is_evaluated = not last and self.schedule.is_evaluated(done)
                is_waited_for = is_evaluated and not is_behind
                is_needed = stop is not Stop.NO or last or is_waited_for
                if is_needed or is_evaluated or done % self.schedule.save_freq == 0:
                    self.save(done, wait=is_needed)
                if stop is Stop.NO and is_waited_for:
                    with self._clock.left_out():
                        stop = evaluate(done)
                    self.job.stop.restart_clock()
                if stop is not Stop.NO and not last:
                    self.job.say(f"stopping at step {done}: {stop.name.lower()}")
                    return stop
        return Stop.NO

    def save(self, step: int, *, wait: bool) -> None:
        """Saves a step on all ranks, unless it is the newest checkpoint already.

        Args:
            step: The step.
            wait: Whether the checkpoint must be there now; else it gets its name some steps later.
        """
        if step != self.saved_step:
            self._finish_save(step)
            self.job.on_main(self.tracker.flush)
            state = {
                "step": step,
                "samples": self.plan.position(step),
                "batch_size": self.plan.batch_size,
                "seed": self.plan.seed,
            }
            self.checkpointer.begin(step, state, self.tracker.get_run_id(), self.git_commit)
            self.saved_step = step
            self.job.stop.save_begun()
        if wait:
            self._finish_save(step)
        self.job.stop.restart_clock()

    def _finish_save(self, done: int) -> None:
        if not self.checkpointer.is_under_way:
            return
        saved = self.checkpointer.finish()
        self.job.stop.saved_in(saved.seconds)
        held = f"training waited for {saved.held_seconds:.1f} s of it"
        self.job.say(f"{saved.checkpoint.name} is saved, in {saved.seconds:.1f} s; {held}")
        if self._evaluate_behind is not None and self.schedule.is_evaluated(self.saved_step) and not self._is_last():
            self._evaluate_behind(self.saved_step)
        self.job.on_main(lambda: self._after_save(done, saved))
        self.job.stop.restart_clock()

    def _is_last(self) -> bool:
        """Whether the newest save is that of the last step, which whoever runs the training considers."""
        return self.saved_step == self.last_step

    def _after_save(self, done: int, saved: Saved) -> None:
        folder = self.job.run_dir / "checkpoints"
        checkpoints.prune(folder, self.schedule.retention, trusted=saved.checkpoint, say=self.job.say)
        self._clock.saved(self.saved_step, done, saved.seconds, saved.held_seconds).write(self.job.run_dir)
        self.tracker.take_inbox()

    def _step(self, step: int, batches: Iterator[Any]) -> torch.Tensor:
        """Does one optimizer step and returns its loss on all samples of the step, on the device."""
        import torch

        # Dropout and latent samples are a function of (seed, step, rank): a resumed run draws the same.
        torch.manual_seed((self.plan.seed * 1_000_003 + step) * 4_099 + self.job.ranks.rank)
        total = torch.zeros((), device=self.engine.device)
        for _ in range(self.optimisation.gradient_accumulation):
            loss, _ = self.engine(self.preprocessor(next(batches)))
            self.engine.backward(loss)
            self.engine.step()
            total += loss.detach()
        return self._over_ranks(total / self.optimisation.gradient_accumulation, step + 1)

    def _over_ranks(self, loss: torch.Tensor, step: int) -> torch.Tensor:
        """Averages over the ranks, only at steps that are logged: all others would wait for nothing."""
        if self.job.ranks.world_size == 1 or step % self.schedule.log_interval:
            return loss
        import torch.distributed as dist

        dist.all_reduce(loss)
        return loss / self.job.ranks.world_size

    def _batches(self, first_step: int) -> Iterator[Any]:
        from torch.utils.data import DataLoader

        sampler = ShardedBatches(
            self.plan,
            self.job.ranks.rank,
            self.job.ranks.world_size,
            self.optimisation.gradient_accumulation,
            first_step=first_step,
            last_step=self.last_step,
        )
        loader = DataLoader(
            self.dataset,
            batch_sampler=sampler,
            num_workers=self.num_workers,
            pin_memory=self.engine.device.type == "cuda",
            persistent_workers=False,
        )
        return iter(loader)

    def complete(self) -> None:
        """Closes the tracker, writes the done record and leaves the ranks: after this no attempt does anything more."""
        complete(self.job, self.tracker, self.last_step)

    def hand_on(self, stop: Stop) -> None:
        """Closes the tracker after a stop and hands the process on to whoever requeues it. Does not return."""
        hand_on(self.job, self.tracker, stop)


def complete(job: Job, tracker: ExperimentTracker, step: int) -> None:
    """Closes the tracker, writes the done record and leaves the ranks; every rank must call it.

    Args:
        job: This rank and its job.
        tracker: Logs on rank 0.
        step: The run's last step.
    """

    def end() -> None:
        job.check_ownership()
        tracker.take_inbox()
        tracker.finish()
        write_done(job.run_dir, step)
        # Whoever put something there meanwhile left it to this run.
        take_after_end(job.run_dir)

    job.on_main(end)
    job.close()


def hand_on(job: Job, tracker: ExperimentTracker, stop: Stop) -> None:
    """Closes the tracker after a stop and hands the process on to whoever requeues it. Does not return."""
    state: State = "preempted" if stop is Stop.REQUEUE else "crashed"
    tracker.finish(exit_code=TERMINATED_EXIT_CODE, state=state)
    job.close()
    key = AttemptKey.from_environment()
    job.stop.hand_on(stop, may_requeue=lambda: claim_requeue(job.run_dir, key))
