"""The lab as one thing: up, down, and what is in between."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.lab import configuration, daemons, nodes, packages, processes
from launch.lab import settings as lab_settings
from launch.lab.installation import Installation
from launch.lab.settings import Node, Settings
from tracking.errors import UserError, unknown


@dataclass(frozen=True)
class DaemonStatus:
    """One daemon or node.

    Attributes:
        name: The daemon's or the node's name.
        pid: Its process, or None if it does not run.
        state: What Slurm says of a node ("idle", "mix", "down*"); empty for daemons, and while Slurm is down.
    """

    name: str
    pid: int | None
    state: str = ""


@dataclass(frozen=True)
class LabStatus:
    """What runs of a lab.

    Attributes:
        folder: The folder of the lab.
        daemons: munged, mariadbd, slurmdbd and slurmctld.
        nodes: The compute nodes.
    """

    folder: Path
    daemons: tuple[DaemonStatus, ...]
    nodes: tuple[DaemonStatus, ...]

    @property
    def is_up(self) -> bool:
        """Whether every daemon runs and every node takes jobs."""
        running = all(part.pid is not None for part in (*self.daemons, *self.nodes))
        return running and all(nodes.is_ready(node.state) for node in self.nodes)


class Lab:
    """A real Slurm of four nodes on this machine, in one folder, with ports of its own.

    Everything runs as the user who starts it, and so does every job. The folder holds::

        lab.json   the ports chosen at the first start
        etc/       slurm.conf and its siblings
        log/       a log for each daemon and node
        run/       sockets, and a record of each running process
        state/ spool/ database/ munge/ dev/   what the daemons keep
    """

    def __init__(self, folder: Path | None = None, report: Callable[[str], None] = lambda line: None) -> None:
        """Names a lab; nothing is started or written yet.

        Args:
            folder: Where the lab lives; None takes GILBRETH_LAB from the environment, or a folder of the user in /tmp.
            report: Called with a line for the user whenever a part was started or stopped.

        Raises:
            UserError: Slurm could not work in that folder.
        """
        self.folder = lab_settings.choose_folder(folder)
        self._report = report

    def up(self) -> None:
        """Starts what does not run yet and returns when every node takes jobs.

        Raises:
            LabUnavailable: This machine cannot run a lab; the message says why.
            LabFailed: A part did not come up; the message holds the last errors of its log.
        """
        nodes.check_namespaces()
        programs = packages.provide(self._report)
        with self._locked():
            lab = Installation(lab_settings.load_or_create(self.folder), programs)
            files = configuration.render(lab)
            if not configuration.is_current(lab, files):
                # Daemons that run with another configuration than their clients refuse them.
                self._stop(lab.settings)
                configuration.write(lab, files)
            daemons.check_ports(lab)
            daemons.start(lab, self._report)
            nodes.start(lab, lab.settings.nodes, self._report)

    def down(self, *, wipe: bool = False) -> None:
        """Stops everything; queued jobs are kept for the next start.

        Args:
            wipe: Deletes the folder too.

        Raises:
            UserError: There is something in the folder that is not a lab.
        """
        if not self.folder.exists():
            processes.kill_strays(self.folder)
            return
        with self._locked():
            if (settings := lab_settings.load(self.folder)) is not None:
                self._stop(settings)
            processes.kill_strays(self.folder)
            if wipe:
                # In one step, so that a start that waits for the lock finds either a whole lab or none.
                doomed = self.folder.with_name(f"{self.folder.name}.wiped-{os.getpid()}")
                self.folder.rename(doomed)
                shutil.rmtree(doomed)

    def status(self) -> LabStatus:
        """Tells what runs now."""
        settings = lab_settings.load(self.folder) or Settings(self.folder, 0)
        names = [node.name for node in settings.nodes]
        pids = {name: processes.running(settings.pid_file(name)) for name in (*daemons.DAEMONS, *names)}
        programs = packages.locate()
        # Clients of a dead slurmctld hang for seconds.
        states = Installation(settings, programs).node_states() if programs and pids["slurmctld"] else {}
        return LabStatus(
            self.folder,
            tuple(DaemonStatus(name, pids[name]) for name in daemons.DAEMONS),
            tuple(DaemonStatus(name, pids[name], states.get(name, "")) for name in names),
        )

    def is_up(self) -> bool:
        """Whether every daemon runs and every node takes jobs."""
        return self.status().is_up

    def variables(self) -> dict[str, str]:
        """What a shell needs to speak to this Slurm: SLURM_CONF, GILBRETH_LAB and, where needed, a longer PATH.

        Raises:
            UserError: There is no lab in the folder.
        """
        lab = self._existing()
        values = {"SLURM_CONF": str(lab.etc / "slurm.conf"), "GILBRETH_LAB": str(self.folder)}
        if first := lab.programs.search_path:
            rest = [entry for entry in os.environ.get("PATH", packages.SYSTEM_PATH).split(":") if entry != first]
            values["PATH"] = ":".join([first, *rest])
        return values

    def environment(self) -> dict[str, str]:
        """This process's environment with the lab's variables, and without those of a Slurm job around it."""
        # Inherited SLURM_ variables would bind new jobs to the processors of the old one.
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLURM_")}
        return {**own, **self.variables()}

    def kill_node(self, name: str) -> None:
        """Cuts the power of a node: its slurmd and all processes of its jobs are gone at once.

        Slurm notices after SlurmdTimeout (15 s and up to 15 more) and queues the node's jobs again.

        Raises:
            UserError: There is no such node, or no lab.
        """
        node = _find(name, self._existing().settings)
        with self._locked():
            processes.kill(self._existing().settings.pid_file(node.name))

    def start_node(self, name: str) -> None:
        """Powers a node on and returns when it takes jobs.

        Raises:
            UserError: There is no such node, or the lab is not up.
            LabFailed: The node did not register; the message holds the last errors of its log.
        """
        lab = self._existing()
        node = _find(name, lab.settings)
        with self._locked():
            if not lab.is_running("slurmctld"):
                raise UserError(f"the lab in {self.folder} is not up.\n  start it: python -m launch.lab up")
            nodes.start(lab, (node,), self._report)

    def _existing(self) -> Installation:
        settings, programs = lab_settings.load(self.folder), packages.locate()
        if settings is None or programs is None:
            raise UserError(f"there is no lab in {self.folder}.\n  start one: python -m launch.lab up")
        return Installation(settings, programs)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Keeps other commands away from this lab; makes the folder where it is missing."""
        descriptor = self._lock()
        try:
            yield
        finally:
            os.close(descriptor)

    def _lock(self) -> int:
        while True:
            self._own_folder()
            lock = self.folder / "lock"
            try:
                descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o600)
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if lock.stat().st_ino == os.fstat(descriptor).st_ino:
                    return descriptor
                os.close(descriptor)
            except FileNotFoundError:
                # Whoever held the lock has wiped the folder since: begin again with a new one.
                continue

    def _own_folder(self) -> None:
        advice = "choose another: --folder PATH"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            mine = self.folder.stat().st_uid == os.getuid()
            contents = [entry.name for entry in self.folder.iterdir()] if mine else []
        except OSError as error:
            raise UserError(f"the lab folder {self.folder} cannot be used: {error}.\n  {advice}") from None
        if not mine:
            raise UserError(f"the lab folder {self.folder} belongs to another user.\n  {advice}")
        # A first start makes the lock, and then the settings by a temporary name.
        others = [name for name in contents if name != "lock" and not name.startswith(".lab.json")]
        if others and not lab_settings.is_lab(self.folder):
            raise UserError(f"the folder {self.folder} is not a lab and holds {min(others)!r}.\n  {advice}")
        # Whoever reaches munge's socket can run jobs as the owner.
        self.folder.chmod(0o700)

    def _stop(self, settings: Settings) -> None:
        for node in settings.nodes:
            self._end(node.name, settings, processes.kill)
        for name in reversed(daemons.DAEMONS):
            self._end(name, settings, processes.stop)

    def _end(self, name: str, settings: Settings, way: Callable[[Path], None]) -> None:
        pid_file = settings.pid_file(name)
        if processes.running(pid_file) is not None:
            way(pid_file)
            self._report(f"{name:<10} stopped")


def _find(name: str, settings: Settings) -> Node:
    for node in settings.nodes:
        if node.name == name:
            return node
    raise unknown("node", name, [node.name for node in settings.nodes])
