"""Rules on processes: how they get to the nodes, how many there are, and how they find each other."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.preflight.script.read import STARTERS, Script
from launch.preflight.script.shell import Command
from tracking.words import many

_NODE_LOCAL = ("/tmp", "/var/tmp", "/dev/shm")
_PORT_OPTIONS = ("--master_port", "--main_process_port", "--port")


def launch_findings(script: Script, node_local: Sequence[str] = _NODE_LOCAL) -> Iterator[Finding]:
    """Yields what is wrong with how a script starts its processes.

    Args:
        script: The script.
        node_local: Folders that other nodes do not see.
    """
    yield from _nodes(script, node_local)
    yield from _tasks(script)
    yield from _interfaces(script)
    yield from _ports(script)


def _nodes(script: Script, node_local: Sequence[str]) -> Iterator[Finding]:
    nodes = script.request.nodes
    launches = script.launches
    if nodes > 1 and launches and not script.mentions(STARTERS):
        yield rules.MISSING_SRUN(
            f"{nodes} nodes, and {_program(launches[0])} starts without srun", f"srun {_program(launches[0])} ...",
            launches[0].line,
        )  # fmt: skip
    for command in script.commands:
        words = command.words
        by_ssh = {"pdsh", "pdcp", "ssh", "clush", "parallel-ssh"} & set(words[:1])
        by_deepspeed = nodes > 1 and command.runs("deepspeed") and command.option("--launcher") != "slurm"
        if by_ssh or command.option("--hostfile") is not None or by_deepspeed or "pdsh" in words:
            seen = next((word for word in words if re.search(r"hostfile|pdsh|ssh", word)), "deepspeed")
            finding = rules.SSH_LAUNCHER(
                f"{seen} in a job of {many(nodes, 'node')}",
                "srun, one task a GPU: the ranks come from SLURM_PROCID and SLURM_NTASKS",
                command.line,
            )
            yield finding if nodes > 1 else finding.milder()
    for command in script.commands if nodes > 1 else ():
        if found := _local_path(command.text, node_local):
            yield rules.NODE_LOCAL(
                f"{found} in a job of {nodes} nodes", "a folder on a shared disk, as /scratch", command.line
            )
    for name in ("output", "error", "chdir"):
        one = script.last(name)
        if one is not None and (found := _local_path(one.value, node_local)):
            finding = rules.NODE_LOCAL(f"{one}", "a folder on a shared disk, as where you submit from", one.line)
            yield finding if nodes > 1 else finding.milder()


def _local_path(text: str, node_local: Sequence[str]) -> str | None:
    for folder in node_local:
        if found := re.search(rf"(?:^|[\s=:'\"]){re.escape(folder)}(?:/[\w.${{}}/%-]*|(?=[\s'\"]|$))", text):
            return found[0].strip(" \t=:'\"")
    return None


def _tasks(script: Script) -> Iterator[Finding]:
    request = script.request
    for command in script.launches:
        processes = command.option("--nproc_per_node", "--num_processes", "--num_gpus")
        under_srun = command.runs("srun")
        tasks = _count(command.option("--ntasks-per-node")) or request.tasks_per_node or 1
        if command.runs("torchrun") or "torch.distributed.run" in command.text:
            if under_srun and tasks > 1:
                yield rules.TORCHRUN_TASKS(
                    f"srun starts {tasks} tasks on each node, and each starts torchrun"
                    + (f" with {processes} processes" if processes else ""),
                    "--ntasks-per-node=1 with torchrun, or srun python without torchrun",
                    command.line,
                )
            yield from _processes(script, command, _count(processes if processes is not None else "1"))
        elif under_srun and request.nodes * tasks > 1 and not _kills_all(script, command):
            yield rules.HANGING_RANKS(
                f"srun starts {request.nodes * tasks} tasks without --kill-on-bad-exit",
                "srun --kill-on-bad-exit=1",
                command.line,
            )


def _kills_all(script: Script, command: Command) -> bool:
    """Whether the end of one task ends the others."""
    given = re.search(r"--kill-on-bad-exit(?!=0)|\s-K\b", command.text)
    return given is not None or script.mentions("SLURM_KILL_BAD_EXIT=1")


def _processes(script: Script, command: Command, count: int | None) -> Iterator[Finding]:
    gpus = script.request.gpus_per_node
    if count is None or not gpus:
        return
    what = f"torchrun starts {count} on each node, which has {gpus} GPUs for the job"
    if count > gpus:
        yield rules.TORCHRUN_GPUS(what, f"--nproc_per_node={gpus}, or --gpus-per-node={count}", command.line)
    elif count < gpus:
        yield rules.IDLE_GPUS(what, f"--nproc_per_node={gpus}, or --gpus-per-node={count}", command.line)


def _interfaces(script: Script) -> Iterator[Finding]:
    for command in script.commands:
        found = re.search(r"\b(NCCL_SOCKET_IFNAME|GLOO_SOCKET_IFNAME|TP_SOCKET_IFNAME)=(\S+)", command.text)
        if found and not command.text.startswith("unset"):
            finding = rules.SOCKET_IFNAME(
                found[0], f"leave it out (unset {found[1]}): NCCL and gloo find the interface", command.line
            )
            yield finding if script.request.nodes > 1 else finding.milder()
        if found := re.search(r"\bCUDA_VISIBLE_DEVICES=(\d[\d,]*)", command.text):
            yield rules.VISIBLE_DEVICES(found[0], "leave it out: Slurm sets it to the GPUs of the job", command.line)


def _ports(script: Script) -> Iterator[Finding]:
    if script.last("exclusive") is not None:
        return
    fix = "a port of the job: MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))"
    for command in script.commands:
        found = re.search(r"\bMASTER_PORT=[\"']?(\d+)", command.text)
        given = next((value for name in _PORT_OPTIONS if (value := command.option(name)) is not None), None)
        endpoint = re.search(r":(\d{4,5})$", command.option("--rdzv_endpoint") or "")
        if found or (given and given.isdigit()) or endpoint:
            number = found[1] if found else endpoint[1] if endpoint else given
            yield rules.FIXED_PORT(f"port {number} for every job", fix, command.line)
            return
        asks = command.option("--rdzv_endpoint", "--master_port", "--rdzv_backend")
        if command.runs("torchrun") and asks is None and "--standalone" not in command.words:
            yield rules.FIXED_PORT("torchrun without a port takes 29500", "torchrun --standalone", command.line)
            return


def _program(command: Command) -> str:
    words = [word for word in command.words if "=" not in word or word.startswith("-")]
    return words[0] if words else command.text[:40]


def _count(text: str | None) -> int | None:
    return int(text) if text is not None and text.isdigit() else None
