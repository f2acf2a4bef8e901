"""Trains a run with one number of ranks after the other: `other_world.py FOLDER 4 2 4`.

Each number of ranks restores what the one before it has saved, trains two steps and saves, with a model that has frozen
parameters, tied weights and persistent buffers, under every ZeRO stage. What rank 0 saw goes into
FOLDER/<turn>.json. Starting DeepSpeed takes longer than all else here, so that one process imports it and forks ranks.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from gilbreth_phase0 import engine
from gilbreth_phase0.checkpointer import Checkpointer
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import compile_extensions
from tracking.ownership import Owner

import zero_cases
from forked_ranks import run_ranks
from live_engine import digest, gathered

STAGES = range(4)
STEPS, BATCH = 2, 8


class Model(zero_cases.Model):
    """With tensors in types of their own; what is frozen and the buffers differ from a fresh model's."""

    def __init__(self) -> None:
        super().__init__()
        self.coarse = nn.Parameter(torch.ones(5, dtype=torch.bfloat16), requires_grad=False)
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("precise", torch.tensor([1.0], dtype=torch.float64))

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.norm(super().hidden(tokens)) + 0 * self.coarse.sum()


def make_engine(stage: int, job: Job) -> Any:
    optimisation = engine.Optimisation(
        lr=1e-2,
        weight_decay=1e-3,
        warmup_steps=2,
        training_steps=20,
        clip_grad_norm=1.0,
        zero_stage=stage,
        micro_batch_size=BATCH // job.ranks.world_size,
        gradient_accumulation=1,
    )
    return engine.initialise(Model(), optimisation, job)


def disturb(module: nn.Module) -> None:
    """Gives what no optimizer holds values that only a checkpoint can bring back."""
    with torch.no_grad():
        for parameter in [module.back.weight, module.back.bias, module.coarse]:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.mul_(1.25)
        module.precise.fill_(1 / 3)


def digests(wrapped: Any) -> dict[str, str]:
    """Of every parameter, buffer and optimizer state, as the live engine has them; every rank must call it."""
    kept = wrapped.module.state_dict()
    seen = {name: value for name, value in wrapped.module.named_buffers() if name in kept}
    for name, parameter in wrapped.module.named_parameters():
        seen[name] = gathered(parameter)
        if parameter.requires_grad and wrapped.zero_optimization_stage():
            seen[f"{name} fp32"] = safe_get_full_fp32_param(parameter)
            for state in ("exp_avg", "exp_avg_sq"):
                seen[f"{name} {state}"] = safe_get_full_optimizer_state(parameter, state)
    return {name: digest({name: value}) for name, value in seen.items()}


def turn(number: int, folder: Path, job: Job) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    words = torch.arange(BATCH) % 11
    for stage in STAGES:
        run = folder / f"zero-{stage}"
        run.mkdir(exist_ok=True)
        own = dataclasses.replace(job, run_dir=run, owner=Owner.claim(run) if job.ranks.is_main else None)
        wrapped = make_engine(stage, own)
        checkpointer = Checkpointer(wrapped, own)
        restored = checkpointer.restore()
        at_start = digests(wrapped) if restored.step else {}
        rate = wrapped.get_lr()
        if number == 0:
            disturb(wrapped.module)
        for _ in range(STEPS):
            loss = wrapped(words[own.ranks.rank :: own.ranks.world_size])
            wrapped.backward(loss)
            wrapped.step()
        step = restored.step + STEPS
        at_end = digests(wrapped)
        checkpointer.save(step, {"step": step, "samples": step * BATCH, "batch_size": BATCH}, "run-7", None)
        seen[f"zero-{stage}"] = {
            "restored": dataclasses.asdict(restored),
            "start": at_start,
            "end": at_end,
            "lr": [rate, wrapped.get_lr()],
        }
    return seen


def rank_of(rank: int, number: int, folder: Path) -> None:
    job = Job.start(folder, "cpu")
    seen = turn(number, folder, job)
    if rank == 0:
        (folder / f"{number}.json").write_text(json.dumps(seen))
    job.close()


if __name__ == "__main__":
    compile_extensions()
    run_folder = Path(sys.argv[1])
    for turn_number, world_size in enumerate(map(int, sys.argv[2:])):
        run_ranks(world_size, lambda rank, number=turn_number: rank_of(rank, number, run_folder))
