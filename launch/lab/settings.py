"""Where a lab lives and which ports are its own."""

from __future__ import annotations

import os
import pwd
import re
import socket
import zlib
from dataclasses import dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.files import read_json, write_json

CLUSTER = "lab"
ACCOUNT = "lab"
GPUS_PER_NODE = 4

# The kernel's limit for the path of a Unix socket, its closing zero byte included.
SOCKET_PATH_LIMIT = 108
# Below the range from which Linux takes the ports of outgoing connections.
FIRST_PORT, LAST_PORT, PORTS_PER_LAB = 20000, 32000, 10


class LabUnavailable(UserError):
    """This machine cannot run a lab at all; jobs can still run through submitit's local executor."""

    exit_code = 3


class LabFailed(UserError):
    """A part of the lab did not come up; the message holds the last errors of its log."""

    exit_code = 1


@dataclass(frozen=True)
class Node:
    """One node: the name that jobs see, and where its slurmd listens."""

    name: str
    address: str
    port: int


@dataclass(frozen=True)
class Settings:
    """What one lab keeps from its first start on.

    Attributes:
        folder: Everything of the lab: configuration, state, logs, sockets.
        port: First of the block of ports.
    """

    folder: Path
    port: int

    @property
    def nodes(self) -> tuple[Node, ...]:
        """The four nodes; each has a loopback address of its own, because they share one network."""
        return tuple(Node(f"node{n}", f"127.0.0.{10 + n}", self.port + 1 + n) for n in range(1, 5))

    @property
    def controller_port(self) -> int:
        """Where slurmctld listens."""
        return self.port

    @property
    def accounting_port(self) -> int:
        """Where slurmdbd listens."""
        return self.port + 1

    @property
    def munge_socket(self) -> Path:
        """Where munged listens."""
        return munge_socket(self.folder)

    @property
    def database_socket(self) -> Path:
        """Where mariadbd listens."""
        return self.folder / "run" / "db.socket"

    def pid_file(self, daemon: str) -> Path:
        """The record of a running daemon; nodes are daemons too."""
        return self.folder / "run" / f"{daemon}.json"

    def log_files(self, daemon: str) -> tuple[Path, Path]:
        """Where a daemon writes: its own log, and what it printed."""
        return self.folder / "log" / f"{daemon}.log", self.folder / "log" / f"{daemon}.out"


def owner() -> str:
    """The name of the user whom the lab belongs to; every daemon and every job runs as this user.

    Raises:
        LabUnavailable: The user has no name, which Slurm cannot do without.
    """
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        raise LabUnavailable(
            f"user id {os.getuid()} has no entry in /etc/passwd and Slurm knows users by name.\n  run as a named user"
        ) from None


def munge_socket(folder: Path) -> Path:
    """Where the munged of a lab in this folder listens."""
    return folder / "run" / "munge.socket"


def choose_folder(folder: Path | None) -> Path:
    """Resolves the folder of a lab and refuses one that Slurm could not work in.

    Args:
        folder: The folder asked for; None takes GILBRETH_LAB from the environment, or else one for each user in /tmp.

    Raises:
        UserError: The path is too long for a socket, or holds characters that slurm.conf cannot quote.
    """
    chosen = folder or Path(os.environ.get("GILBRETH_LAB") or f"/tmp/gilbreth-lab-{os.getuid()}")
    chosen = chosen.expanduser().resolve()
    advice = "choose another with --folder or GILBRETH_LAB, e.g. --folder /tmp/slurm"
    check_characters("the lab folder", chosen, advice)
    length = len(os.fsencode(munge_socket(chosen))) + 1
    if length > SOCKET_PATH_LIMIT:
        raise UserError(
            f"the lab folder {str(chosen)!r} is {length - SOCKET_PATH_LIMIT} characters too long: "
            f"a socket in it must fit into {SOCKET_PATH_LIMIT} bytes.\n  {advice}"
        )
    return chosen


def check_characters(what: str, folder: Path, advice: str) -> None:
    """Refuses a folder that cannot be written into slurm.conf, which knows no quotes.

    Raises:
        UserError: The path holds a space, a quote, a comma or the like.
    """
    if not re.fullmatch(r"[\w./+@-]+", str(folder), re.ASCII):
        raise UserError(
            f"{what} {str(folder)!r} holds characters that Slurm's configuration cannot.\n"
            f"  expected: letters, digits and any of . / + @ - _; {advice}"
        )


def is_lab(folder: Path) -> bool:
    """Whether a lab was ever started in this folder."""
    return (folder / "lab.json").is_file()


def load(folder: Path) -> Settings | None:
    """Reads the settings of the lab in a folder; None where there is no lab."""
    stored = read_json(folder / "lab.json")
    return Settings(folder, int(stored["port"])) if stored else None


def load_or_create(folder: Path) -> Settings:
    """Reads the settings of a lab, or chooses them at its first start.

    Raises:
        LabUnavailable: No block of ports is free.
    """
    settings = load(folder)
    if settings is None:
        settings = Settings(folder, _free_block(folder))
        write_json(folder / "lab.json", {"port": settings.port})
    return settings


def port_is_free(port: int) -> bool:
    """Whether a daemon could listen on this port now."""
    with socket.socket() as probe:
        # As Slurm does it: connections that are only winding down do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


def _free_block(folder: Path) -> int:
    blocks = range(FIRST_PORT, LAST_PORT, PORTS_PER_LAB)
    # Labs that start at the same moment begin their search at different blocks.
    start = zlib.crc32(os.fsencode(folder)) % len(blocks)
    for index in range(len(blocks)):
        first = blocks[(start + index) % len(blocks)]
        if all(port_is_free(first + offset) for offset in range(PORTS_PER_LAB)):
            return first
    raise LabUnavailable(f"no {PORTS_PER_LAB} free TCP ports in a row between {FIRST_PORT} and {LAST_PORT}")
