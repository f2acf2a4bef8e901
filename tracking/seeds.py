"""Random seeds: set in one place, and remembered for the run's metadata."""

from __future__ import annotations

import importlib.util
import random
import sys

_set: dict[str, int | None] = {}


def set_seeds(seed: int) -> dict[str, int | None]:
    """Seeds Python, NumPy, torch and CUDA with one number, and remembers it for the metadata.

    Args:
        seed: Any integer that is not negative. NumPy takes its lowest 32 bits.

    Returns:
        The seeds in use by generator; None for what is not installed.

    Raises:
        ValueError: The seed is negative.
    """
    if seed < 0:
        raise ValueError(f"a seed is an integer that is not negative, not {seed}")
    random.seed(seed)
    _set.update(python=seed, numpy=None, torch=None, cuda=None)
    if importlib.util.find_spec("numpy") is not None:
        import numpy as np

        _set["numpy"] = seed % 2**32
        np.random.seed(seed % 2**32)
    if importlib.util.find_spec("torch") is not None:
        import torch

        # Seeds CUDA too, at once or when it is first used.
        torch.manual_seed(seed)
        _set["torch"] = _set["cuda"] = seed
    return dict(_set)


def known_seeds() -> dict[str, int | None]:
    """The seeds by generator: as `set_seeds` set them, or as torch reports its own; None where it cannot be known."""
    if _set:
        return dict(_set)
    torch = sys.modules.get("torch")
    initial = int(torch.initial_seed()) if torch is not None else None
    return {"python": None, "numpy": None, "torch": initial, "cuda": None}
