"""Helpers that read a training loop's numbers, against torch itself."""

from __future__ import annotations

import random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from tracking import compute_grad_norm, get_amp_scale, get_learning_rate, set_seeds
from tracking.seeds import known_seeds


def test_grad_norm_is_what_clipping_computes() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 2).to(torch.float64))
    assert compute_grad_norm(model) is None
    model[0](torch.randn(3, 4)).sum().backward()
    model[1](torch.randn(3, 8, dtype=torch.float64)).sum().backward()
    expected = float(torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))
    assert compute_grad_norm(model) == pytest.approx(expected, rel=1e-6)


def test_an_engines_own_norm_comes_first() -> None:
    engine: Any = SimpleNamespace(get_global_grad_norm=lambda: torch.tensor(2.5))
    assert compute_grad_norm(engine) == 2.5
    engine.get_global_grad_norm = lambda: None
    assert compute_grad_norm(engine) is None


def test_learning_rate() -> None:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.125)
    assert get_learning_rate(optimizer) == 0.125
    assert get_learning_rate(SimpleNamespace(optimizer=optimizer)) == 0.125
    assert get_learning_rate(object()) is None


def test_amp_scale() -> None:
    assert get_amp_scale(torch.amp.GradScaler("cpu", init_scale=1024.0)) == 1024.0
    assert get_amp_scale(torch.amp.GradScaler("cpu", enabled=False)) is None
    engine = SimpleNamespace(fp16_enabled=lambda: True, optimizer=SimpleNamespace(cur_scale=256))
    assert get_amp_scale(engine) == 256.0
    assert get_amp_scale(SimpleNamespace(fp16_enabled=lambda: False)) is None
    assert get_amp_scale(None) is None


def test_seeds_repeat_every_generator() -> None:
    drawn = []
    for _ in range(2):
        assert set_seeds(2**40 + 7) == {"python": 2**40 + 7, "numpy": 7, "torch": 2**40 + 7, "cuda": 2**40 + 7}
        drawn.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
    assert drawn[0] == drawn[1]
    assert known_seeds()["numpy"] == 7
    with pytest.raises(ValueError, match="not -1"):
        set_seeds(-1)
