"""Evaluations behind the training: rank 0 hands a saved checkpoint on, and the steps go on meanwhile.

A thread of rank 0 has child processes on spare CPUs make the policy bundle and run the episodes, and lets the gate
decide, one checkpoint after the other. What is found is logged at its step, however late that is.

```
RUN/behind/template/               what a bundle holds beside the weights
RUN/behind/step-00000300/bundle/   a policy that is being evaluated
RUN/behind/step-00000400/          the next one: its bundle is still to be made
```
A folder of a step goes when all of it is decided: what stands there when an attempt begins is made up for. The
checkpoint is pinned until then.
"""

from __future__ import annotations

import os
import queue
import shutil
import threading
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from gilbreth_phase0.contenders import TRAINED, with_horizon
from gilbreth_phase0.datasets import read_environment
from gilbreth_phase0.kept_bundles import BUNDLE
from gilbreth_phase0.parallel import PRELOAD, PolicyWorker, Trial
from gilbreth_phase0.rollout import Episode
from gilbreth_phase0.stop import Stop
from gilbreth_phase0.trials import TrialError
from gilbreth_phase0.workers import ordered_map
from tracking import checkpoints
from tracking.words import many

if TYPE_CHECKING:
    from gilbreth_phase0.evaluate import EvaluationResult
    from gilbreth_phase0.gating import Gating
    from gilbreth_phase0.training import Trainer

Item = TypeVar("Item")
Result = TypeVar("Result")

FOLDER = "behind"
_TEMPLATE = "template"
# How much less than the training the workers get where both want the same CPU.
_NICENESS = 10
_LOOK_SECONDS = 0.5
# An episode that is under way is not cut off.
_END_SECONDS = 30.0


class AbandonedError(Exception):
    """The attempt ends before the evaluation does; the next one makes up for it."""


@dataclass(frozen=True)
class _Waiting:
    """A checkpoint that is to be evaluated; it is not deleted before `held` is closed."""

    step: int
    checkpoint: Path | None
    held: ExitStack = field(default_factory=ExitStack)


