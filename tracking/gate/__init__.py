"""Which checkpoints are worth an upload, and which one is the best."""

from __future__ import annotations

from tracking.gate.best import BestRule, Judgement, fresh_seeds, judge
from tracking.gate.gate import Evaluation, Gate, Verdict
from tracking.gate.rules import Condition, ModelManagement, read_rules

__all__ = [
    "BestRule",
    "Condition",
    "Evaluation",
    "Gate",
    "Judgement",
    "ModelManagement",
    "Verdict",
    "fresh_seeds",
    "judge",
    "read_rules",
]
