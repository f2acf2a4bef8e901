"""The small artifacts that the tracker makes itself: the configuration and the diff of the working tree."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.files import write_atomic
from tracking.intents import Intent, put_intent
from tracking.names import slug


def put_config(run_dir: Path, run_name: str, config: Mapping[str, Any]) -> Path:
    """Writes a configuration as YAML into the run folder and puts its upload aside.

    Args:
        run_dir: The run folder.
        run_name: What the artifact is named after.
        config: Plain values without secrets.

    Returns:
        The file, relative to the run folder.
    """
    import yaml

    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return _put(run_dir, f"{slug(run_name)}-config", "config", "config.yaml", text)


def put_diff(run_dir: Path, run_name: str, diff: str) -> Path:
    """Writes the working tree's diff into the run folder and puts its upload aside; as `put_config`."""
    return _put(run_dir, f"{slug(run_name)}-diff", "diff", "diff.patch", diff)


def _put(run_dir: Path, name: str, kind: str, file_name: str, text: str) -> Path:
    content = text.encode()
    # Named after its content: what a waiting upload refers to never changes under it.
    stem, suffix = file_name.split(".")
    path = Path("artifacts") / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
    (run_dir / "artifacts").mkdir(exist_ok=True)
    if not (run_dir / path).exists():
        write_atomic(run_dir / path, content)
    put_intent(run_dir, Intent(name, kind, {file_name: str(path)}))
    return path
