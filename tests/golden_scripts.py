"""Scripts that are compared letter by letter with files in launch/golden/, which a person can read."""

from __future__ import annotations

import os
from pathlib import Path

GOLDEN = Path(__file__).parent / "launch" / "golden"


def assert_golden(name: str, script: str) -> None:
    """Compares a script with its file. `RENEW_GOLDEN=1 pytest tests/launch -k golden` writes the files anew."""
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("RENEW_GOLDEN") == "1":
        path.write_text(script)
    assert script == path.read_text(), "where this is meant: RENEW_GOLDEN=1 pytest tests/launch -k golden; git diff"
