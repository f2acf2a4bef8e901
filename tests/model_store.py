"""Small policy bundles, and what a store holds of them."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from tracking.store import Store, publish


@pytest.fixture(autouse=True)
def no_settings_of_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the caller's W&B, which is not asked for anything."""
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["GILBRETH_STORE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """A store that is not there yet."""
    return Store(tmp_path / "models")


@contextmanager
def only_readable(folder: Path) -> Iterator[None]:
    """Makes a folder one in which `as_reader` may not write, as if it were somebody else's."""
    folders = [path for path in [folder, *folder.rglob("*")] if path.is_dir()]
    for path in folders:
        path.chmod(0o555)
    try:
        yield
    finally:
        for path in folders:
            path.chmod(0o755)


def as_reader(*command: str | Path) -> list[str | Path]:
    """A command that may do no more than the modes of files say, also where root runs the tests."""
    if os.getuid() != 0:
        return list(command)
    without = "-dac_override,-dac_read_search"
    return ["setpriv", f"--bounding-set={without}", f"--inh-caps={without}", *command]


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
