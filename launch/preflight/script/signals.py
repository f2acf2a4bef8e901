"""Rules on the signal before the end: who gets it, and what it does there."""

from __future__ import annotations

import re
from collections.abc import Iterator

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.preflight.script.directives import Directive
from launch.preflight.script.read import STARTERS, Script

# R is for reservations; B is the batch shell alone.
_SIGNAL = re.compile(r"(?:(?P<to>[RB]+):)?(?:SIG)?(?P<name>[A-Z0-9]+)(?:@(?P<seconds>\d+))?", re.IGNORECASE)
_NUMBERS = {"10": "USR1", "12": "USR2", "15": "TERM", "2": "INT", "1": "HUP"}


def signal_findings(script: Script) -> Iterator[Finding]:
    """Yields why a signal that a script asks for does nothing, or does harm."""
    one = script.last("signal")
    match = _SIGNAL.fullmatch(one.value) if one is not None else None
    if one is None or match is None:
        return
    name = _NUMBERS.get(match["name"], match["name"].upper())
    minutes = script.request.minutes
    # Without a number it comes 60 seconds before the end.
    if minutes is not None and int(match["seconds"] or 60) >= minutes * 60:
        yield rules.SIGNAL_TIME(f"{one} with {script.request.shown('minutes')}", "a smaller number behind @", one.line)
    if "B" in (match["to"] or "").upper():
        yield from _shell(script, one, name)
        return
    torchrun = next((command for command in script.launches if command.runs("torchrun")), None)
    if script.launches and not script.mentions(STARTERS):
        yield rules.SIGNAL_NO_STEP(
            f"{one}, and {script.launches[0].words[0]} starts without srun",
            f"srun {script.launches[0].words[0]} ..., or --signal=B:{name} and a trap that hands it on",
            one.line,
        )
    elif torchrun is not None and name.startswith("USR"):
        yield rules.SIGNAL_TORCHRUN(
            f"{one} with torchrun", "srun python, one task a GPU: the ranks get it themselves", torchrun.line
        )


def _shell(script: Script, one: Directive, name: str) -> Iterator[Finding]:
    number = next((key for key, value in _NUMBERS.items() if value == name), name)
    trapped = rf"\btrap\b.*\s(?:SIG)?{name}\b|\btrap\b.*\s{number}\b"
    if not script.mentions(trapped):
        yield rules.SIGNAL_UNTRAPPED(
            f"{one}, and no trap for {name}",
            f"--signal={name}@SECONDS for srun's tasks, or: trap 'kill -{name} $!' {name}; COMMAND & wait",
            one.line,
        )
        return
    last = script.launches[-1] if script.launches else None
    waits = script.mentions(r"(^|;|&&|\s)wait\b")
    if last is not None and script.helpers is not None and not (waits and re.search(r"&\s*$|&\s+\w", last.text)):
        yield rules.SIGNAL_WAITS(
            f"{last.words[0]} runs in the foreground, so the trap for {name} comes too late",
            f"{last.words[0]} ... & and wait",
            last.line,
        )
