"""The gate that a checkpoint passes before it is uploaded; what it remembers survives a requeue."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.gate.best import BestRule, Judgement, Outcomes, fresh_seeds, judge
from tracking.gate.rules import ModelManagement, find_metric

STATE = "gate.json"
BEST = "best"

Confirm = Callable[[range], tuple[Outcomes, Outcomes]]
"""Tries the new policy and the best one on the given seeds."""


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found.

    Attributes:
        step: The training step of the policy.
        metrics: By name.
        outcomes: The metric that decides on each seed; may be empty where the rule is `naive`.
    """

    step: int
    metrics: Mapping[str, float]
    outcomes: Outcomes = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """Whether a checkpoint is uploaded.

    Attributes:
        upload: Whether it is.
        aliases: `best` where it is the best so far; to be given to `log_checkpoint`.
        reasons: Why, and why not.
    """

    upload: bool
    aliases: tuple[str, ...]
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        return f"{'uploaded' if self.upload else 'not uploaded'}: {'; '.join(self.reasons)}"


@dataclass(frozen=True)
class _State:
    """What is known of earlier checkpoints: steps, and the best one's outcomes by seed (JSON has text for keys).

    What was decided stands by the step, with a digest of the evaluation that it was decided by.
    """

    best_step: int | None = None
    best_value: float | None = None
    best_outcomes: Mapping[str, float] = field(default_factory=dict)
    last_upload: int | None = None
    last_periodic: int = 0
    last_seed: int = -1
    decided: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


class Gate:
    """Decides for one run. Kept in `RUN/gate.json`, so that the next attempt goes on where this one ends."""

    def __init__(self, rules: ModelManagement, run_dir: Path, best_rule: BestRule = "paired") -> None:
        """Reads what the run's earlier attempts decided.

        Raises:
            UserError: The file is not one of ours.
        """
        self._rules = rules
        self._rule: BestRule = best_rule
        self._path = run_dir / STATE
        try:
            self._state = _State(**(read_json(self._path) or {}))
        except (ValueError, TypeError) as error:
            raise UserError(
                f"{self._path} is not a gate's state: {error}\n  next: remove it; `best` starts anew"
            ) from error

    @property
    def best_step(self) -> int | None:
        """The step of the best one so far; None where there is none."""
        return self._state.best_step

    @property
    def last_seed(self) -> int:
        """The greatest seed that anything was tried on; -1 where nothing was."""
        return self._state.last_seed

    @property
    def best_seeds(self) -> list[int]:
        """The seeds that the best one so far was tried on, and that others must be tried on."""
        return sorted(map(int, self._state.best_outcomes))

    def fresh_seeds(self, count: int, used: Iterable[int] = ()) -> range:
        """Seeds on which nothing of this run was tried; from now on they count as tried, whatever becomes of them.

        Args:
            count: How many.
            used: Seeds elsewhere that must not be among them.
        """
        seeds = fresh_seeds([self._state.last_seed, *used], count)
        self._see(seeds)
        # Also for an attempt that is killed meanwhile.
        write_json(self._path, asdict(self._state))
        return seeds

    def consider(self, evaluation: Evaluation, confirm: Confirm | None = None) -> Verdict:
        """Decides about a checkpoint that was evaluated, and remembers it: the same evaluation is decided once.

        Args:
            evaluation: What was found.
            confirm: Called with fresh seeds where the policy looks better and chance could do that too. Without it such
                a policy is not the best.

        Raises:
            UserError: The metric that decides was not measured, or the seeds are not those of the best one.
        """
        step, state = evaluation.step, self._state
        known = state.decided.get(str(step))
        if known is not None and known["evaluation"] == _digest(evaluation):
            return Verdict(known["upload"], tuple(known["aliases"]), tuple(known["reasons"]))
        faults = self._rules.faults(evaluation.metrics)
        reasons, upload = list(faults), False
        aliases: tuple[str, ...] = ()
        if evaluation.outcomes:
            self._see(evaluation.outcomes)
        if self._rules.save_best_models and not faults:
            judgement = self._judge(evaluation, confirm)
            reasons.append(f"{'the best' if judgement.better else 'not the best'}: {judgement.reason}")
            if judgement.better:
                upload, aliases = True, (BEST,)
                self._state = self._with_best(evaluation)
        if step == state.last_upload and not upload:
            # An attempt that was killed after it decided may not have come to the upload; trained again on other ranks,
            # the policy of this step is not quite the same.
            upload = True
            reasons.append("as was decided before")
        since = step - state.last_upload if state.last_upload is not None else math.inf
        if not faults and not upload and 0 < self._rules.upload_frequency <= since:
            upload = True
            reasons.append(f"one every {self._rules.upload_frequency} steps")
        every = self._rules.upload_periodic_every
        if every and step // every > state.last_periodic // every:
            upload = True
            reasons.append(f"one every {every} steps, whatever the conditions say")
            self._state = replace(self._state, last_periodic=step)
        if upload:
            self._state = replace(self._state, last_upload=step)
        verdict = Verdict(upload, aliases, tuple(reasons) or ("neither best nor due",))
        self._keep(evaluation, verdict)
        return verdict

    def _keep(self, evaluation: Evaluation, verdict: Verdict) -> None:
        decided = {"evaluation": _digest(evaluation), **asdict(verdict)}
        self._state = replace(self._state, decided={**self._state.decided, str(evaluation.step): decided})
        write_json(self._path, asdict(self._state))

    def _judge(self, evaluation: Evaluation, confirm: Confirm | None) -> Judgement:
        state = self._state
        value = self._value(evaluation)
        if math.isnan(value):
            return Judgement(better=False, confirm=False, reason=f"{self._rules.best_model_metric} is not a number")
        if self._rule == "naive":
            new, best = {0: value}, None if state.best_value is None else {0: state.best_value}
            return judge(new, best, rule="naive")
        if not evaluation.outcomes:
            raise UserError(
                "a fair comparison needs what came out on each seed, and this evaluation has none\n"
                "  next: give Evaluation(outcomes={seed: …}), or --best-rule naive"
            )
        best = {int(seed): known for seed, known in state.best_outcomes.items()} or None
        judgement = judge(evaluation.outcomes, best)
        if not judgement.confirm or confirm is None:
            return judgement
        seeds = self.fresh_seeds(len(evaluation.outcomes))
        return judge(evaluation.outcomes, best, fresh=confirm(seeds))

    def _value(self, evaluation: Evaluation) -> float:
        value = find_metric(evaluation.metrics, self._rules.best_model_metric)
        if value is None:
            measured = ", ".join(sorted(evaluation.metrics)) or "(nothing)"
            raise UserError(
                f"{self._rules.best_model_metric!r}, which decides what is best, was not measured"
                f"\n  measured: {measured}"
            )
        return value

    def _see(self, seeds: Iterable[int]) -> None:
        self._state = replace(self._state, last_seed=max(self._state.last_seed, *seeds))

    def _with_best(self, evaluation: Evaluation) -> _State:
        outcomes = {str(seed): float(value) for seed, value in sorted(evaluation.outcomes.items())}
        return replace(
            self._state, best_step=evaluation.step, best_value=self._value(evaluation), best_outcomes=outcomes
        )


def _digest(evaluation: Evaluation) -> str:
    found = [sorted(evaluation.metrics.items()), sorted(evaluation.outcomes.items())]
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()[:16]
