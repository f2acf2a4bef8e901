"""Rules on what Slurm reads: the first line and the `#SBATCH` lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.preflight.script.read import Script

_LOGS = ("output", "error")
# sbatch expands none of these; `%j` and the like it does.
_UNEXPANDED = re.compile(r"\$\{?\w+|\$\(|`|^~")


def option_findings(script: Script) -> Iterator[Finding]:
    """Yields what Slurm would read otherwise than it was meant."""
    yield from _form(script)
    if late := [one for one in script.directives if not one.read]:
        shown = ", ".join(f"--{one.name}" for one in late)
        yield rules.DIRECTIVE_LATE(
            f"{shown}: behind the first command", "move the #SBATCH lines up to the first line", late[0].line
        )
    for one in script.directives:
        if _UNEXPANDED.search(one.value):
            fix = "a relative path" if one.name in (*_LOGS, "chdir") else "the value itself"
            option = f"sbatch --{one.name}={one.value}"
            yield rules.DIRECTIVE_VARIABLE(f"#SBATCH {one}", f"write {fix}, or give it outside: {option}", one.line)
    yield from _logs(script)
    if script.last("time") is None:
        yield rules.TIME_MISSING("no --time", "#SBATCH --time=HH:MM:SS")
    requeue, mode = script.last("requeue"), script.last("open-mode")
    if requeue is not None and (mode is None or mode.value != "append"):
        yield rules.REQUEUE_TRUNCATES("--requeue, no --open-mode=append", "#SBATCH --open-mode=append", requeue.line)
    export = script.last("export")
    bare = export is not None and export.value.upper() == "NONE" and script.mentions(r"\bsrun\b")
    if export is not None and bare and not script.mentions(r"SLURM_EXPORT_ENV|srun\b.*--export"):
        yield rules.EXPORT_NONE("--export=NONE with srun", "export SLURM_EXPORT_ENV=ALL before srun", export.line)


def _form(script: Script) -> Iterator[Finding]:
    if not script.text.startswith("#!"):
        yield rules.NOT_A_SCRIPT("the first line is not the interpreter", "#!/bin/bash as the very first line", 1)
    elif "\r\n" in script.text:
        yield rules.NOT_A_SCRIPT("the lines end with CR LF, as Windows writes them", "dos2unix FILE", 1)


def _logs(script: Script) -> Iterator[Finding]:
    chdir = script.last("chdir")
    start = script.submit_dir / chdir.value if chdir is not None else script.submit_dir
    for name in _LOGS:
        one = script.last(name)
        if one is None or not one.value or _UNEXPANDED.search(one.value):
            continue
        folder = Path(one.value).parent
        # Slurm fills in what stands behind a `%`, and makes no folder.
        while "%" in str(folder):
            folder = folder.parent
        if not (start / folder).is_dir():
            fix = f"mkdir -p {shlex.quote(str(Path(one.value).parent))}"
            yield rules.OUTPUT_FOLDER(f"{one}: there is no folder {str(folder)!r}", fix, one.line)
