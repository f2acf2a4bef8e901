"""Ranks and their rendezvous, from Slurm's variables: one srun task a GPU, no torchrun, no ssh, no fixed port."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gilbreth_phase0.stop import signals_held_back
from tracking.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import Store

# Below Linux's ephemeral ports (32768 and up), so that no outgoing connection holds one by chance.
_FIRST_PORT, _PORTS = 20000, 12000
_PORT_TRIES = 16
_ATTEMPT = ("CLUSTER_NAME", "JOB_ID", "RESTART_COUNT")
_RENDEZVOUS_SECONDS = 300.0
_ANSWER_SECONDS = 2.0
# Half a minute where a core is free; other work may make it several times that.
_COMPILING_SECONDS = 180.0


@dataclass(frozen=True)
class Ranks:
    """This process's place among the job's.

    Attributes:
        rank: 0 … world_size - 1 over all nodes.
        world_size: How many processes train together.
        local_rank: 0 … on this node; the index of its GPU.
        host: The node of rank 0.
        job: What tells this attempt from every other on the same nodes (cluster, job id, restart count): ranks that
            agree on it would join one another.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    host: str = "127.0.0.1"
    job: str = f"process-{os.getpid()}"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Ranks:
        """Reads srun's variables, submitit's local ones or torchrun's; without any of them there is one rank."""
        if "SLURM_PROCID" in environ and "SLURM_STEP_ID" in environ:
            return cls(
                rank=int(environ["SLURM_PROCID"]),
                world_size=int(environ.get("SLURM_STEP_NUM_TASKS", environ["SLURM_NTASKS"])),
                local_rank=int(environ["SLURM_LOCALID"]),
                host=first_host(environ["SLURM_STEP_NODELIST"]),
                # SLURM_CONF: two labs on one machine have the same cluster name and job ids.
                job=":".join(environ.get(f"SLURM_{key}", "") for key in ("CONF", *_ATTEMPT)),
            )
        if "SUBMITIT_LOCAL_GLOBALID" in environ:
            return cls(
                rank=int(environ["SUBMITIT_LOCAL_GLOBALID"]),
                world_size=int(environ["SUBMITIT_LOCAL_NTASKS"]),
                local_rank=int(environ["SUBMITIT_LOCAL_LOCALID"]),
                job=f"local:{os.uname().nodename}:{environ['SUBMITIT_LOCAL_JOB_ID']}",
            )
        if "RANK" in environ and "WORLD_SIZE" in environ:
            return cls(
                rank=int(environ["RANK"]),
                world_size=int(environ["WORLD_SIZE"]),
                local_rank=int(environ.get("LOCAL_RANK", "0")),
                host=environ.get("MASTER_ADDR", "127.0.0.1"),
                job=f"torchrun:{environ.get('TORCHELASTIC_RUN_ID', '')}:{environ.get('MASTER_PORT', '')}",
            )
        return cls()

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which alone tracks, commits checkpoints and decides."""
        return self.rank == 0


def first_host(nodelist: str) -> str:
    """Returns the first host of a Slurm node list: `gpu[007-012,20],x1` is `gpu007`."""
    found = re.fullmatch(r"([^\[,]+)(?:\[([^\]-]+?)(?:[-,][^\]]*)?\]([^,\[]*))?(?:,.*)?", nodelist)
    if found is None:
        raise UserError(f"cannot read the node list {nodelist!r}; expected Slurm's form, as in gpu[01-04]")
    prefix, number, suffix = found.groups()
    return f"{prefix}{number or ''}{suffix or ''}"


def ports(job: str) -> Iterator[int]:
    """Yields the ports that a job's ranks try, in the same order on every rank and seldom another job's."""
    for attempt in range(_PORT_TRIES):
        digest = hashlib.sha256(f"{job}/{attempt}".encode()).digest()
        yield _FIRST_PORT + int.from_bytes(digest[:4], "big") % _PORTS


def meet(ranks: Ranks) -> Store:
    """Brings the ranks of a job together on a store that rank 0 serves.

    Rank 0 listens on the first free port of `ports(job)` and tells whoever connects the job's name and the store's
    port. The others look for it there, so that a port that someone else holds, whatever it answers, is only passed
    over. The store itself is asked for nothing before that: its client waits for an answer without an end.

    Raises:
        UserError: No port was free, or rank 0 was not found in five minutes.
    """
    import torch.distributed as dist

    timeout = timedelta(seconds=_RENDEZVOUS_SECONDS)
    if ranks.is_main:
        listener = _listen(ranks)
        store = dist.TCPStore(ranks.host, 0, is_master=True, wait_for_workers=False, timeout=timeout)
        threading.Thread(target=_tell, args=(listener, _greeting(ranks.job, store.port)), daemon=True).start()
    else:
        store = dist.TCPStore(ranks.host, _find(ranks), is_master=False, timeout=timeout)
    return dist.PrefixStore(ranks.job, store)


def _listen(ranks: Ranks) -> socket.socket:
    for port in ports(ranks.job):
        try:
            return socket.create_server(("", port))
        except OSError:
            print(f"rendezvous: port {port} is taken, trying the next", flush=True)
    raise UserError(f"none of {_PORT_TRIES} ports on {ranks.host} was free for the rendezvous; requeue the job")


def _tell(listener: socket.socket, greeting: bytes) -> None:
    """Greets whoever connects, for as long as the process lives: ranks may come late, and strangers too."""
    while True:
        with suppress(OSError), listener.accept()[0] as caller:
            caller.sendall(greeting)


def _greeting(job: str, port: int) -> bytes:
    return f"{hashlib.sha256(job.encode()).hexdigest()} {port:05d}".encode()


def _find(ranks: Ranks) -> int:
    """Looks for rank 0 and returns the port of its store."""
    expected = _greeting(ranks.job, 0)
    deadline = time.monotonic() + _RENDEZVOUS_SECONDS
    while time.monotonic() < deadline:
        for port in ports(ranks.job):
            try:
                with socket.create_connection((ranks.host, port), timeout=_ANSWER_SECONDS) as connection:
                    greeting = connection.recv(len(expected))
            except OSError:
                continue
            name, _, store = greeting.partition(b" ")
            if len(greeting) == len(expected) and expected.startswith(name + b" "):
                return int(store)
        time.sleep(0.2)
    raise UserError(
        f"rank {ranks.rank} did not find rank 0 on {ranks.host} in {_RENDEZVOUS_SECONDS:.0f} s;"
        " see rank 0's log, and whether the nodes reach each other by name"
    )


def choose_device(asked: str) -> str:
    """Resolves `auto` to `cuda` where PyTorch has a GPU, else `cpu`, and tells DeepSpeed the same.

    Must run before DeepSpeed is imported: it picks its accelerator then.

    Raises:
        UserError: `cuda` was asked for and there is none.
    """
    import torch

    available = torch.cuda.is_available()
    if asked == "cuda" and not available:
        raise UserError(
            "--device 'cuda': PyTorch sees no GPU here."
            " Ask Slurm for one (resources.gpus_per_node), check nvidia-smi on the node, or use --device cpu"
        )
    device = "cuda" if available and asked in ("auto", "cuda") else "cpu"
    if device == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    keep_extensions_here()
    return device


def initialise(ranks: Ranks, device: str) -> None:
    """Starts torch.distributed over the rendezvous (NCCL on GPUs, gloo on CPUs) and DeepSpeed's view of it."""
    import torch
    import torch.distributed as dist

    os.environ["LOCAL_RANK"] = str(ranks.local_rank)
    if device == "cuda":
        # Slurm may show a task only its own GPU.
        torch.cuda.set_device(ranks.local_rank % torch.cuda.device_count())
    dist.init_process_group(
        "nccl" if device == "cuda" else "gloo",
        store=meet(ranks),
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(minutes=10),
    )
    import deepspeed

    drop_dead_locks()
    with signals_held_back():  # on CPUs a compiler may run in here
        deepspeed.init_distributed("nccl" if device == "cuda" else "gloo", auto_mpi_discovery=False, verbose=False)


