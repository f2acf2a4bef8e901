"""Models: what `log_checkpoint` puts aside, and the command line of the model store (`python -m tracking.models`)."""

from __future__ import annotations

from tracking.models.upload import describe, is_large, model_intent, model_name, uploads_wanted

__all__ = ["describe", "is_large", "model_intent", "model_name", "uploads_wanted"]
