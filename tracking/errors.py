"""What a user sees without a traceback."""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


class UserError(Exception):
    """A fault that the user can mend: the message holds the value given, what was expected and what to do next.

    Attributes:
        exit_code: What a command line ends with. 2 is refused input, which no requeue can mend.
    """

    exit_code = 2


def unknown(kind: str, given: str, valid: Iterable[str]) -> UserError:
    """Makes the error for a name that is not among the valid ones.

    Args:
        kind: What is named, in the singular ("stage", "cluster", "key").
        given: The name that was given.
        valid: The names that would have been right.

    Returns:
        An error that lists the valid names and suggests the nearest one.
    """
    names = sorted(valid)
    nearest = get_close_matches(given, names, n=1)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    return UserError(f"unknown {kind} {given!r}.{hint}\n  valid: {', '.join(names) or '(none)'}")


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into a message on stderr and its exit code; anything else keeps its traceback."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


@contextmanager
def exit_on_disk_error() -> Iterator[None]:
    """Turns a disk that is full or may not be written into a message that names the file, and exit code 1."""
    try:
        yield
    except OSError as error:
        if error.errno not in _DISK:
            raise
        print(f"error: {error.filename}: {error.strerror}\n  next: make room, or name another folder", file=sys.stderr)
        sys.exit(1)