def keep_extensions_here() -> None:
    """Makes DeepSpeed compile with this environment's ninja, and into the environment where that can be written.

    PyTorch's default is one folder in the home and the first ninja on the PATH. Two checkouts that share the folder
    compile the same extension from different paths, and two versions of ninja see each other's result as outdated:
    both compile again, while jobs load what is deleted for it.
    """
    programs = str(Path(sys.executable).parent)
    path = os.environ.get("PATH", os.defpath).split(os.pathsep)
    if path[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, *path])
    if os.access(sys.prefix, os.W_OK):
        os.environ.setdefault("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions"))


def drop_dead_locks(patience: float = _COMPILING_SECONDS) -> None:
    """Takes away a lock that a killed process has left on a compiled extension, and says so.

    Whoever loads an extension holds PyTorch's lock file meanwhile, for a moment or while it compiles. One that is
    killed then leaves it, and PyTorch would wait for it for ever.

    Args:
        patience: Seconds for which a lock is respected, by the clock of this process: hosts' clocks differ.
    """
    folder = Path(os.environ.get("TORCH_EXTENSIONS_DIR", ""))
    for lock in folder.glob("*/lock") if folder.is_absolute() else []:
        seen, since = _identity(lock), time.monotonic()
        while seen is not None and _identity(lock) == seen:
            if time.monotonic() - since > patience:
                print(f"{lock} is there for {patience:.0f} s: whoever made it was killed; taken away", flush=True)
                lock.unlink(missing_ok=True)
                break
            time.sleep(0.05)


def _identity(lock: Path) -> tuple[int, int] | None:
    try:
        found = lock.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def compile_extensions() -> None:
    """Compiles what DeepSpeed would compile at its first use on CPUs (shared-memory communication, half a minute)."""
    keep_extensions_here()
    drop_dead_locks()
    from deepspeed.ops.op_builder.cpu import ShareMemCommBuilder

    ShareMemCommBuilder().load(verbose=False)


if __name__ == "__main__":
    if sys.argv[1:] != ["compile"]:
        sys.exit("usage: python -m gilbreth_phase0.ranks compile")
    compile_extensions()
