"""Small models in every kind of DeepSpeed checkpoint: the whole grid, a pairwise cover of it, and special cases.

FOLDER/<case>/
  case.json               what it is
  step-2/, latest         the checkpoint
  step-3/                 the next one, where it was asked for
  live.safetensors        what the engine's own parameters were, as fp32, under all names
  theirs.safetensors      what DeepSpeed's converter makes of it, or
  theirs.txt              how it fails
"""

from __future__ import annotations

import datetime
import itertools
import json
from collections.abc import Iterator
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

from live_engine import gathered

FACTORS: dict[str, list[Any]] = {
    "stage": [0, 1, 2, 3],
    "dtype": ["fp32", "bf16", "fp16"],
    "world": [1, 2, 3],
    "frozen": [False, True],
    "tied": [False, True],
    "buffers": [False, True],
    "groups": [1, 2],
}
WHOLE = FACTORS | {"world": [1, 2, 3, 4]}
TAG, STEPS = "step-2", 2

_OFFLOAD = {"zero": {"offload_optimizer": {"device": "cpu"}}}
_ROUND_ROBIN = {"zero": {"round_robin_gradients": True}}
_ALIGNED = {"zero": {"parameter_alignment": True}}
_BF16_OPTIMIZER = {"config": {"data_types": {"grad_accum_dtype": "fp32"}}}
_AUTOCAST = {"config": {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}}
# Name, stages and element types of each special kind, and what it asks DeepSpeed for.
_KINDS: list[tuple[str, list[int], list[str], dict[str, Any]]] = [
    ("bf16_optimizer", [1], ["bf16"], _BF16_OPTIMIZER),
    ("offload", [1, 2, 3], FACTORS["dtype"], _OFFLOAD),
    ("round_robin", [1, 2], FACTORS["dtype"], _ROUND_ROBIN),
    ("aligned", [1, 2], FACTORS["dtype"], _ALIGNED),
    ("sub_groups", [3], FACTORS["dtype"], {"zero": {"sub_group_size": 40}}),
    ("sgd", [0, 1, 2, 3], FACTORS["dtype"], {"optimizer": "sgd"}),
    ("autocast", [0, 1, 2, 3], ["fp32"], _AUTOCAST),
]


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


