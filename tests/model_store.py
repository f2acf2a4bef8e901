"""Small policy bundles, and what a store holds of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from tracking.store import Store, publish


def save_bundle(folder: Path, value: float = 0.0, elements: int = 64) -> Path:
    """A folder as LeRobot saves a policy: weights, configuration and a processor in a folder of its own."""
    (folder / "processors").mkdir(parents=True)
    save_file({"w": np.full(elements, value, dtype="f4")}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"type": "act"}))
    (folder / "processors" / "pre.json").write_text("{}")
    return folder


def contents(root: Path) -> list[Path]:
    """Every content that a store has, once each."""
    return sorted((root / "objects").glob("*/*"))


def published(store: Store, number: int, **arguments: Any) -> str:
    """Publishes a bundle whose weights are all `number`."""
    folder = store.root.parent / f"bundle-{number}-{time.monotonic_ns()}"
    bundle = save_bundle(folder, value=float(number))
    return str(publish(store, bundle, "act-lift", **{"mirror": False, **arguments}))
