"""Saves and restores a DeepSpeed engine by the protocol of `tracking.checkpoints`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gilbreth_phase0.job import Job
from gilbreth_phase0.other_world import OtherLayoutError, cannot_convert, load_universal, make_universal
from tracking import checkpoints
from tracking.checkpoints import Manifest

# fp32 masters and AdamW's two moments.
_BYTES_PER_PARAMETER = 12
# A slow shared disk: what the first save of a run is taken to need until one was measured.
_ASSUMED_BYTES_PER_SECOND = 50e6


@dataclass(frozen=True)
class Saved:
    """A save that is done.

    Attributes:
        checkpoint: Where it is.
        seconds: How long training was held.
    """

    checkpoint: Path
    seconds: float


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

    def save(self, step: int, state: dict[str, Any], run_id: str | None, git_commit: str | None) -> Saved:
        """Saves all ranks' shares as the checkpoint of a step.

        Args:
            step: Optimizer steps done.
            state: What the run needs to go on, JSON-like.
            run_id: The W&B run.
            git_commit: Of the code.
        """
        start = time.monotonic()
        tag = self._job.agreed(checkpoints.temporary_tag(step, self._job.owner.attempt if self._job.owner else ""))
        self._engine.save_checkpoint(
            str(self._folder), tag=tag, client_state=checkpoints.client_state(run_id, state), save_latest=False
        )
        temporary = self._folder / tag
        records = checkpoints.record_files(temporary, checkpoints.files_of_rank(temporary, self._job.ranks.rank))
        gathered = self._job.gathered(records)
        manifest = Manifest(
            step=step,
            world_size=self._job.ranks.world_size,
            zero_stage=self._engine.zero_optimization_stage(),
            run_id=run_id,
            git_commit=git_commit,
            files={name: record for share in gathered for name, record in share.items()},
            save_seconds=round(time.monotonic() - start, 3),
        )
        checkpoint = self._job.on_main(
            lambda: checkpoints.commit(self._folder, tag, manifest, before_rename=self._job.check_ownership)
        )
        return Saved(checkpoint, time.monotonic() - start)

    def restore(self) -> Restored:
        """Loads the newest whole checkpoint into the engine, whatever number of ranks saved it.

        Returns:
            Where it leaves the run; step 0 where the run has no checkpoint yet.

        Raises:
            NoWholeCheckpointError: There are checkpoints and none is whole.
            OtherLayoutError: It was saved with another ZeRO stage, or by another number of ranks in a way that cannot
                be converted.
        """
        choice = self._job.on_main(lambda: checkpoints.newest_whole(self._folder, say=self._job.say))
        if choice is None:
            return Restored(save_seconds=self._expected_save_seconds())
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
