"""Saves and restores a DeepSpeed engine by the protocol of `tracking.checkpoints`.

Training waits while DeepSpeed writes. Syncing and digesting what was written goes on behind the steps that follow; then
the save gets its name.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gilbreth_phase0.job import Job
from gilbreth_phase0.other_world import OtherLayoutError, cannot_convert, load_universal, make_universal
from tracking import checkpoints
from tracking.checkpoints import FileRecord, Manifest

# fp32 masters and AdamW's two moments.
_BYTES_PER_PARAMETER = 12
# A slow shared disk: what the first save of a run is taken to need until one was measured.
_ASSUMED_BYTES_PER_SECOND = 50e6


@dataclass(frozen=True)
class Saved:
    """A save that is done.

    Attributes:
        checkpoint: Where it is.
        seconds: What all of it took.
        held_seconds: How long the caller waited for it.
    """

    checkpoint: Path
    seconds: float
    held_seconds: float


@dataclass(frozen=True)
class _Share:
    """What a rank has written, synced and digested, and when it was done, in seconds since the save began."""

    records: dict[str, FileRecord]
    seconds: float


@dataclass(frozen=True)
class _UnderWay:
    """A save that is written and has no name yet."""

    tag: str
    step: int
    run_id: str | None
    git_commit: str | None
    held_seconds: float
    share: Future[_Share]


@dataclass(frozen=True)
class Restored:
    """What a checkpoint gave back beside the engine's own state.

    Attributes:
        step: Optimizer steps done; 0 without a checkpoint.
        run_id: W&B run that it belongs to; None without a checkpoint.
        samples: Samples trained over all ranks; None where the checkpoint does not say it.
        save_seconds: What a save took or, before the first one, may take on a slow disk.
    """

    step: int = 0
    run_id: str | None = None
    samples: int | None = None
    save_seconds: float = 0.0


class Checkpointer:
    """Saves and restores a DeepSpeed engine by the protocol of `tracking.checkpoints`; every call is collective.

    Args:
        engine: The DeepSpeed engine.
        job: This rank and its job.
    """

    def __init__(self, engine: Any, job: Job) -> None:
        self._engine = engine
        self._job = job
        self._folder = job.run_dir / "checkpoints"
        self._behind = ThreadPoolExecutor(1, "checkpoint")
        self._under_way: _UnderWay | None = None

    def save(self, step: int, state: dict[str, Any], run_id: str | None, git_commit: str | None) -> Saved:
        """Saves all ranks' shares as the checkpoint of a step and waits for it; `begin` and `finish` in one."""
        self.begin(step, state, run_id, git_commit)
        return self.finish()

    def begin(self, step: int, state: dict[str, Any], run_id: str | None, git_commit: str | None) -> None:
        """Writes all ranks' shares of a step; syncs and digests them behind what follows, until `finish`.

        Args:
            step: Optimizer steps done.
            state: What the run needs to go on, JSON-like.
            run_id: The W&B run.
            git_commit: Of the code.
        """
        if self._under_way is not None:
            raise RuntimeError(f"the save of step {self._under_way.step} is not finished")
        start = time.monotonic()
        tag = self._job.agreed(checkpoints.temporary_tag(step, self._job.owner.attempt if self._job.owner else ""))
        self._engine.save_checkpoint(
            str(self._folder), tag=tag, client_state=checkpoints.client_state(run_id, state), save_latest=False
        )
        share = self._behind.submit(_seal, self._folder / tag, self._job.ranks.rank, start)
        self._under_way = _UnderWay(tag, step, run_id, git_commit, time.monotonic() - start, share)

    @property
    def is_under_way(self) -> bool:
        """Whether a save has begun that is not finished."""
        return self._under_way is not None

    @property
    def is_sealed(self) -> bool:
        """Whether this rank's share of the save under way is synced and digested: `finish` waits for no disk."""
        return self._under_way is not None and self._under_way.share.done()

    def finish(self) -> Saved:
        """Gives the save that is under way its name, and waits for what is still missing.

        Raises:
            OSError: A rank's share could not be synced; raised on every rank.
            OwnershipLostError: A later attempt has claimed the run.
        """
        if self._under_way is None:
            raise RuntimeError("no save is under way")
        save, self._under_way = self._under_way, None
        since = time.monotonic()
        shares = self._job.gathered_from_all(save.share.result)
        sealed, named_from = max(share.seconds for share in shares), time.monotonic()
        manifest = Manifest(
            step=save.step,
            world_size=self._job.ranks.world_size,
            zero_stage=self._engine.zero_optimization_stage(),
            run_id=save.run_id,
            git_commit=save.git_commit,
            files={name: record for share in shares for name, record in share.records.items()},
            save_seconds=round(sealed, 3),
        )
        checkpoint = self._job.on_main(
            lambda: checkpoints.commit(self._folder, save.tag, manifest, before_rename=self._job.check_ownership)
        )
        now = time.monotonic()
        return Saved(checkpoint, sealed + now - named_from, save.held_seconds + now - since)

    def restore(self, first_step: int = 0) -> Restored:
        """Loads the newest whole checkpoint into the engine, whatever number of ranks saved it.

        Args:
            first_step: Where the training begins: a checkpoint of that step is the end of what came before it.

        Returns:
            Where it leaves the run; the first step where there is no checkpoint behind it yet.

        Raises:
            NoWholeCheckpointError: There are checkpoints and none is whole.
            OtherLayoutError: It was saved with another ZeRO stage, or by another number of ranks in a way that cannot
                be converted.
        """
        # They may be what fills the disk: the next save would find no room, and only a save that is done clears up.
        self._job.on_main(lambda: checkpoints.clear_leftovers(self._folder))
        choice = self._job.on_main(lambda: checkpoints.newest_whole(self._folder, say=self._job.say))
        if choice is None or choice[1].step <= first_step:
            return Restored(step=first_step, save_seconds=self._expected_save_seconds())
        checkpoint, manifest = choice
        here = (self._job.ranks.world_size, self._engine.zero_optimization_stage())
        if here[1] != manifest.zero_stage:
            raise OtherLayoutError(checkpoint, manifest, *here)
        # Without ZeRO every rank has everything, and any number of them reads it.
        if here[0] != manifest.world_size and manifest.zero_stage > 0:
            why = cannot_convert(self._engine)
            if why is not None:
                raise OtherLayoutError(checkpoint, manifest, *here, why)
            universal = make_universal(checkpoint, manifest, self._job)
            client_state = load_universal(self._engine, universal)
        else:
            _, client_state = self._engine.load_checkpoint(str(self._folder), tag=checkpoint.name)
        state = client_state["gilbreth"]
        self._job.say(f"resuming from {checkpoint}")
        if here[0] != manifest.world_size:
            self._job.say(self._rule(manifest.world_size, state))
        return Restored(
            step=int(state["step"]),
            run_id=client_state["wandb_run_id"],
            samples=state.get("samples"),
            save_seconds=manifest.save_seconds or self._expected_save_seconds(),
        )

    def _expected_save_seconds(self) -> float:
        parameters = [each for each in self._engine.module.parameters() if each.requires_grad]
        trained = sum(int(getattr(each, "ds_numel", each.numel())) for each in parameters)
        return _BYTES_PER_PARAMETER * trained / _ASSUMED_BYTES_PER_SECOND

    def _rule(self, saved_world_size: int, state: dict[str, Any]) -> str:
        """States what another number of ranks does to the batch, the learning rate and the order of the samples."""
        batch = self._engine.train_batch_size()
        before = state.get("batch_size", batch)
        size = f"{batch} samples as before" if batch == before else f"{batch} samples instead of {before}"
        return (
            f"{self._job.ranks.world_size} rank(s) go on where {saved_world_size} stopped: a step has {size},"
            f" {self._engine.train_micro_batch_size_per_gpu()} a rank and micro-batch,"
            f" {self._engine.gradient_accumulation_steps()} micro-batch(es); the learning rate is not scaled and its"
            f" schedule goes by steps; the samples go on behind the {state.get('samples', 'last')} that were trained"
        )


def _seal(temporary: Path, rank: int, start: float) -> _Share:
    records = checkpoints.record_files(temporary, checkpoints.files_of_rank(temporary, rank))
    return _Share(records, time.monotonic() - start)
