"""How a model is asked for: what a text names, and what the names that users have written down mean today."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

from tracking.errors import UserError
from tracking.store.state import LATEST

_FORM = re.compile(r"(?:(?P<project>[^/:\s]+(?:/[^/:\s]+)?)/)?(?P<name>[^/:\s]+)(?::(?P<alias>[^/:]+))?")
_VERSION = re.compile(r"v(\d+)")
# The step was part of the name, so that each of these was a name of its own with one version.
_OLD_STEP = re.compile(r"(?P<name>.+)-(?P<kind>best|checkpoint)-step-(?P<step>\d+)")
_OLD_WORD = re.compile(r"(?P<name>.+)-(?P<alias>best|final)")


@dataclass(frozen=True)
class Reference:
    """A model by name.

    Attributes:
        name: Such as `act-lift`.
        alias: Which of its versions: `latest`, `best`, `v3`.
        project: The W&B project, as `entity/project` or `project`; None for the store's own.
    """

    name: str
    alias: str = LATEST
    project: str | None = None

    def __str__(self) -> str:
        return f"{self.project}/{self.name}:{self.alias}" if self.project else f"{self.name}:{self.alias}"

    @property
    def number(self) -> int | None:
        """The version's number where one is asked for."""
        match = _VERSION.fullmatch(self.alias)
        return int(match[1]) if match else None


@dataclass(frozen=True)
class Old:
    """What an old name means today.

    Attributes:
        reference: The name, and the alias that says the same.
        step: The training step that the old name tells; None where it tells none.
        was_best: Whether the version must have been the best one once.
    """

    reference: Reference
    step: int | None = None
    was_best: bool = False


def parse(text: str) -> Reference | Path:
    """Reads what a user asks for.

    Args:
        text: `act-lift`, `act-lift:best`, `act-lift:v3`, `entity/project/act-lift:best`, or a path. What holds a slash
            and exists is a path; so is what begins with `/`, `./`, `../` or `~`.

    Raises:
        UserError: It is none of these.
    """
    if text.startswith(("/", "./", "../", "~")) or text in (".", ".."):
        return Path(text).expanduser()
    if "/" in text and Path(text).exists():
        return Path(text)
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(
            f"{text!r} names no model: expected NAME, NAME:ALIAS, NAME:v3, ENTITY/PROJECT/NAME:ALIAS or a path that "
            "exists\n  next: python -m tracking.models list"
        )
    return Reference(match["name"], match["alias"] or LATEST, match["project"])


def old_form(reference: Reference) -> Old | None:
    """What a name of the old forms means: `act-lift-best-step-10000`, `act-lift-checkpoint-step-5000`, `act-lift-final`
    and `act-lift-best`; None where it is none of them, or an alias is asked for that they cannot have had.
    """  # noqa: D205
    if (match := _OLD_STEP.fullmatch(reference.name)) and reference.alias in (LATEST, "v0"):
        step = int(match["step"])
        return Old(replace(reference, name=match["name"], alias=f"step-{step}"), step, match["kind"] == "best")
    if (match := _OLD_WORD.fullmatch(reference.name)) and reference.alias == LATEST:
        return Old(replace(reference, name=match["name"], alias=match["alias"]))
    return None


def today(name: str) -> tuple[str, list[str]]:
    """The name that a new version gets where its maker still uses an old form, and the aliases that the rest becomes.

    `act-lift-best-step-10000` becomes `act-lift` with `best` and `step-10000`.
    """
    old = old_form(Reference(name))
    if old is None:
        return name, []
    return old.reference.name, [*(["best"] if old.was_best else []), old.reference.alias]
