"""One lab's settings together with the programs that it runs."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from launch.lab import processes
from launch.lab.packages import Programs
from launch.lab.settings import Settings


@dataclass(frozen=True)
class Installation:
    """What is needed to start a part of the lab, or to ask one.

    Attributes:
        settings: The lab's folder and ports.
        programs: Where Slurm, munge and MariaDB are.
    """

    settings: Settings
    programs: Programs

    @property
    def etc(self) -> Path:
        """The folder of the configuration."""
        return self.settings.folder / "etc"

    @property
    def environment(self) -> dict[str, str]:
        """What the daemons see: nothing of the user's environment, which may hold secrets."""
        return {
            "PATH": self.programs.path(),
            "HOME": str(self.settings.folder),
            "LANG": "C.UTF-8",
            "SLURM_CONF": str(self.etc / "slurm.conf"),
            # slurmdbd's way to learn where the database listens.
            "MYSQL_UNIX_PORT": str(self.settings.database_socket),
            processes.MARKER: str(self.settings.folder),
        }

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a client program of this lab to its end; the caller looks at the exit code."""
        command = [self.programs.find(program), *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, text=True, check=False)

    def start(self, name: str, command: list[str]) -> None:
        """Starts a program that stays, and records it as the daemon or node of this name."""
        processes.start(
            command,
            pid_file=self.settings.pid_file(name),
            output=self.settings.log_files(name)[1],
            environment=self.environment,
        )

    def is_running(self, name: str) -> bool:
        """Whether the daemon or node of this name runs."""
        return processes.running(self.settings.pid_file(name)) is not None

    def node_states(self) -> dict[str, str]:
        """Asks Slurm for the state of each node in its short form; empty when slurmctld does not answer."""
        command = [self.programs.find("sinfo"), "--noheader", "--Node", "--format=%N %t"]
        try:
            # Clients try a dead slurmctld for nine seconds; a live one answers in milliseconds.
            answer = subprocess.run(
                command, env=self.environment, capture_output=True, text=True, check=False, timeout=5
            )
        except subprocess.TimeoutExpired:
            return {}
        return dict(line.split()[:2] for line in answer.stdout.splitlines() if line.strip())

    def last_errors(self, names: Iterable[str]) -> str:
        """The last lines of these daemons' logs that tell of an error, and where to read more."""
        shown = []
        for name in names:
            lines = []
            for log in self.settings.log_files(name):
                if log.is_file():
                    lines += log.read_text(errors="replace").splitlines()[-200:]
            # Every start complains of MPI plugins that Debian ships without their libraries.
            errors = [line for line in lines if _tells_of_error(line.lower())]
            shown += [f"    {name}: {line}" for line in (errors or lines)[-5:]]
        return "\n".join([*shown, f"  logs: {self.settings.folder / 'log'}"])


def _tells_of_error(line: str) -> bool:
    is_error = any(word in line for word in ("error", "fatal", "cannot", "failed"))
    return is_error and not any(noise in line for noise in ("pmix", "mpi"))
