"""Tags, group, job type and notes: how runs are found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tracking.errors import UserError

REQUIRED = ("model", "dataset", "objective", "experiment_group")

# W&B refuses longer ones.
_MAX_LENGTH = 64


@dataclass(frozen=True)
class Labels:
    """What W&B shows beside a run's name and filters by.

    Attributes:
        tags: At most 64 characters each.
        group: Runs of one group stand together.
        job_type: For example `train` or `evaluate`.
        notes: Free text.
    """

    tags: tuple[str, ...] = ()
    group: str | None = None
    job_type: str | None = None
    notes: str | None = None


NO_LABELS = Labels()


def check_tags(tags: Mapping[str, str] | Sequence[str] | None) -> None:
    """Refuses a mapping of tags that lacks a required one; a list is free.

    Raises:
        UserError: Names every required key that is missing or empty.
    """
    if isinstance(tags, str):
        raise UserError(f"tags are a mapping or a list, not the text {tags!r}")
    if not isinstance(tags, Mapping):
        return
    missing = [key for key in REQUIRED if tags.get(key) in (None, "")]
    if missing:
        example = ", ".join(f"{key!r}: ..." for key in REQUIRED)
        raise UserError(
            f"tags lack {', '.join(missing)} (given: {', '.join(map(str, tags)) or 'none'}).\n"
            f"  next: tags={{{example}}}"
        )


def tag_texts(tags: Mapping[str, str] | Sequence[str] | None) -> tuple[str, ...]:
    """Tags as W&B has them: `key:value` of a mapping, each at most 64 characters, each once."""
    texts = [f"{key}:{value}" for key, value in tags.items()] if isinstance(tags, Mapping) else list(tags or ())
    return tuple(dict.fromkeys(str(text)[:_MAX_LENGTH] for text in texts if text))
