"""Makes real DeepSpeed checkpoints of small models: `zero_grid.py FOLDER`.

A pairwise cover of ZeRO stage, element type, ranks, frozen, tied, buffers and groups, and the special cases. Starting
DeepSpeed takes longer than all else here, so that one process imports it and forks the ranks of every world.

    FOLDER/<case>/
      case.json               what it is
      step-2/, latest         the checkpoint
      step-3/                 the next one
      live.safetensors        what the engine's own parameters were, as fp32, under all names
      theirs.safetensors      what DeepSpeed's converter makes of it, or
      theirs.txt              how it fails
"""

from __future__ import annotations

import datetime
import itertools
import json
import os
import signal
import sys
import traceback
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import deepspeed
import numpy as np
import torch
import torch.distributed as dist
from deepspeed.accelerator import get_accelerator
from deepspeed.utils import safe_get_full_fp32_param
from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

FACTORS: dict[str, list[Any]] = {
    "stage": [0, 1, 2, 3],
    "dtype": ["fp32", "bf16", "fp16"],
    "world": [1, 2, 3],
    "frozen": [False, True],
    "tied": [False, True],
    "buffers": [False, True],
    "groups": [1, 2],
}
TAG, STEPS = "step-2", 2


@dataclass(frozen=True)
class Case:
    stage: int
    dtype: str
    world: int
    frozen: bool = True
    tied: bool = True
    buffers: bool = True
    groups: int = 2
    special: str = ""
    zero: dict[str, Any] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"

    @property
    def name(self) -> str:
        flags = [flag for flag in ("frozen", "tied", "buffers") if getattr(self, flag)]
        return "-".join([f"zero{self.stage}", self.dtype, f"{self.world}ranks", f"{self.groups}groups", *flags]) + (
            f"-{self.special}" if self.special else ""
        )


def pairwise() -> list[Case]:
    """Rows in which every two values of two factors meet, found greedily."""
    names = list(FACTORS)
    open_pairs = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in FACTORS[a] for y in FACTORS[b]}
    rows = [dict(zip(names, values, strict=True)) for values in itertools.product(*FACTORS.values())]
    chosen = []
    while open_pairs:
        pairs = [set(itertools.combinations(row.items(), 2)) & open_pairs for row in rows]
        best = max(range(len(rows)), key=lambda index: len(pairs[index]))
        chosen.append(Case(**rows[best]))
        open_pairs -= pairs[best]
    return chosen


