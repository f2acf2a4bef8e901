"""Models: what `log_checkpoint` puts aside, and the command line of the model store (`python -m tracking.models`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tracking.models.upload import describe, is_large, model_intent, model_name, uploads_wanted

__all__ = ["describe", "is_large", "model_intent", "model_name", "uploads_wanted"]


def __getattr__(name: str) -> Any:
    # The model store needs `tracking.models.files` alone, and a command line that names no model nothing of it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("tracking.models.upload"), name)
