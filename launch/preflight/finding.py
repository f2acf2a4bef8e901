"""What preflight says: one finding a fault, with why it matters and the fix."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from tracking.words import many

if TYPE_CHECKING:
    from rich.console import Console

Level = Literal["error", "warning"]
ERROR: Level = "error"
WARNING: Level = "warning"

_STYLES = {ERROR: "bold red", WARNING: "bold yellow"}


@dataclass(frozen=True)
class Finding:
    """One fault of a job.

    Attributes:
        rule: Which rule found it.
        level: `error` stops a submission, `warning` does not.
        what: The value that was given and what was expected.
        why: What would come of it.
        fix: What to do.
        line: Where it stands in a script; None for a stage and for a script as a whole.
    """

    rule: str
    level: Level
    what: str
    why: str
    fix: str
    line: int | None = None

    def as_json(self) -> dict[str, Any]:
        """Its fields by name."""
        return asdict(self)

    def milder(self) -> Finding:
        """The same as a warning."""
        return replace(self, level=WARNING)


@dataclass(frozen=True)
class Rule:
    """One thing that preflight looks for; called with a case of it, it makes the finding.

    Attributes:
        name: Its name, as findings show it.
        level: That of its findings; some cases are milder.
        why: What would come of a job that it speaks of.
    """

    name: str
    level: Level
    why: str

    def __call__(self, what: str, fix: str, line: int | None = None) -> Finding:
        """Makes a finding."""
        return Finding(self.name, self.level, what, self.why, fix, line)


def errors_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those that stop a submission."""
    return [finding for finding in findings if finding.level == ERROR]


def warnings_of(findings: Iterable[Finding]) -> list[Finding]:
    """Those that do not."""
    return [finding for finding in findings if finding.level == WARNING]


def counted(findings: Sequence[Finding]) -> str:
    """`1 error, 2 warnings`; `nothing found`."""
    errors = len(errors_of(findings))
    warnings = len(findings) - errors
    parts = [many(count, noun) for count, noun in ((errors, "error"), (warnings, "warning")) if count]
    return ", ".join(parts) or "nothing found"


def as_text(finding: Finding, width: int | None = None) -> str:
    """Writes a finding in three parts: what, why and fix.

    Args:
        finding: The finding.
        width: Where lines are broken; None breaks none, so that what follows can be searched and copied.
    """
    place = f"line {finding.line}: " if finding.line is not None else ""
    parts = (
        (f"{finding.level:<7} {finding.rule}  ", f"{place}{finding.what}"),
        ("        why  ", finding.why),
        ("        fix  ", finding.fix),
    )
    return "\n".join(_wrapped(head, text, width) for head, text in parts)


def _wrapped(head: str, text: str, width: int | None) -> str:
    whole = head + " ".join(text.split())
    if width is None:
        return whole
    # Paths and commands are to be copied, so they are not broken.
    return "\n".join(
        textwrap.wrap(whole, width, subsequent_indent=" " * 13, break_long_words=False, break_on_hyphens=False)
    )


def show(findings: Iterable[Finding], console: Console) -> None:
    """Prints findings, broken at the console's width where a person reads it."""
    from rich.text import Text

    for finding in findings:
        text = Text(as_text(finding, console.width if console.is_terminal else None))
        text.stylize(_STYLES[finding.level], 0, len(finding.level))
        text.stylize("bold", 8, 8 + len(finding.rule))
        console.print(text, soft_wrap=True)
