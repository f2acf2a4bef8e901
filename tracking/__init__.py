"""The experiment: tracker, journal, synchronisation with W&B, checkpoints.

`import tracking` is cheap: what it offers is imported at its first use, and neither torch, wandb nor git before that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracking.errors import UserError
    from tracking.gpu import get_all_gpu_stats
    from tracking.journal import Journal, read_journal
    from tracking.media import Histogram, Image, Table, Video
    from tracking.metadata import get_metadata
    from tracking.metrics import compute_grad_norm, get_amp_scale, get_learning_rate
    from tracking.ranks import is_main_process
    from tracking.seeds import set_seeds
    from tracking.tracker import ExperimentTracker

__all__ = [
    "ExperimentTracker",
    "Histogram",
    "Image",
    "Journal",
    "Table",
    "UserError",
    "Video",
    "compute_grad_norm",
    "get_all_gpu_stats",
    "get_amp_scale",
    "get_learning_rate",
    "get_metadata",
    "is_main_process",
    "read_journal",
    "set_seeds",
]

_HOMES = {
    "ExperimentTracker": "tracking.tracker",
    "Journal": "tracking.journal",
    "Histogram": "tracking.media",
    "Image": "tracking.media",
    "Table": "tracking.media",
    "Video": "tracking.media",
    "UserError": "tracking.errors",
    "compute_grad_norm": "tracking.metrics",
    "get_all_gpu_stats": "tracking.gpu",
    "get_amp_scale": "tracking.metrics",
    "get_learning_rate": "tracking.metrics",
    "get_metadata": "tracking.metadata",
    "is_main_process": "tracking.ranks",
    "read_journal": "tracking.journal",
    "set_seeds": "tracking.seeds",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
