"""Trains a run with one number of ranks after the other: `other_world.py FOLDER 2 1 2`.

Each number of ranks restores what the one before it has saved, trains two steps and saves, with a model that has frozen
parameters, tied weights and persistent buffers, under every ZeRO stage. What rank 0 saw goes into
FOLDER/<turn>.json. Starting DeepSpeed takes longer than all else here, so that one process imports it and forks ranks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from torch import nn

from gilbreth_phase0 import engine
from gilbreth_phase0.checkpointer import Checkpointer
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import keep_extensions_here
from tracking.ownership import Owner

from support import free_port

STAGES = range(4)
STEPS, BATCH = 2, 8


class Model(nn.Module):
    """Sizes that no number of ranks divides; what is frozen and the buffers differ from a fresh model's."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed = nn.Embedding(11, 7)
        self.middle = nn.Linear(7, 7)
        self.frozen = nn.Linear(7, 7).requires_grad_(False)
        self.coarse = nn.Parameter(torch.ones(5, dtype=torch.bfloat16), requires_grad=False)
        self.head = nn.Linear(7, 11, bias=False)
        self.head.weight = self.embed.weight
        self.norm = nn.BatchNorm1d(7)
        self.register_buffer("precise", torch.tensor([1.0], dtype=torch.float64))
        self.register_buffer("passing", torch.ones(3), persistent=False)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.frozen(self.middle(self.embed(words)).tanh()))
        return nn.functional.cross_entropy(self.head(hidden), words) + 0 * self.coarse.sum()


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
        for parameter in [module.frozen.weight, module.frozen.bias, module.coarse]:
            with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=hasattr(parameter, "ds_id")):
                parameter.mul_(1.25)
        module.precise.fill_(1 / 3)


def digests(wrapped: Any) -> dict[str, str]:
    """Of every parameter, buffer and optimizer state, as the live engine has them; every rank must call it."""
    seen: dict[str, torch.Tensor] = {}
    stage = wrapped.zero_optimization_stage()
    for name, parameter in wrapped.module.named_parameters():
        with deepspeed.zero.GatheredParameters([parameter], enabled=stage == 3):
            seen[name] = parameter.detach().clone()
        if parameter.requires_grad and stage:
            seen[f"{name} fp32"] = safe_get_full_fp32_param(parameter)
            for state in ("exp_avg", "exp_avg_sq"):
                seen[f"{name} {state}"] = safe_get_full_optimizer_state(parameter, state)
    seen |= {
        name: value for name, value in wrapped.module.state_dict().items() if name.startswith(("norm.", "prec"))
    } | {name: seen[name] for name in seen if name.startswith("norm.")}
    return {
        name: hashlib.sha256(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, value in seen.items()
    }


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


def rank_of(rank: int, world_size: int, port: int, number: int, folder: Path) -> None:
    values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in values.items()}
    job = Job.start(folder, "cpu")
    seen = turn(number, folder, job)
    if rank == 0:
        (folder / f"{number}.json").write_text(json.dumps(seen))
    job.close()


def run_world(world_size: int, number: int, folder: Path) -> None:
    port = free_port()
    ranks = set()
    for rank in range(world_size):
        child = os.fork()
        if child:
            ranks.add(child)
            continue
        code = 1
        try:
            rank_of(rank, world_size, port, number, folder)
            code = 0
        finally:
            if code:
                traceback.print_exc()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    while ranks:
        ended, status = os.wait()
        ranks.discard(ended)
        if status:
            # The others would wait for it.
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            sys.exit(f"a rank of {world_size} failed: {os.waitstatus_to_exitcode(status)}")


if __name__ == "__main__":
    keep_extensions_here()
    for turn_number, ranks_of_turn in enumerate(sys.argv[2:]):
        run_world(int(ranks_of_turn), turn_number, Path(sys.argv[1]))
