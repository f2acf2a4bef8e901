"""Rules on the shell's environment: conda, and secrets."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.preflight.script.read import Script
from launch.preflight.script.shell import Command
from tracking.redact import REDACTED, redact_text

_ACTIVATE = re.compile(r"(?:^|[;&|]\s*|\s)(conda|mamba|micromamba)\s+activate\b")
_HOOK = re.compile(r"conda\.sh|(conda|mamba|micromamba)[\"']?\s+shell|shell\.bash\s+hook|\bbashrc\b|bash_profile")
_STRICT = re.compile(r"\bset\s+(-[a-z]*u|-o\s+nounset)")
_LENIENT = re.compile(r"\bset\s+(\+[a-z]*u|\+o\s+nounset)")
_FILLED_IN = re.compile(r"\$\([^)]*\)|\$\{[^}]*\}|\$\w+|`[^`]*`")
_FOREIGN = re.compile(r"conda\.sh|/etc/profile|bashrc|(^|[;&]\s*)module\s+(load|purge)\b")


def environment_findings(script: Script) -> Iterator[Finding]:
    """Yields what would leave the job without its environment, or shows what it must not."""
    yield from _conda(script)
    yield from _strict(script)
    for number, line in enumerate(script.text.splitlines(), 1):
        # What the shell fills in is not in the script.
        if REDACTED in redact_text(_FILLED_IN.sub("", line), {}):
            name = re.search(r"\w*(?:KEY|TOKEN|SECRET|PASSWORD)\w*", line, re.IGNORECASE)
            yield rules.SECRET(
                f"{name[0] if name else 'a secret'} stands in the script",
                "take it out and make a new one; jobs inherit what was exported where they were submitted",
                number,
            )


def _conda(script: Script) -> Iterator[Finding]:
    # A login shell reads the files that conda init has written to.
    hooked = bool(re.match(r"#!.*\s-\w*l", script.text))
    for command in script.commands:
        hooked = hooked or bool(_HOOK.search(command.text))
        if (found := _ACTIVATE.search(command.text)) and not hooked and script.helpers == []:
            yield rules.CONDA_INIT(
                f"{found[1]} activate without its hook before it",
                f'eval "$({found[1]} shell.bash hook)", or source .../etc/profile.d/conda.sh',
                command.line,
            )
            return


def _strict(script: Script) -> Iterator[Finding]:
    strict: Command | None = None
    for command in script.commands:
        if _STRICT.search(command.text):
            strict = command
        elif _LENIENT.search(command.text):
            strict = None
        if strict is not None and (_ACTIVATE.search(command.text) or _FOREIGN.search(command.text)):
            finding = rules.CONDA_NOUNSET(
                f"{' '.join(command.words[:3])} under {' '.join(strict.words[:2])} (line {strict.line})",
                "set +u before it, and set -u behind it",
                command.line,
            )
            # Newer versions of module can do with it.
            yield finding.milder() if re.search(r"\bmodule\b", command.text) else finding