class Behind:
    """What considers a run's checkpoints while the training goes on; every rank has one, and rank 0's does the work.

    Args:
        gating: What decides about a checkpoint.
        num_workers: Processes that simulate; 0 has all ranks evaluate, and wait for it.
        trainer: The step loop, which has the step that this attempt goes on from: what was saved later is trained
            again.
    """

    def __init__(self, gating: Gating, num_workers: int, trainer: Trainer) -> None:
        self._gating, self._job, self._num_workers = gating, gating.job, num_workers
        self._restored_step, self._retention = trainer.saved_step, trainer.schedule.retention
        self._folder = gating.job.run_dir / FOLDER
        self._waiting: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._known: set[int] = set()
        self._left = 0
        self._fault: BaseException | None = None
        self._changed = threading.Condition()
        self._abandoned = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def is_behind(self) -> bool:
        """Whether `consider` returns at once."""
        return self._num_workers > 0

    def __enter__(self) -> Self:
        """Begins with what earlier attempts left."""
        if self.is_behind:
            self._job.on_main(self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leaves what is not decided to the next attempt."""
        self._abandoned.set()
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(_END_SECONDS)

    def consider(self, step: int) -> Stop:
        """Hands the checkpoint of a step on; every rank must call it.

        Raises:
            Exception: What became of an earlier one, on every rank.
        """
        if not self.is_behind:
            return self._gating.consider(step)
        self._job.on_main(lambda: self._hand_over(step))
        return Stop.NO

    def finish(self, step: int) -> Stop:
        """Waits until all checkpoints are decided about, then has all ranks consider that of the last step.

        Returns:
            Why the ranks stopped before the end of it, or `Stop.NO`.
        """
        self._job.stop.restart_clock()
        while self.is_behind and not self._job.on_main(self._is_idle):
            stop = self._job.stop.at_boundary()
            if stop is not Stop.NO:
                return stop
        if self.is_behind:
            self._job.on_main(self._clear_up)
        return self._gating.consider(step)

    def _clear_up(self) -> None:
        shutil.rmtree(self._folder)
        # Some were pinned when the last save cleared up.
        checkpoints.prune(self._job.run_dir / "checkpoints", self._retention, say=self._job.say)

    def _begin(self) -> None:
        from gilbreth_phase0.policies import save_template

        self._folder.mkdir(exist_ok=True)
        template = self._folder / _TEMPLATE
        shutil.rmtree(template, ignore_errors=True)
        save_template(self._gating.policy, read_environment(self._gating.datasets[0]), template)
        for folder in sorted(self._folder.glob("step-*")):
            step = int(folder.name.removeprefix("step-"))
            if step <= self._restored_step and ((folder / BUNDLE).is_dir() or self._checkpoint(step) is not None):
                self._job.say(f"the evaluation of step {step}, which an earlier attempt began, goes on")
                self._hand_over(step)
            else:
                shutil.rmtree(folder)

    def _hand_over(self, step: int) -> None:
        self._raise_fault()
        if step in self._known:
            return
        self._job.check_ownership()
        self._known.add(step)
        (self._folder / checkpoints.step_tag(step)).mkdir(exist_ok=True)
        waiting = _Waiting(step, self._checkpoint(step))
        if waiting.checkpoint is not None:
            waiting.held.enter_context(checkpoints.pinned(waiting.checkpoint, FOLDER))
        with self._changed:
            self._left += 1
            before = self._left - 1
        if before:
            self._job.say(f"the evaluation of step {step} waits for {many(before, 'earlier one')}")
        self._waiting.put(waiting)
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="evaluations", daemon=True)
            self._thread.start()

    def _checkpoint(self, step: int) -> Path | None:
        path = self._job.run_dir / "checkpoints" / checkpoints.step_tag(step)
        return path if path.is_dir() and checkpoints.has_all_files(path) else None

    def _is_idle(self) -> bool:
        """Waits a moment, and says whether nothing is left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left == 0 or self._fault is not None, _LOOK_SECONDS)
        self._raise_fault()
        return self._left == 0

    def _raise_fault(self) -> None:
        if self._fault is not None:
            raise self._fault

    def _serve(self) -> None:
        while (waiting := self._waiting.get()) is not None and self._fault is None:
            try:
                with waiting.held:
                    self._decide(waiting)
            except AbandonedError:
                return
            except BaseException as error:  # noqa: BLE001 - raised again by `consider` and `finish`
                self._fault = error
            with self._changed:
                self._left -= 1
                self._changed.notify_all()

    def _decide(self, waiting: _Waiting) -> None:
        folder = self._folder / checkpoints.step_tag(waiting.step)
        bundle = folder / BUNDLE
        if not bundle.is_dir():
            if waiting.checkpoint is None:
                raise RuntimeError(f"step {waiting.step} was saved, and there is no checkpoint of it")
            self._in_children(partial(_bundle_maker, self._folder / _TEMPLATE), [(waiting.checkpoint, bundle)], 1)
        self._check_abandoned()
        gating = replace(self._gating, made=bundle)
        gating.keep(waiting.step)
        if gating.is_decided(waiting.step):
            gating.decide(waiting.step, waiting.checkpoint, self._tries)
        shutil.rmtree(folder)

    def _tries(self, bundle: Path, seeds: Sequence[int]) -> EvaluationResult:
        from gilbreth_phase0.evaluate import summary

        environment = with_horizon(read_environment(bundle), self._gating.max_steps)
        trial = Trial({TRAINED: bundle}, environment, seeds)
        try:
            items = [(TRAINED, seed) for seed in seeds]
            return summary(self._in_children(partial(_polite, partial(PolicyWorker, trial)), items, self._num_workers))
        except AbandonedError:
            raise
        except Exception as error:
            raise TrialError(f"{bundle} could not be tried: {type(error).__name__}: {error}") from error

    def _in_children(
        self, make_worker: Callable[[], Callable[[Item], Result]], items: Sequence[Item], num_workers: int
    ) -> list[Result]:
        found = []
        with ordered_map(make_worker, items, num_workers, PRELOAD) as results:
            for result in results:
                self._check_abandoned()
                found.append(result)
        return found

    def _check_abandoned(self) -> None:
        if self._abandoned.is_set():
            raise AbandonedError


def _polite(make_worker: Callable[[], Callable[[tuple[str, int]], Episode]]) -> Callable[[tuple[str, int]], Episode]:
    os.nice(_NICENESS)
    return make_worker()


def _bundle_maker(template: Path) -> Callable[[tuple[Path, Path]], None]:
    """Makes bundles, in a process of its own: a model made here would draw from the training's random numbers."""
    from gilbreth_phase0.policies import fill_template
    from tracking.consolidate import consolidated_weights

    os.nice(_NICENESS)

    def make(item: tuple[Path, Path]) -> None:
        checkpoint, bundle = item
        fill_template(template, consolidated_weights(checkpoint), bundle)

    return make
