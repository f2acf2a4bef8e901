"""The experiment: tracker, journal, synchronisation with W&B, checkpoints.

`import tracking` is cheap: what it offers is imported at its first use, and neither torch, wandb nor git before that.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracking.errors import UserError
    from tracking.journal import Journal, read_journal
    from tracking.metadata import get_metadata
    from tracking.ranks import is_main_process
    from tracking.tracker import ExperimentTracker

__all__ = [
    "ExperimentTracker",
    "Journal",
    "UserError",
    "get_metadata",
    "is_main_process",
    "read_journal",
]

_HOMES = {
    "ExperimentTracker": "tracking.tracker",
    "Journal": "tracking.journal",
    "UserError": "tracking.errors",
    "get_metadata": "tracking.metadata",
    "is_main_process": "tracking.ranks",
    "read_journal": "tracking.journal",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
