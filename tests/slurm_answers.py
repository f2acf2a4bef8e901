"""A Slurm of another version than the one that runs here: its commands give answers that are on file.

`tests/launch/answers/22.05` was recorded in the lab; `24.05` has the forms that newer versions document.
"""

from __future__ import annotations

from pathlib import Path

ANSWERS = Path(__file__).parent / "launch" / "answers"
_COMMAND = """#!/bin/bash
case "$*" in
  *show\\ partition*) what=partition ;;
  *show\\ node*) what=node ;;
  *show\\ config*) what=config ;;
  *show\\ qos*) what=qos ;;
  *show\\ user*) what=user ;;
esac
echo "${0##*/} $*" >>%(asked)s
if [ -e "%(folder)s/$what.sh" ]; then . "%(folder)s/$what.sh"; fi
exec cat "%(folder)s/$what"
"""


def place_slurm(folder: Path, version: str, **instead: str) -> Path:
    """Makes commands of a Slurm.

    Args:
        folder: An empty folder; the commands come into its `bin`.
        version: Whose answers they give.
        instead: Shell text in the place of an answer, by what is asked for: `qos="echo no >&2; exit 1"`.

    Returns:
        The file in which each command that is run leaves a line.
    """
    (folder / "bin").mkdir()
    for answer in (ANSWERS / version).iterdir():
        (folder / answer.name).write_text(answer.read_text())
    for what, shell in instead.items():
        (folder / f"{what}.sh").write_text(shell)
    for name in ("scontrol", "sacctmgr"):
        command = folder / "bin" / name
        command.write_text(_COMMAND % {"folder": folder, "asked": folder / "asked"})
        command.chmod(0o755)
    return folder / "asked"
