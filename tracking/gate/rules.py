"""The section `model_management` of a YAML configuration.

```yaml
model_management:
  save_best_models: true
  best_model_metric: success_rate
  upload_conditions: {min_success_rate: 0.6, min_reward_threshold: 10, mean_length: {max: 120}}
  upload_frequency: 2000
  upload_periodic_every: 5000
  keep_last_n: 5
```
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from tracking.errors import UserError, unknown
from tracking.yaml_form import load_yaml

SECTION = "model_management"
_REWARD = "reward_threshold"
# What `min_reward_threshold` may mean, as evaluations call it.
_REWARDS = ("reward", "avg_reward", "mean_reward", "episode_reward", "reward_per_step", "return", "mean_return")


class Condition(BaseModel):
    """What a metric must be for an upload.

    Attributes:
        metric: Its name, with or without its namespace.
        min: The least value.
        max: The greatest value.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    metric: str
    min: float | None = None
    max: float | None = None

    def fault(self, metrics: Mapping[str, float]) -> str | None:
        """Why the metrics do not meet it, or None; what was not measured or is not a number does not.

        Raises:
            UserError: Several metrics could be meant.
        """
        value = find_metric(metrics, self.metric)
        if value is None:
            return f"{self.metric} was not measured"
        if math.isnan(value) or (self.min is not None and value < self.min):
            return (
                f"{self.metric} is {value:.4g}, at least {self.min:.4g} is asked for"
                if self.min is not None
                else (f"{self.metric} is not a number")
            )
        if self.max is not None and value > self.max:
            return f"{self.metric} is {value:.4g}, at most {self.max:.4g} is asked for"
        return None


class ModelManagement(BaseModel):
    """What is uploaded, and when.

    Attributes:
        save_best_models: Whether a new best one is uploaded and gets the alias `best`.
        best_model_metric: What the best one is best in; more is better.
        upload_conditions: What must hold for an upload, the periodic ones apart.
        upload_frequency: Steps after which one that meets the conditions is uploaded again, best or not; 0 for never.
        upload_periodic_every: Steps after which one is uploaded whatever the conditions say; 0 for never.
        keep_last_n: How many of a name's newest versions stay on W&B when it is pruned; None for all of them.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    save_best_models: bool = True
    best_model_metric: str = "success_rate"
    upload_conditions: tuple[Condition, ...] = ()
    upload_frequency: int = Field(default=0, ge=0)
    upload_periodic_every: int = Field(default=5000, ge=0)
    keep_last_n: int | None = Field(default=None, ge=1)

    @field_validator("upload_conditions", mode="before")
    @classmethod
    def _conditions(cls, given: Any) -> Any:
        if given is None or isinstance(given, list | tuple):  # as `model_dump` writes them
            return given or ()
        if not isinstance(given, Mapping):
            raise ValueError("expected a mapping, as in {min_success_rate: 0.6}")
        return tuple(_condition(str(key), value) for key, value in given.items())

    def faults(self, metrics: Mapping[str, float]) -> list[str]:
        """Why an evaluation does not meet the conditions; empty where it does."""
        return [fault for condition in self.upload_conditions if (fault := condition.fault(metrics)) is not None]


def read_rules(source: Path | str | Mapping[str, Any]) -> ModelManagement:
    """Reads the section `model_management`; where there is none, the defaults hold.

    Args:
        source: A YAML file, or what it would hold. Other sections are not looked at.

    Raises:
        UserError: It is not of this form; an unknown key is answered with the nearest valid one.
    """
    place = SECTION if isinstance(source, Mapping) else f"{SECTION} in {source}"
    form = source if isinstance(source, Mapping) else load_yaml(Path(source))
    section = (form.get(SECTION) if isinstance(form, Mapping) else form) or {}
    if not isinstance(section, Mapping):
        raise UserError(f"{place} is a mapping, not {section!r}")
    for key in section:
        if key not in ModelManagement.model_fields:
            raise unknown(f"key under {place}", str(key), ModelManagement.model_fields)
    try:
        return ModelManagement(**section)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(str(part) for part in fault["loc"])
        message = fault["msg"].removeprefix("Value error, ")
        raise UserError(f"{where} under {place} is {fault['input']!r}: {message}") from error


def find_metric(metrics: Mapping[str, float], name: str) -> float | None:
    """A metric by its name, or by the name without its namespace; None where there is none.

    Raises:
        UserError: Several could be meant.
    """
    names = _REWARDS if name == _REWARD else (name,)
    found = [key for key in metrics if key in names] or [key for key in metrics if metric_name(key) in names]
    if len(found) > 1:
        raise UserError(f"{name!r} may be any of {', '.join(sorted(found))}\n  next: name one of them in full")
    return float(metrics[found[0]]) if found else None


def check_metrics(rules: ModelManagement, measured: Collection[str], deciding: Collection[str]) -> None:
    """Refuses rules about what no evaluation measures.

    Args:
        rules: The rules.
        measured: Metrics of an evaluation.
        deciding: Those of them, without their namespace, that may decide which model is the best.

    Raises:
        UserError: Names the metric, and those that there are.
    """
    values, metric = dict.fromkeys(measured, 0.0), rules.best_model_metric
    if find_metric(values, metric) is None or metric_name(metric) not in deciding:
        raise unknown(f"{SECTION}.best_model_metric", metric, deciding)
    for condition in rules.upload_conditions:
        if find_metric(values, condition.metric) is None:
            raise unknown(f"metric in {SECTION}.upload_conditions", condition.metric, map(metric_name, measured))


def metric_name(metric: str) -> str:
    """A metric's name without its namespace."""
    return metric.rpartition("/")[2]


def _condition(key: str, value: Any) -> Condition:
    if isinstance(value, Mapping):
        if not value or not value.keys() <= {"min", "max"}:
            raise ValueError(f"{key} takes min and max, not {dict(value)!r}")
        return Condition(metric=key, **value)
    bound, sign, metric = key.partition("_")
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not sign or bound not in ("min", "max") or not is_number:
        raise ValueError(f"{key}: {value!r}; expected min_METRIC or max_METRIC with a number, or METRIC: {{min, max}}")
    return Condition.model_validate({"metric": metric, bound: value})
