"""A checkpoint goes on with another number of ranks: converted once, by one process, into a folder that is verified.

DeepSpeed's universal converter cuts the shards anew. What it loses, frozen parameters and persistent buffers, is kept
beside in a file of its own and put back.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.job import Job
from gilbreth_phase0.stop import signals_held_back
from gilbreth_phase0.universal import REFUSED, REST, ROUND_ROBIN
from tracking import checkpoints
from tracking.checkpoints import MANIFEST, TEMPORARY, Manifest
from tracking.errors import UserError

if TYPE_CHECKING:
    import torch

SOURCE = "source.json"
"""The manifest of the checkpoint that was converted."""

COPY = "copy"
_LOG = "log"
# The ranks tell one another that they are still there: an operation that waits longer than their timeout is given up.
_HEARTBEAT_SECONDS = 5.0
_TOLD = 2000


class OtherLayoutError(UserError):
    """A checkpoint was saved in a way that this job cannot go on from."""

    def __init__(self, checkpoint: Path, saved: Manifest, world_size: int, zero_stage: int, why: str = "") -> None:
        super().__init__(
            f"{checkpoint} was saved by {saved.world_size} ranks with ZeRO stage {saved.zero_stage};"
            f" this job has {world_size} with stage {zero_stage}{': ' if why else '.'}{why}"
            f"\n  next: python -m launch.submit --stage bc … --set bc.zero_stage={saved.zero_stage}"
            f" --set resources.nodes=N --set resources.gpus_per_node=M, N x M = {saved.world_size} GPUs in all"
        )


class ConverterFailedError(UserError):
    """The converter ended without a refusal: killed, or out of memory or disk; the next attempt converts again."""

    exit_code = 1

    def __init__(self, checkpoint: Path, code: int, log: str) -> None:
        super().__init__(
            f"{checkpoint} was not converted: the converter ended with {code}\n{log[-_TOLD:].rstrip()}"
            "\n  next: nothing while attempts are left, the next one converts again; else more memory (--mem) or disk"
        )


def cannot_convert(engine: Any) -> str | None:
    """Why this engine cannot load a converted checkpoint, or None."""
    if engine.zero_round_robin_gradients():
        return ROUND_ROBIN
    if engine.zero_optimization_stage() == 3 and len(engine.optimizer.param_groups) > 1:
        return "with ZeRO stage 3 DeepSpeed gives every parameter group the settings of the first one"
    return None


def make_universal(checkpoint: Path, manifest: Manifest, job: Job) -> Path:
    """Makes the copy of a checkpoint that any number of ranks can load, or finds it; every rank must call it.

    Args:
        checkpoint: A whole checkpoint.
        manifest: What it holds.
        job: This rank and its job.

    Returns:
        The copy, verified.

    Raises:
        OtherLayoutError: It cannot be converted; the message says why.
        ConverterFailedError: The converter was killed, or found no memory or disk.
    """
    target = checkpoints.universal_copy(checkpoint)
    if job.on_main(lambda: _is_copy_of(checkpoint, target)):
        return target
    job.say(f"converting {checkpoint} from {manifest.world_size} rank(s) to {job.ranks.world_size}")
    start = time.monotonic()
    attempt = job.owner.attempt if job.owner else ""
    temporary = target.with_name(f"{TEMPORARY}{target.name}-{attempt}")
    with checkpoints.pinned(checkpoint) if job.ranks.is_main else contextlib.nullcontext():
        fault = _convert(checkpoint, temporary, job)
        if fault is not None:
            raise OtherLayoutError(checkpoint, manifest, job.ranks.world_size, manifest.zero_stage, fault)
        job.on_main(lambda: _publish(checkpoint, temporary / COPY, target, manifest, job))
    job.say(f"converted in {time.monotonic() - start:.1f} s: {target}")
    return target


def _is_copy_of(checkpoint: Path, target: Path) -> bool:
    try:
        checkpoints.verify(target)
        return (target / SOURCE).read_bytes() == (checkpoint / MANIFEST).read_bytes()
    except (ValueError, OSError):
        return False


def _convert(checkpoint: Path, temporary: Path, job: Job) -> str | None:
    """Runs the converter as a process of rank 0; returns why it refused, on every rank."""
    converter: list[subprocess.Popen[bytes]] = []
    job.on_main(lambda: converter.append(_start(checkpoint, temporary)))
    while True:
        code = job.on_main(lambda: _ended(converter[0]))
        if code is not None:
            break
    if code == 0:
        return None
    _, refused, why = (log := job.on_main((temporary / _LOG).read_text)).rpartition(REFUSED)
    if not refused:
        raise ConverterFailedError(checkpoint, code, log)
    return why.strip()


def _start(checkpoint: Path, temporary: Path) -> subprocess.Popen[bytes]:
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    program = [
        sys.executable,
        "-m",
        "gilbreth_phase0.universal",
        str(checkpoint.resolve()),
        str(temporary.resolve() / COPY),
    ]
    # Not a fork: this process has threads of gloo and CUDA. And no GPU, which the ranks hold.
    environment = {**os.environ, "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    with (temporary / _LOG).open("wb") as log, signals_held_back():
        return subprocess.Popen(
            program, cwd=Path(__file__).parents[1], env=environment, stdout=log, stderr=subprocess.STDOUT
        )


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    try:
        return process.wait(timeout=_HEARTBEAT_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def _publish(checkpoint: Path, source: Path, target: Path, manifest: Manifest, job: Job) -> None:
    shutil.copyfile(checkpoint / MANIFEST, source / SOURCE)
    names = sorted(str(path.relative_to(source)) for path in source.rglob("*") if path.is_file())
    copy = replace(manifest, files=checkpoints.record_files(source, names), save_seconds=None)
    if target.exists():
        # One that does not verify, or of a checkpoint that had this name before.
        target.rename(source.parent / "old")
    checkpoints.publish_folder(source, target, copy, job.check_ownership)
    shutil.rmtree(source.parent, ignore_errors=True)


def load_universal(engine: Any, universal: Path) -> dict[str, Any]:
    """Loads a converted checkpoint into an engine of any number of ranks; every rank must call it.

    Returns:
        The `client_state` of the checkpoint.

    Raises:
        UserError: The model has other frozen parameters or persistent buffers than the one that was saved.
    """
    from safetensors.torch import load_file

    rest = load_file(universal / REST)
    places = _places(engine.module, rest, universal)
    with _universal_loading(engine):
        _, client_state = engine.load_checkpoint(str(universal.parent), tag=universal.name)
    _put_back(places, rest)
    return client_state  # type: ignore[no-any-return]


@contextlib.contextmanager
def _universal_loading(engine: Any) -> Iterator[None]:
    """What `{"checkpoint": {"load_universal": true}}` does, for one load: the saves that follow are ordinary ones."""
    config = engine._config  # DeepSpeed has no other way once the engine stands
    config.load_universal_checkpoint = True
    try:
        yield
    finally:
        config.load_universal_checkpoint = False


def _places(module: torch.nn.Module, rest: dict[str, torch.Tensor], universal: Path) -> dict[str, torch.Tensor]:
    """Where in the module each of the tensors goes that the converter loses."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    buffers = dict(module.named_buffers(remove_duplicate=False))
    places = {name: parameters.get(name, buffers.get(name)) for name in rest}
    done = {id(place) for place in places.values()}
    kept = module.state_dict(keep_vars=True)
    needed = {name for name, value in parameters.items() if not value.requires_grad} | (kept.keys() & buffers.keys())
    lost = sorted(name for name in needed if id(parameters.get(name, buffers.get(name))) not in done)
    extra = sorted(name for name, place in places.items() if place is None or place.requires_grad)
    if lost or extra:
        raise UserError(
            f"{universal} does not fit this model: "
            + "; ".join(
                [f"{name!r} is frozen or a buffer here and was not when it was saved" for name in lost]
                + [f"{name!r} was frozen or a buffer when it was saved and is not here" for name in extra]
            )
            + "\n  next: train with the policy settings of the run, which are in its config.yaml"
        )
    return {name: place for name, place in places.items() if place is not None}


def _put_back(places: dict[str, torch.Tensor], rest: dict[str, torch.Tensor]) -> None:
    import deepspeed
    import torch

    for name, place in places.items():
        # With ZeRO 3 each rank has a part of a parameter; rank 0's whole one is shared out again at the end.
        sharded = hasattr(place, "ds_id")
        with torch.no_grad(), deepspeed.zero.GatheredParameters([place], modifier_rank=0, enabled=sharded):
            if not sharded or torch.distributed.get_rank() == 0:
                place.copy_(rest[name])
