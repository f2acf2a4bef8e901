"""A batch script, read once for all rules."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from launch.preflight.request import Request
from launch.preflight.script.directives import Directive, directives, request_in
from launch.preflight.script.shell import Command, commands

_SOURCED = re.compile(
    r"(?:^|[;&|]\s*|\bthen\s+)(?:\.|source)\s+(?P<quote>[\"']?)(?P<path>[^\"';]+?)(?P=quote)(?:\s|;|$)"
)
_SUBMIT_DIR = re.compile(r"\$\{?SLURM_SUBMIT_DIR(?::[^}]*)?\}?")
STARTERS = r"\b(srun|mpirun|mpiexec|run_tasks)\b"
"""What starts processes on all nodes; the last is that of this project's own scripts."""
LAUNCHERS = ("python", "python3", "torchrun", "accelerate", "deepspeed", "horovodrun", "lightning")
"""Programs that train, in scripts of all kinds."""


@dataclass(frozen=True)
class Script:
    """A batch script.

    Attributes:
        text: Its text.
        submit_dir: Where it would be submitted from.
    """

    text: str
    submit_dir: Path

    @cached_property
    def directives(self) -> list[Directive]:
        """The options of its `#SBATCH` lines."""
        return directives(self.text)

    @cached_property
    def request(self) -> Request:
        """What it asks Slurm for."""
        return request_in(self.directives)

    @cached_property
    def commands(self) -> list[Command]:
        """What its shell runs."""
        return commands(self.text)

    @cached_property
    def helpers(self) -> list[str] | None:
        """Texts of the files that it sources from where it is submitted; None where one of them cannot be read."""
        texts = []
        for command in self.commands:
            for match in _SOURCED.finditer(command.text):
                path = _SUBMIT_DIR.sub(str(self.submit_dir), match["path"])
                if re.search(r"conda\.sh|modules\.sh|bashrc|profile|/activate$", path):
                    continue
                try:
                    texts.append((self.submit_dir / Path(path).expanduser()).read_text())
                except (OSError, UnicodeDecodeError):
                    return None
        return texts

    def mentions(self, pattern: str) -> bool:
        """Whether a command of the script or of what it sources matches; unread helpers may, so they count."""
        return (
            any(re.search(pattern, command.text) for command in self.commands)
            or self.helpers is None
            or any(re.search(pattern, text, re.MULTILINE) for text in self.helpers)
        )

    def last(self, name: str) -> Directive | None:
        """The option of that name that counts."""
        return next((one for one in reversed(self.directives) if one.name == name and one.read), None)

    @cached_property
    def launches(self) -> list[Command]:
        """The commands that run a training program, through whatever launcher."""
        return [command for command in self.commands if command.runs(*LAUNCHERS)]
