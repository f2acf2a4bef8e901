"""A rank that trains a small model under every ZeRO stage, saves it and brings it back; what it saw goes into a file.

`checkpoint_rank.py train FOLDER` trains six steps with a save in the middle. In fresh processes,
`checkpoint_rank.py resume FOLDER` restores and trains the rest, and then does what must fail.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import torch.distributed as dist
from deepspeed.utils import safe_get_full_fp32_param

from gilbreth_phase0 import engine
from gilbreth_phase0.checkpointer import Checkpointer
from gilbreth_phase0.job import Job
from gilbreth_phase0.sampling import BatchPlan, ShardedBatches
from gilbreth_phase0.smoke import problem
from gilbreth_phase0.training import Schedule, Trainer
from tracking import ExperimentTracker, checkpoints
from tracking.checkpoints import Retention
from tracking.consolidate import consolidated_weights
from tracking.errors import UserError
from tracking.ownership import AttemptKey, Owner

from live_engine import digest

STAGES = range(4)
SAVED, LAST, SEED = 3, 6, 0


def job_in(folder: Path, job: Job) -> Job:
    """The same rank with another run folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return dataclasses.replace(job, run_dir=folder, owner=Owner.claim(folder) if job.ranks.is_main else None)


def optimisation(stage: int) -> engine.Optimisation:
    return engine.Optimisation(
        lr=1e-2,
        weight_decay=1e-3,
        warmup_steps=2,
        training_steps=LAST,
        clip_grad_norm=1.0,
        zero_stage=stage,
        micro_batch_size=8,
        gradient_accumulation=1,
    )


def make_engine(stage: int, job: Job) -> Any:
    return engine.initialise(problem.regression(SEED), optimisation(stage), job)


def train(wrapped: Any, job: Job, first: int, last: int) -> None:
    data, world_size = problem.synthetic(SEED), job.ranks.world_size
    plan = BatchPlan(len(data), 8 * world_size, SEED)
    for batch in ShardedBatches(plan, job.ranks.rank, world_size, 1, first_step=first, last_step=last):
        loss, _ = wrapped(list(data[batch]))
        wrapped.backward(loss)
        wrapped.step()


def live(wrapped: Any) -> str:
    """Digest of the engine's own whole fp32 parameters."""
    stage = wrapped.zero_optimization_stage()
    parameters = dict(wrapped.module.named_parameters())
    return digest({name: safe_get_full_fp32_param(value) if stage else value for name, value in parameters.items()})


def error_of(action: Any) -> list[str]:
    try:
        action()
    except UserError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def first_run(folder: Path, job: Job) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for stage in STAGES:
        own = job_in(folder / f"zero-{stage}", job)
        wrapped = make_engine(stage, own)
        train(wrapped, own, 0, SAVED)
        saver, checkpoint = Checkpointer(wrapped, own), own.run_dir / "checkpoints" / "step-00000003"
        saver.begin(SAVED, {"step": SAVED, "seed": SEED}, "run-7", "c0ffee")
        seen[f"zero-{stage}"] = at_save = {"live": live(wrapped)}
        train(wrapped, own, SAVED, LAST)
        at_save["early"] = checkpoint.exists()
        saver.finish()
        if own.ranks.is_main:
            at_save["consolidated"] = digest(consolidated_weights(checkpoint))
        at_save["last"] = live(wrapped)
    return seen


def resumed_run(folder: Path, job: Job) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for stage in STAGES:
        own = job_in(folder / f"zero-{stage}", job)
        wrapped = make_engine(stage, own)
        # By DeepSpeed's own convention: `latest` says which.
        _, client_state = wrapped.load_checkpoint(str(own.run_dir / "checkpoints"))
        restored = Checkpointer(wrapped, own).restore()
        train(wrapped, own, restored.step, LAST)
        seen[f"zero-{stage}"] = {
            "client_state": {key: client_state.get(key) for key in ("wandb_run_id", "gilbreth")},
            "restored": [restored.step, restored.run_id],
            "last": live(wrapped),
        }
        if stage == 1:
            own_stage = (wrapped, own)
    return seen | faults(folder, *own_stage)


def faults(folder: Path, wrapped: Any, job: Job) -> dict[str, Any]:
    """What must fail, on all ranks alike, with the engine and the checkpoints of ZeRO stage 1."""
    saved = job.run_dir / "checkpoints"
    checkpointer = Checkpointer(wrapped, job)
    checkpointer.save(LAST, {"step": LAST, "seed": SEED}, "run-7", "c0ffee")
    if job.ranks.is_main:
        shard = next((saved / "step-00000006").glob("*zero_pp_rank_1*"))
        os.truncate(shard, shard.stat().st_size // 2)
    seen: dict[str, Any] = {"past the broken one": checkpointer.restore().step}
    seen["a disk that is full"] = full_disk(checkpointer, job)
    seen["other stage"] = error_of(Checkpointer(make_engine(2, job), job).restore)

    trainer = Trainer(
        engine=wrapped,
        preprocessor=None,
        dataset=problem.synthetic(SEED),
        plan=BatchPlan(512, 16, SEED),
        optimisation=optimisation(1),
        schedule=Schedule(1, 1, Retention(last=1)),
        checkpointer=checkpointer,
        job=job,
        tracker=ExperimentTracker(run_dir=job.run_dir, tags=["zombie"], before_flush=job.check_ownership),
    )
    if job.ranks.is_main:
        Owner.claim(job.run_dir, AttemptKey("the successor", 1))
    dist.barrier(group=job.control)
    seen["zombie's save"] = error_of(lambda: checkpointer.save(7, {"step": 7}, "run-7", None))
    seen["zombie's flush"] = error_of(lambda: trainer.save(8, wait=True))
    seen["zombie's end"] = error_of(trainer.complete)
    trainer.tracker.finish()
    broken = job_in(folder / "broken", job)
    if job.ranks.is_main:
        (broken.run_dir / "checkpoints" / "step-00000003").mkdir(parents=True)
    seen["none whole"] = error_of(Checkpointer(wrapped, broken).restore)
    return seen


def full_disk(checkpointer: Checkpointer, job: Job) -> list[str]:
    """A save during which rank 1 alone finds no room."""

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "the shard")

    real = checkpoints.record_files
    if not job.ranks.is_main:
        checkpoints.record_files = fail
    checkpointer.begin(9, {"step": 9}, "run-7", None)
    try:
        checkpointer.finish()
    except OSError as error:
        return [str(error), *sorted(path.name for path in (job.run_dir / "checkpoints").glob("step-00000009*"))]
    finally:
        checkpoints.record_files = real
    return ["saved"]


def main(phase: str, folder: Path) -> None:
    job = Job.start(folder / "job", "cpu")
    runs = {"train": first_run, "resume": resumed_run}
    seen = runs[phase](folder, job)
    (folder / f"{phase}-{job.ranks.rank}.json").write_text(json.dumps(seen))
    job.close()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
