"""What consolidation and DeepSpeed's converter make of a checkpoint of `zero_cases`, against the live engine."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from tracking.consolidate import consolidate
from tracking.errors import UserError

FROZEN = {"back.weight", "back.bias"}
BUFFERS = {"mean", "count", "turned"}
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}

Weights = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Verdict:
    """How one checkpoint was read.

    Attributes:
        ours: What is not bit for bit as in the live engine, by name.
        theirs: The same of DeepSpeed's converter; empty where it refuses.
        apart: Where the two differ from each other; empty where DeepSpeed's refuses.
        refusal: What DeepSpeed's converter says where it refuses, else empty.
    """

    ours: dict[str, str]
    theirs: dict[str, str]
    apart: dict[str, str]
    refusal: str


def judge(folder: Path) -> Verdict:
    """Consolidates the checkpoint of one case and compares."""
    case = json.loads((folder / "case.json").read_text())
    live = _as_compared(load_file(folder / "live.safetensors"), case)
    try:
        ours = _consolidated(folder)
    except UserError as error:
        return Verdict({"the checkpoint": f"refused: {error}"}, {}, {}, _refusal(folder))
    own_faults = _differing(_as_compared(ours, case), live)
    if refusal := _refusal(folder):
        return Verdict(own_faults, {}, {}, refusal)
    theirs = load_file(folder / "theirs.safetensors")
    return Verdict(own_faults, _differing(_as_compared(theirs, case), live), _differing(theirs, ours), "")


def _refusal(folder: Path) -> str:
    path = folder / "theirs.txt"
    return path.read_text() if path.exists() else ""


def _consolidated(folder: Path) -> Weights:
    done = consolidate(folder, folder / "ours.safetensors")
    weights = load_file(done.files[0])
    return weights | {name: weights[kept] for name, kept in done.tied.items()}


def _as_compared(weights: Weights, case: dict[str, Any]) -> Weights:
    """What masters round to, where DeepSpeed's own view of them is wrong: with round-robin gradients."""
    if case["special"] != "round_robin" or case["dtype"] == "fp32":
        return weights
    trained = weights.keys() - BUFFERS - (FROZEN if case["frozen"] else set())
    return weights | {name: weights[name].to(HALVES[case["dtype"]]).float() for name in trained}


def _differing(weights: Weights, reference: Weights) -> dict[str, str]:
    names = sorted(weights.keys() | reference.keys())
    return {name: fault for name in names if (fault := _fault(weights.get(name), reference.get(name)))}


def _fault(given: torch.Tensor | None, expected: torch.Tensor | None) -> str:
    if given is None or expected is None:
        return "missing" if given is None else "too much"
    if given.shape != expected.shape:
        return f"of shape {tuple(given.shape)}, not {tuple(expected.shape)}"
    if _bytes(given.to(expected.dtype)) != _bytes(expected):
        return "other values"
    return "" if given.dtype == expected.dtype else f"{given.dtype}, not {expected.dtype}".replace("torch.", "")


def _bytes(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
