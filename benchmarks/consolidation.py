"""Seconds and peak memory of consolidating a checkpoint, against DeepSpeed's script and against the floor.

    python benchmarks/consolidation.py [--million 100 --million 500] [--repeats 3] [--folder DIR]

The checkpoints are of ZeRO 2 with two ranks, with Adam's states, 16 bytes a parameter, made without DeepSpeed in its
layout. The floor copies as many bytes as the result has, out of one of the shards into a new file, 4 MiB at a time, and
brings them to the disk, as our way does; DeepSpeed's script does not. Every way is a fresh process, and the ways take
turns. The time is that of the whole process. Compares the results bit for bit, and ends with 1 when a goal is missed.
Needs 20 bytes a parameter on the disk and 30 of memory.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from zero_shards import save_zero_2  # noqa: E402

MEMORY_GOAL_MB = 100
FLOOR_GOAL = 1.5
SPEED_GOAL = 3.0
LIMIT_MB = 200
# About the size of a layer's weight in a policy of that many parameters.
ROWS, COLUMNS = 2048, 1024

FLOOR, OURS, LIMITED, THEIRS = "floor", "stream", f"stream in {LIMIT_MB} MB", "zero_to_fp32.py"

# Runs a module as `python -m` does and prints the most memory that the process had; its parent's would count elsewhere.
WATCHED = """
import re, resource, runpy, sys
limit, sys.argv = int(sys.argv[1]) * 2**20, sys.argv[2:]
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""
COPIED = """
import os, re, sys
source, target = os.open(sys.argv[1], os.O_RDONLY), os.open(sys.argv[2], os.O_WRONLY | os.O_CREAT)
buffer, left = memoryview(bytearray(4 * 2**20)), int(sys.argv[3])
while left:
    count = os.readv(source, [buffer[:left]])
    os.write(target, buffer[:count])
    left -= count
os.fsync(target)
print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
"""


@dataclass
class Way:
    """One way to consolidate.

    Attributes:
        command: What stands behind `python`.
        seconds: Of each run.
        peaks_mb: Of each run.
    """

    command: list[str]
    seconds: list[float] = field(default_factory=list)
    peaks_mb: list[float] = field(default_factory=list)


def make(checkpoint: Path, million: int) -> int:
    """Makes a checkpoint; returns its number of parameters."""
    import torch

    count = million * 10**6 // (ROWS * COLUMNS)
    generator = torch.Generator().manual_seed(0)
    weights = {f"layers.{n}.weight": torch.randn(ROWS, COLUMNS, generator=generator) for n in range(count)}
    save_zero_2(checkpoint, weights)
    return count * ROWS * COLUMNS


def ways_of(folder: Path, checkpoint: Path, parameters: int) -> dict[str, Way]:
    """The ways, in the order of their turns; each writes into `folder/out`."""
    out = str(folder / "out")
    ours = ["tracking.consolidate", str(checkpoint), out]
    theirs = ["deepspeed.utils.zero_to_fp32", str(folder), out, "--tag", checkpoint.name, "--safe_serialization"]
    shard = str(checkpoint / "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return {
        FLOOR: Way(["-c", COPIED, shard, str(folder / "out" / "copy"), str(4 * parameters)]),
        OURS: Way(["-c", WATCHED, "0", *ours]),
        LIMITED: Way(["-c", WATCHED, str(LIMIT_MB), *ours]),
        THEIRS: Way(["-c", WATCHED, "0", *theirs, "--max_shard_size", "1000GB"]),
    }


def play(way: Way, out: Path) -> None:
    """Runs a way once into an empty folder."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    # What the way before has left to write would fall on this one.
    os.sync()
    start = time.perf_counter()
    done = subprocess.run([sys.executable, *way.command], cwd=ROOT, capture_output=True, text=True, check=False)
    way.seconds.append(time.perf_counter() - start)
    if done.returncode:
        sys.exit(f"{way.command} failed:\n{done.stdout}{done.stderr}")
    way.peaks_mb.append(int(done.stdout.split()[-1]) * 1024 / 1e6)


def same_files(left: Path, right: Path) -> bool:
    """Whether two files hold the same tensors, bit for bit."""
    import torch
    from safetensors import safe_open

    with safe_open(left, "pt") as one, safe_open(right, "pt") as other:
        names = sorted(one.keys())
        return names == sorted(other.keys()) and all(
            torch.equal(one.get_tensor(name), other.get_tensor(name)) for name in names
        )


def measure(folder: Path, million: int, repeats: int, table: Table) -> bool:
    """Plays all ways in turns and adds their lines; returns whether the goals are met."""
    checkpoint = folder / "step-1"
    parameters = make(checkpoint, million)
    ways = ways_of(folder, checkpoint, parameters)
    for _ in range(repeats):
        for name, way in ways.items():
            play(way, folder / "out")
            if name == LIMITED:
                (folder / "out" / "model.safetensors").replace(folder / "ours.safetensors")
    if not same_files(folder / "ours.safetensors", folder / "out" / "model.safetensors"):
        sys.exit("the results differ")
    median = {name: statistics.median(way.seconds) for name, way in ways.items()}
    for name, way in ways.items():
        table.add_row(
            f"{parameters / 1e6:.0f} M",
            name,
            f"{median[name]:.1f}",
            f"{min(way.seconds):.1f} to {max(way.seconds):.1f}",
            f"{max(way.peaks_mb):.0f}",
            f"{median[name] / median[FLOOR]:.2f}x",
            f"{median[THEIRS] / median[name]:.1f}x",
        )
    return (
        max(ways[OURS].peaks_mb + ways[LIMITED].peaks_mb) < MEMORY_GOAL_MB
        and median[OURS] <= FLOOR_GOAL * median[FLOOR]
        and median[THEIRS] >= SPEED_GOAL * median[OURS]
    )


def main(
    million: Annotated[list[int] | None, typer.Option(help="Parameters, in millions; 100 and 500 by default.")] = None,
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    folder: Annotated[Path | None, typer.Option(help="Where the checkpoints are made.")] = None,
) -> None:
    """Prints the table and ends with 1 when a goal is missed."""
    headings = (
        "parameters",
        "way",
        "seconds",
        "least to most",
        "peak MB",
        "against the floor",
        "faster than DeepSpeed's",
    )
    table = Table(*headings, box=MARKDOWN)
    met = []
    for size in million or [100, 500]:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            met.append(measure(Path(temporary), size, repeats, table))
    Console(width=120).print(table)
    print(
        f"goals (under {MEMORY_GOAL_MB} MB, within {FLOOR_GOAL}x of the floor, {SPEED_GOAL:g}x DeepSpeed's speed):"
        f" {'met' if all(met) else 'missed'}"
    )
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    typer.run(main)
