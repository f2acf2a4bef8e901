"""A stage program that really fails, in the way that its first argument names; all ranks meet in a file first.

`WAY@RANK` fails on that rank only, and the others wait for it as ranks do that compute together.
"""

from __future__ import annotations

import errno
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

run = Path(sys.argv[1].removeprefix("--run-dir="))
way, _, only = sys.argv[2].partition("@")
rank = os.environ.get("SLURM_PROCID") or os.environ.get("SUBMITIT_LOCAL_GLOBALID") or "0"
world = int(os.environ.get("SLURM_NTASKS") or os.environ.get("SUBMITIT_LOCAL_NTASKS") or "1")


def package() -> None:
    import a_package_that_nobody_has  # noqa: F401


def memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))
    bytearray(2**33)


def disk() -> None:
    with open("/dev/full", "w") as file:  # noqa: PTH123 - the kernel's own full disk
        file.write("x" * 2**20)


def quota() -> None:
    raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT), str(run / "journal-000.jsonl"))


def file_size() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**10, 2**10))
    (run / "large").write_bytes(bytes(2**20))


def port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        socket.create_server(taken.getsockname())


def workers() -> None:
    """A DataLoader whose worker dies as one does that finds /dev/shm full: of SIGBUS."""
    from torch.utils.data import DataLoader, Dataset

    class Cut(Dataset):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int) -> int:
            os.kill(os.getpid(), signal.SIGBUS)
            return index

    list(DataLoader(Cut(), num_workers=1))


def deepspeed() -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    from deepspeed.runtime.config import DeepSpeedConfig

    DeepSpeedConfig({"train_batch_size": 7, "train_micro_batch_size_per_gpu": 4, "gradient_accumulation_steps": 2})


def peers() -> None:
    """Ranks that reduce over gloo; the named one dies of a missing package in the middle."""
    import torch
    import torch.distributed as dist

    dist.init_process_group("gloo", f"file://{run}/meeting", rank=int(rank), world_size=world)
    dist.all_reduce(torch.ones(1))
    if rank == "1":
        package()
    dist.all_reduce(torch.ones(1))
    dist.all_reduce(torch.ones(1))


def program() -> None:
    subprocess.run(["bash", "-c", "a_program_that_nobody_has"], check=True)


def library() -> None:
    import ctypes

    try:
        ctypes.CDLL("libnobody.so.7")
    except OSError as error:
        raise ImportError(str(error)) from None


def refuse() -> None:
    print("error: dataset 'lift' is not in /data\n  next: make it", file=sys.stderr)
    sys.exit(2)


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wandb_key() -> None:
    import wandb

    wandb.login(key="too-short")


def own() -> None:
    raise ValueError("the loss is not what it was")


if only in ("", rank):
    {name: value for name, value in globals().items() if callable(value)}[way]()
while True:  # as one that waits for the others
    time.sleep(0.1)
