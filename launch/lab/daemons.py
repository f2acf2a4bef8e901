"""The four daemons behind the nodes: munged, mariadbd, slurmdbd and slurmctld."""

from __future__ import annotations

import time
from collections.abc import Callable

from launch.lab import database
from launch.lab.installation import Installation
from launch.lab.settings import LabFailed, port_is_free

# In the order in which they start.
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld")
START_TIMEOUT = 60.0


def check_ports(lab: Installation) -> None:
    """Looks whether what does not run yet could listen; a daemon would tell only after half a minute.

    Raises:
        LabFailed: Another process has taken one of the lab's ports.
    """
    settings = lab.settings
    listeners = {"slurmctld": settings.controller_port, "slurmdbd": settings.accounting_port}
    listeners |= {node.name: node.port for node in settings.nodes}
    for name, port in listeners.items():
        if not lab.is_running(name) and not port_is_free(port):
            raise LabFailed(
                f"port {port}, where {name} of the lab in {settings.folder} listens, is taken by another process.\n"
                "  choose new ports: python -m launch.lab down --wipe && python -m launch.lab up"
            )


def start(lab: Installation, report: Callable[[str], None]) -> None:
    """Starts the daemons that do not run, each as soon as the one that it needs answers.

    Args:
        lab: The lab, with its configuration written.
        report: Called with a line for each daemon that was started.

    Raises:
        LabFailed: A daemon did not come up; the message holds the last errors of its log.
    """
    folder = lab.settings.folder
    if not lab.is_running("munged"):
        # Readiness is seen by the socket, so that one from before a crash has to go.
        lab.settings.munge_socket.unlink(missing_ok=True)
    munged = [
        "--foreground",
        "--num-threads=4",
        # The lab's folder is its owner's alone; munged wants its socket to be open to everybody.
        "--force",
        f"--socket={lab.settings.munge_socket}",
        f"--key-file={folder}/munge/munge.key",
        f"--seed-file={folder}/munge/munged.seed",
        f"--pid-file={folder}/run/munged.munge.pid",
    ]
    _start(lab, "munged", munged, ready=lab.settings.munge_socket.exists, report=report)

    if not lab.is_running("mariadbd"):
        database.create(lab)
    ask = ("mariadb", "--no-defaults", f"--socket={lab.settings.database_socket}", "--execute=SELECT 1")
    mariadbd = [f"--defaults-file={lab.etc}/my.cnf"]
    _start(lab, "mariadbd", mariadbd, ready=lambda: lab.run(*ask).returncode == 0, report=report)

    ask = ("sacctmgr", "--noheader", "list", "cluster")
    _start(lab, "slurmdbd", ["-D"], ready=lambda: lab.run(*ask).returncode == 0, report=report)
    began = time.monotonic()
    if database.create_accounts(lab):
        report(f"{'accounts':<10} made after {time.monotonic() - began:.1f} s")

    # -i: a state that a crash cut short is read as far as it goes.
    slurmctld = ["-D", "-i", "-f", f"{lab.etc}/slurm.conf"]
    _start(lab, "slurmctld", slurmctld, ready=lambda: lab.run("scontrol", "ping").returncode == 0, report=report)


def wait(lab: Installation, names: list[str], ready: Callable[[], bool]) -> None:
    """Waits until the named parts are ready, and no longer than they live.

    Raises:
        LabFailed: One ended, or took too long; the message holds the last errors of its log.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while not ready():
        dead = [name for name in names if not lab.is_running(name)]
        if dead:
            raise LabFailed(f"{', '.join(dead)} ended at the start.\n{lab.last_errors(dead)}")
        if time.monotonic() > deadline:
            raise LabFailed(
                f"{', '.join(names)} not ready after {START_TIMEOUT:g} s.\n{lab.last_errors([*names, 'slurmctld'])}"
            )
        time.sleep(0.05)


def _start(
    lab: Installation, name: str, arguments: list[str], *, ready: Callable[[], bool], report: Callable[[str], None]
) -> None:
    if lab.is_running(name):
        return
    began = time.monotonic()
    lab.start(name, [lab.programs.find(name), *arguments])
    wait(lab, [name], ready)
    report(f"{name:<10} up after {time.monotonic() - began:.1f} s")