def special() -> list[Case]:
    offload = {"offload_optimizer": {"device": "cpu"}}
    return [
        Case(1, "bf16", 2, special="bf16_optimizer", config={"data_types": {"grad_accum_dtype": "fp32"}}),
        Case(2, "bf16", 2, special="offload", zero=offload),
        Case(3, "bf16", 2, special="offload", zero=offload),
        Case(2, "bf16", 3, special="round_robin", zero={"round_robin_gradients": True}),
        Case(1, "fp32", 3, special="round_robin", zero={"round_robin_gradients": True}),
        Case(2, "bf16", 3, special="aligned", zero={"parameter_alignment": True}),
        Case(3, "fp32", 3, special="sub_groups", zero={"sub_group_size": 40}),
        Case(1, "bf16", 2, special="sgd", optimizer="sgd"),
        Case(3, "fp32", 2, special="sgd", optimizer="sgd"),
        Case(1, "fp32", 1, special="autocast", config={"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}),
    ]


class Model(nn.Module):
    """Sizes that no number of ranks divides."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 7)
        self.back = nn.Linear(7, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        if case.tied:
            self.head.weight = self.embed.weight
        if case.frozen:
            self.back.requires_grad_(False)
        if case.buffers:
            self.register_buffer("mean", torch.randn(5))
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("turned", torch.randn(4, 3).t())
            self.register_buffer("passing", torch.randn(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.embed(tokens)
        hidden = self.back(torch.tanh(self.middle(hidden)))
        return F.cross_entropy((self.head(hidden) * self.scale).float(), (tokens + 1) % 11)


def make_engine(case: Case) -> Any:
    model = Model(case)
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    parts = [trained] if case.groups == 1 else [trained[::2], trained[1::2]]
    groups = [{"params": [value for _, value in part], "weight_decay": 0.1 * n} for n, part in enumerate(parts)]
    optimizer = torch.optim.AdamW(groups, lr=1e-2) if case.optimizer == "adamw" else torch.optim.SGD(groups, lr=1e-1)
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "steps_per_print": 10**9,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": case.stage, **case.zero},
        **case.config,
    }
    if case.dtype != "fp32":
        config[case.dtype] = {"enabled": True} | ({"initial_scale_power": 4} if case.dtype == "fp16" else {})
    return deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)[0]


def live_weights(engine: Any, case: Case) -> dict[str, torch.Tensor]:
    """The engine's own fp32 parameters and its buffers; every rank must call it."""
    masters = {}
    if case.stage == 0 and case.dtype != "fp32":
        own = engine.optimizer
        masters = {
            id(half): full
            for halves, fulls in zip(own.fp16_groups, own.fp32_groups, strict=True)
            for half, full in zip(halves, fulls, strict=True)
        }
    live = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        with deepspeed.zero.GatheredParameters([parameter], enabled=case.stage == 3):
            weights = parameter.detach().clone()
        if parameter.requires_grad and case.stage == 0:
            weights = masters.get(id(parameter), weights)
        elif parameter.requires_grad and case.special != "round_robin":
            weights = safe_get_full_fp32_param(parameter)
        live[name] = weights.detach().float().clone()
    kept = engine.module.state_dict()
    for name, buffer in engine.module.named_buffers():
        if name in kept:
            live[name] = (buffer.float() if buffer.is_floating_point() else buffer).contiguous().clone()
    return live


def make(case: Case, folder: Path) -> None:
    engine = make_engine(case)
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for step in range(1, STEPS + 2):
        loss = engine(torch.randint(0, 11, (4,), generator=generator))
        engine.backward(loss)
        engine.step()
        if step < STEPS:
            continue
        state = {
            "wandb_run_id": "run-7",
            "gilbreth": {"step": step, "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
            "when": datetime.datetime(2025, 1, 2),
            "where": Path("runs"),
            "some": {1, 2},
            "mean": np.float64(0.5),
        }
        tag = f"step-{step}"
        engine.save_checkpoint(str(folder), tag=tag, client_state=state, save_latest=tag == TAG)
        if tag == TAG:
            live = live_weights(engine, case)
            if rank == 0:
                save_file(live, folder / "live.safetensors")
    engine.destroy()


def convert(folder: Path) -> None:
    try:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        (folder / "theirs.txt").write_text(f"{type(error).__name__}: {error}")
        return
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "theirs.safetensors")


def rank_of(rank: int, world: int, folder: Path, cases: list[Case]) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
    # DeepSpeed asks the CPU for fast fp16, and refuses fp16 where it is merely slow.
    type(get_accelerator()).is_fp16_supported = lambda self: True
    # A file, so that no port is needed.
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting-{world}", rank=rank, world_size=world)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)
    for case in cases:
        own = folder / case.name
        own.mkdir(exist_ok=True)
        make(case, own)
        if rank == 0:
            (own / "case.json").write_text(json.dumps(asdict(case)))
            convert(own)
    dist.barrier()
    dist.destroy_process_group()


def forked(rank: int, world: int, folder: Path, cases: list[Case]) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        rank_of(rank, world, folder, cases)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(code)


def run_world(world: int, folder: Path, cases: list[Case]) -> None:
    ranks = {forked(rank, world, folder, cases) for rank in range(world)}
    while ranks:
        ended, status = os.wait()
        ranks.discard(ended)
        if status:
            # The others would wait for it.
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            sys.exit(f"a rank of {world} failed: {os.waitstatus_to_exitcode(status)}")


def main(folder: Path) -> None:
    cases = [*pairwise(), *special()]
    for world in FACTORS["world"]:
        run_world(world, folder, [case for case in cases if case.world == world])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
