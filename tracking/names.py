"""Names: of runs, and of anything that becomes part of a path."""

from __future__ import annotations

import re
from datetime import datetime

from tracking.errors import UserError

_ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\Z")
_MAX_LENGTH = 128


def slug(text: str) -> str:
    """Turns any text into a name that is safe in a path, a shell and a URL.

    Args:
        text: Any text, such as `lerobot/pusht` or `it's "mine"`.

    Returns:
        Letters, digits, `.`, `_` and `-` only, at most 128 of them, beginning with a letter or digit; `unnamed` where
        nothing is left.
    """
    cleaned = re.sub(r"[^A-Za-z0-9._-]+", "-", text).strip("-._")
    return cleaned[:_MAX_LENGTH].rstrip("-._") or "unnamed"


def check_name(kind: str, name: str) -> str:
    """Refuses a name that cannot safely be part of a path.

    Args:
        kind: What is named ("run", "policy", "dataset"), for the message.
        name: The name that was given.

    Returns:
        The same name.

    Raises:
        UserError: It is empty, too long, or holds anything but letters, digits, `.`, `_` and `-`.
    """
    if len(name) > _MAX_LENGTH or not _ALLOWED.match(name):
        raise UserError(
            f"{kind} name {name!r} cannot be part of a path: at most {_MAX_LENGTH} letters, digits, '.', '_' and '-', "
            f"beginning with a letter or digit.\n  try: {slug(name)}"
        )
    return name


def run_name(model: str, objective: str, dataset: str, git_short: str | None, at: datetime) -> str:
    """Makes `{model}_{objective}_{dataset}_{YYYYMMDD}_{HHMMSS}_{git_short}`.

    Args:
        model: What is trained, for example `act`.
        objective: How, for example `bc`.
        dataset: On what; a slash, as in `lerobot/pusht`, becomes a hyphen.
        git_short: The abbreviated commit, or None outside a git tree, which gives `nogit`.
        at: When the run began.

    Returns:
        A name that `check_name` accepts as long as the parts are not excessively long.
    """
    parts = [slug(model), slug(objective), slug(dataset), at.strftime("%Y%m%d_%H%M%S"), git_short or "nogit"]
    return "_".join(parts)