def _rows(factors: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    return (dict(zip(factors, values, strict=True)) for values in itertools.product(*factors.values()))


def whole_grid() -> list[Case]:
    """Every combination, and each special kind for all worlds with everything in the model and with nothing."""
    contents: list[dict[str, Any]] = [{}, {"frozen": False, "tied": False, "buffers": False, "groups": 1}]
    return [Case(**row) for row in _rows(WHOLE)] + [
        Case(stage, dtype, world, special=name, **content, **asked)
        for name, stages, dtypes, asked in _KINDS
        for stage, dtype, world, content in itertools.product(stages, dtypes, WHOLE["world"], contents)
    ]


def pairwise() -> list[Case]:
    """Rows in which every two values of two factors meet, found greedily."""
    names = list(FACTORS)
    open_pairs = {((a, x), (b, y)) for a, b in itertools.combinations(names, 2) for x in FACTORS[a] for y in FACTORS[b]}
    rows = list(_rows(FACTORS))
    chosen = []
    while open_pairs:
        pairs = [set(itertools.combinations(row.items(), 2)) & open_pairs for row in rows]
        best = max(range(len(rows)), key=lambda index: len(pairs[index]))
        chosen.append(Case(**rows[best]))
        open_pairs -= pairs[best]
    return chosen


def special() -> list[Case]:
    """One or two of each special kind."""
    return [
        Case(1, "bf16", 2, special="bf16_optimizer", **_BF16_OPTIMIZER),
        Case(2, "bf16", 2, special="offload", **_OFFLOAD),
        Case(3, "bf16", 2, special="offload", **_OFFLOAD),
        Case(2, "bf16", 3, special="round_robin", **_ROUND_ROBIN),
        Case(1, "fp32", 3, special="round_robin", **_ROUND_ROBIN),
        Case(2, "bf16", 3, special="aligned", **_ALIGNED),
        Case(3, "fp32", 3, special="sub_groups", zero={"sub_group_size": 40}),
        Case(1, "bf16", 2, special="sgd", optimizer="sgd"),
        Case(3, "fp32", 2, special="sgd", optimizer="sgd"),
        Case(1, "fp32", 1, special="autocast", **_AUTOCAST),
    ]


class Model(nn.Module):
    """Sizes that no number of ranks divides."""

    def __init__(self, frozen: bool = True, tied: bool = True, buffers: bool = True) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.embed = nn.Embedding(11, 6)
        self.middle = nn.Linear(6, 7)
        self.back = nn.Linear(7, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.scale = nn.Parameter(torch.tensor([1.5]))
        if tied:
            self.head.weight = self.embed.weight
        if frozen:
            self.back.requires_grad_(False)
        if buffers:
            self.register_buffer("mean", torch.randn(5))
            self.register_buffer("count", torch.tensor(3))
            self.register_buffer("turned", torch.randn(4, 3).t())
            self.register_buffer("passing", torch.randn(2), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        hidden = self.hidden(tokens)
        return F.cross_entropy((self.head(hidden) * self.scale).float(), (tokens + 1) % 11)

    def hidden(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.back(torch.tanh(self.middle(self.embed(tokens))))


def join(rank: int, world_size: int, folder: Path) -> None:
    """Joins the process group of a job of that many ranks; no port is needed."""
    # DeepSpeed asks the CPU for fast fp16, and refuses fp16 where it is merely slow.
    type(get_accelerator()).is_fp16_supported = lambda self: True
    meeting = f"file://{folder}/meeting-{world_size}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world_size)
    deepspeed.init_distributed("gloo", auto_mpi_discovery=False)


def make_engine(case: Case) -> Any:
    model = Model(case.frozen, case.tied, case.buffers)
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
    own = engine.optimizer
    if case.stage == 0 and hasattr(own, "fp32_groups"):
        masters = {
            id(half): full
            for halves, fulls in zip(own.fp16_groups, own.fp32_groups, strict=True)
            for half, full in zip(halves, fulls, strict=True)
        }
    live = {}
    for name, parameter in engine.module.named_parameters(remove_duplicate=False):
        weights = gathered(parameter)
        if parameter.requires_grad and case.special != "round_robin":
            full = masters.get(id(parameter), safe_get_full_fp32_param(parameter))
            # None: without ZeRO, trained in fp32.
            weights = weights if full is None else full
        live[name] = weights.detach().float().clone()
    kept = engine.module.state_dict()
    for name, buffer in engine.module.named_buffers():
        if name in kept:
            live[name] = (buffer.float() if buffer.is_floating_point() else buffer).contiguous().clone()
    return live


def make(case: Case, folder: Path, last: int = STEPS) -> None:
    """Trains, saves, and writes down what the engine holds and what DeepSpeed's converter makes of it.

    Args:
        case: What is made.
        folder: Its own folder.
        last: The last step that is saved too.
    """
    folder.mkdir(exist_ok=True)
    engine = make_engine(case)
    rank = dist.get_rank()
    generator = torch.Generator().manual_seed(rank)
    for step in range(1, last + 1):
        loss = engine(torch.randint(0, 11, (4,), generator=generator))
        engine.backward(loss)
        engine.step()
        if step < STEPS:
            continue
        tag = f"step-{step}"
        engine.save_checkpoint(str(folder), tag=tag, client_state=_client_state(step), save_latest=tag == TAG)
        if tag == TAG:
            live = live_weights(engine, case)
            if rank == 0:
                save_file(live, folder / "live.safetensors")
    engine.destroy()
    dist.barrier()
    if rank == 0:
        (folder / "case.json").write_text(json.dumps(asdict(case)))
        _convert(folder)


def _client_state(step: int) -> dict[str, Any]:
    return {
        "wandb_run_id": "run-7",
        "gilbreth": {"step": step, "numpy": np.random.get_state(), "torch": torch.get_rng_state()},
        "when": datetime.datetime(2025, 1, 2),
        "where": Path("runs"),
        "some": {1, 2},
        "mean": np.float64(0.5),
    }


def _convert(folder: Path) -> None:
    try:
        state = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG)
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        (folder / "theirs.txt").write_text(f"{type(error).__name__}: {error}")
        return
    save_file({name: value.contiguous().clone() for name, value in state.items()}, folder / "theirs.safetensors")
