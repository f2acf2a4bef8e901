"""Compute nodes: a slurmd each, in namespaces that make it a machine of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from launch.lab import daemons
from launch.lab.installation import Installation
from launch.lab.settings import LabUnavailable, Node

NODE_INIT = Path(__file__).parent / "node_init.sh"


def check_namespaces() -> None:
    """Tries what every node needs: a host name, a process tree and mounts of its own.

    Raises:
        LabUnavailable: The kernel or the container does not allow it; the message holds the kernel's words.
    """
    missing = [tool for tool in ("unshare", "setpriv", "bash", "hostname", "mount") if shutil.which(tool) is None]
    if missing:
        raise LabUnavailable(
            f"the programs {', '.join(missing)} are missing, which a node of the lab needs.\n"
            "  install util-linux, bash and hostname"
        )
    probe = [*_namespaces(), "sh", "-c", "hostname probe && mount --bind /dev/null /etc/hosts"]
    tried = subprocess.run(probe, capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        what = "namespaces" if os.getuid() == 0 else "user namespaces"
        raise LabUnavailable(
            f"this machine does not allow {what}, which the lab's nodes are made of: {tried.stderr.strip()}\n"
            "  a machine: sysctl -w kernel.unprivileged_userns_clone=1 kernel.apparmor_restrict_unprivileged_userns=0 "
            "(whichever exists; as root)\n"
            "  a container: run it with --privileged\n"
            "  or run jobs without Slurm: --cluster local"
        )


def start(lab: Installation, wanted: tuple[Node, ...], report: Callable[[str], None]) -> None:
    """Powers nodes on and returns when all of them take jobs.

    Args:
        lab: The lab; its slurmctld runs.
        wanted: The nodes; those that run already are left alone.
        report: Called with a line for the nodes that were started.

    Raises:
        LabFailed: A node did not register; the message holds the last errors of its log.
    """
    began = time.monotonic()
    off = [node for node in wanted if not lab.is_running(node.name)]
    names = ",".join(node.name for node in off)
    if off:
        # A node that was off has lost its jobs. Told so, slurmctld queues them again now; else they seem to run on.
        lab.run("scontrol", "update", f"nodename={names}", "state=down", "reason=was off")
    states = lab.node_states()
    held = [node.name for node in wanted if node not in off and not is_ready(states.get(node.name, ""))]
    if held:
        # slurmd runs and yet Slurm gives the node no jobs: drained, or taken for dead while the machine slept.
        lab.run("scontrol", "update", f"nodename={','.join(held)}", "state=resume")
    for node in off:
        lab.start(node.name, _command(lab, node))

    def ready() -> bool:
        states = lab.node_states()
        return all(is_ready(states.get(node.name, "")) for node in wanted)

    daemons.wait(lab, [node.name for node in wanted], ready)
    if off:
        report(f"{names} up after {time.monotonic() - began:.1f} s")


def is_ready(state: str) -> bool:
    """Whether a node in this state, as sinfo abbreviates it, takes jobs or is busy with some."""
    return state in ("idle", "mix", "alloc", "comp", "plnd")


def _command(lab: Installation, node: Node) -> list[str]:
    slurmd = [lab.programs.find("slurmd"), "-D", "-f", f"{lab.etc}/slurm.conf", "-N", node.name]
    if lab.programs.prefix:
        slurmd += ["-d", lab.programs.find("slurmstepd")]
    if os.getuid() != 0:
        # The namespaces were made with every capability; jobs must have none of them.
        slurmd = ["setpriv", "--inh-caps=-all", "--ambient-caps=-all", *slurmd]
    hosts = [f"{lab.etc}/hosts", str(lab.settings.folder / "run" / f"{node.name}.hosts")]
    return [*_namespaces(), "bash", str(NODE_INIT), node.name, *hosts, *slurmd]


def _namespaces() -> list[str]:
    """The command in front of another that gives it namespaces, whoever the user is."""
    # Only an ordinary user needs a user namespace; root in one could not change to the owner of a job.
    user = [] if os.getuid() == 0 else ["--user", "--map-current-user", "--keep-caps"]
    others = ["--fork", "--kill-child", "--pid", "--mount-proc", "--uts", "--mount", "--propagation", "slave"]
    return ["unshare", *user, *others]
