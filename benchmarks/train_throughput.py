"""Samples a second of the stage `bc` against LeRobot's own `lerobot-train`, and of ZeRO 1, 2 and 3 on two ranks.

    python benchmarks/train_throughput.py [--steps 100] [--batch-size 64] [--repeats 3] [--device cuda]

Every way trains the same policy on the same demonstrations with the same batch, DataLoader workers and threads a
process. The ways take turns, so that a busy moment of the machine falls on all of them. Only the steps between the
first and the last logged row count: no start-up, no checkpoint. With `--device cuda` all of them compute in bf16
autocast, and the table shows the peak memory of a GPU. Ends with 1 when `bc` on one rank is slower than LeRobot.
"""

from __future__ import annotations

import json
import os
import re
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
import yaml
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gilbreth_phase0.policy_kinds import settings_of  # noqa: E402

REPO_ID = "lift"
REFERENCE = "lerobot-train"
LOG_INTERVAL = 10
LEARNING_RATE = 1e-3

# A row of lerobot-train. Its own clock has whole seconds only, so the moment counts at which the line comes out.
LEROBOT_ROW = re.compile(rb"step:\S+ smpl:")
GPU_PEAK = re.compile(rb"peak GPU memory: (\d+) bytes")

# Runs a module as `python -m` does; a process knows its own GPU memory only, and only while it lives.
WITH_GPU_PEAK = """
import atexit, runpy, sys, torch
atexit.register(lambda: print("peak GPU memory:", torch.cuda.max_memory_allocated(), "bytes", flush=True))
sys.argv = sys.argv[1:]
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


@dataclass(frozen=True)
class Setting:
    """What all ways have in common.

    Attributes:
        folder: Everything is written below it.
        data: Folder of the datasets.
        frames: Samples of the dataset.
        policy: Fields of LeRobot's configuration of ACT.
        steps: Optimizer steps of a run.
        batch_size: Samples of a step, over all ranks.
        num_workers: DataLoader processes a rank.
        threads: PyTorch's threads a rank.
        device: `cpu` or `cuda`.
    """

    folder: Path
    data: Path
    frames: int
    policy: dict[str, Any]
    steps: int
    batch_size: int
    num_workers: int
    threads: int
    device: str

    def python(self, module: str) -> list[str]:
        """The command that runs a module and, on a GPU, tells its peak memory at the end."""
        return [sys.executable, "-m", module] if self.device == "cpu" else [sys.executable, "-c", WITH_GPU_PEAK, module]

    def environment(self) -> dict[str, str]:
        """The environment of every process."""
        given = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SUBMITIT_"))}
        own = {"OMP_NUM_THREADS": str(self.threads), "HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
        # `bc` publishes its model at the end.
        own["GILBRETH_STORE"] = str(self.folder / "models")
        autocast = {"ACCELERATE_MIXED_PRECISION": "bf16"} if self.device == "cuda" else {}
        return {**given, **own, **autocast}


@dataclass(frozen=True)
class Run:
    """One run of one way.

    Attributes:
        samples_per_second: Over all ranks.
        rss_mb: Greatest resident memory of a rank.
        gpu_mb: Greatest GPU memory of a rank, None on a CPU.
    """

    samples_per_second: float
    rss_mb: float
    gpu_mb: float | None


@dataclass
class Way:
    """A row of the table.

    Attributes:
        name: What is run.
        ranks: Processes that train together.
        zero_stage: DeepSpeed's, None for LeRobot.
        runs: One a round.
    """

    name: str
    ranks: int
    zero_stage: int | None
    runs: list[Run] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Samples a second, the median of all rounds."""
        return statistics.median(run.samples_per_second for run in self.runs)


@dataclass(frozen=True)
class Ended:
    """What the processes of a run left.

    Attributes:
        row_times: When rank 0 printed its rows, s (only LeRobot's are recognised).
        rss_mb: Greatest resident memory of a rank.
        gpu_mb: Greatest GPU memory of a rank, None on a CPU.
    """

    row_times: list[float]
    rss_mb: float
    gpu_mb: float | None


def lerobot_command(setting: Setting, output: Path) -> list[str]:
    """The command line of `lerobot-train` (its module, so that a GPU's peak can be told) for the same training."""
    # LeRobot's default leaves the object state as it is; `bc` normalises it.
    normalisation = {"STATE": "MEAN_STD", "ENV": "MEAN_STD", "ACTION": "MEAN_STD"}
    policy = {**setting.policy, "normalization_mapping": normalisation, "pretrained_backbone_weights": None}
    return [
        *setting.python("lerobot.scripts.lerobot_train"),
        f"--dataset.repo_id={REPO_ID}",
        f"--dataset.root={setting.data / REPO_ID}",
        "--policy.type=act",
        f"--policy.device={setting.device}",
        "--policy.push_to_hub=false",
        *(
            f"--policy.{name}={value if isinstance(value, str) else json.dumps(value)}"
            for name, value in policy.items()
        ),
        f"--policy.optimizer_lr={LEARNING_RATE}",
        f"--output_dir={output}",
        f"--batch_size={setting.batch_size}",
        f"--num_workers={setting.num_workers}",
        f"--steps={setting.steps}",
        f"--log_freq={LOG_INTERVAL}",
        "--eval_freq=0",
        "--save_checkpoint=false",
        "--wandb.enable=false",
    ]


def bc_command(setting: Setting, run_dir: Path, zero_stage: int) -> list[str]:
    """The command line of one rank of the stage `bc`."""
    return [
        *setting.python("gilbreth_phase0.train_policy"),
        *("--run-dir", str(run_dir)),
        *("--repo-ids", REPO_ID),
        *("--root", str(setting.data)),
        *("--policy-settings", json.dumps(setting.policy)),
        *("--batch-size", str(setting.batch_size)),
        *("--num-workers", str(setting.num_workers)),
        *("--training-steps", str(setting.steps)),
        *("--lr", str(LEARNING_RATE)),
        *("--log-interval", str(LOG_INTERVAL)),
        *("--save-freq", str(setting.steps)),
        *("--zero-stage", str(zero_stage)),
        *("--device", setting.device),
        *("--eval-episodes", "0"),
    ]


def rendezvous(ranks: int) -> list[dict[str, str]]:
    """The variables by which the ranks of one run find each other, as torchrun sets them; none for a single one."""
    if ranks == 1:
        return [{}]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    return [
        {
            "RANK": str(rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
        for rank in range(ranks)
    ]


@contextmanager
def started(
    command: list[str], environments: list[dict[str, str]], folder: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Starts a process for each environment; those that still run at the end are killed.

    Rank 0's output goes to a pipe, that of the others to a file of the folder each.
    """
    processes = []
    try:
        for rank, environment in enumerate(environments):
            with (folder / f"rank-{rank}.log").open("wb") as log:
                output = log if rank else subprocess.PIPE
                processes.append(
                    subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
                )
        yield processes
    finally:
        for process in processes:
            if process.returncode is None:
                process.kill()
                process.wait()


def run_to_end(command: list[str], ranks: int, setting: Setting, folder: Path) -> Ended:
    """Runs all ranks of a command to their end.

    Raises:
        SystemExit: A rank failed; its output goes before.
    """
    environments = [{**setting.environment(), **variables} for variables in rendezvous(ranks)]
    logs = [folder / f"rank-{rank}.log" for rank in range(ranks)]
    row_times, rss_mb, failed = [], 0.0, False
    with started(command, environments, folder) as processes, logs[0].open("wb") as log:
        assert processes[0].stdout is not None
        for line in processes[0].stdout:
            if LEROBOT_ROW.search(line):
                row_times.append(time.time())
            log.write(line)
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            failed |= process.returncode != 0
            rss_mb = max(rss_mb, usage.ru_maxrss / 1024)
    texts = [path.read_bytes() for path in logs]
    if failed:
        sys.exit(b"\n".join(texts).decode(errors="replace") + f"\nfailed: {' '.join(command)}")
    peaks = [int(found[1]) / 2**20 for text in texts if (found := GPU_PEAK.search(text))]
    return Ended(row_times, rss_mb, max(peaks, default=None))


def journal_times(run_dir: Path) -> list[float]:
    """When each row of the training was logged, s."""
    lines = (json.loads(line) for path in sorted(run_dir.glob("journal-*.jsonl")) for line in path.open())
    return [line["time"] for line in lines if line["kind"] == "row" and "loss/total" in line["data"]]


def lerobot_samples(step: int, setting: Setting) -> int:
    """Samples that lerobot-train has seen after a step: the last batch of its epochs is a smaller one."""
    epochs, rest = divmod(step, -(-setting.frames // setting.batch_size))
    return epochs * setting.frames + rest * setting.batch_size


def measure(way: Way, setting: Setting, folder: Path) -> Run:
    """Runs a way once.

    Raises:
        SystemExit: It failed, or logged other rows than it should have.
    """
    folder.mkdir()
    first, last = LOG_INTERVAL, setting.steps // LOG_INTERVAL * LOG_INTERVAL
    if way.zero_stage is None:
        ended = run_to_end(lerobot_command(setting, folder / "output"), way.ranks, setting, folder)
        times = ended.row_times
        samples = lerobot_samples(last, setting) - lerobot_samples(first, setting)
    else:
        run_dir = folder / "run"
        ended = run_to_end(bc_command(setting, run_dir, way.zero_stage), way.ranks, setting, folder)
        times = journal_times(run_dir)
        samples = (last - first) * setting.batch_size
    if len(times) != last // LOG_INTERVAL:
        sys.exit(f"{way.name}: {len(times)} rows logged, expected {last // LOG_INTERVAL}")
    return Run(samples / (times[-1] - times[0]), ended.rss_mb, ended.gpu_mb)


def ways(device: str) -> list[Way]:
    """The rows of the table. NCCL wants a GPU a rank: where there is one only, all stages run on one rank."""
    if device == "cuda":
        import torch

        if torch.cuda.device_count() == 1:
            return [Way(REFERENCE, 1, None), *(Way(f"bc, ZeRO {stage}", 1, stage) for stage in range(4))]
    one_rank = [Way(REFERENCE, 1, None), *(Way(f"bc, ZeRO {stage}", 1, stage) for stage in (0, 1))]
    return [*one_rank, *(Way(f"bc, ZeRO {stage}", 2, stage) for stage in (1, 2, 3))]


def table(rows: list[Way], title: str) -> Table:
    """The medians; the reference is the first row."""
    on_gpu = rows[0].runs[0].gpu_mb is not None
    columns = ["way", "ranks", "samples/s", "slowest to fastest", f"against {REFERENCE}", "peak RSS of a rank, MB"]
    result = Table(*columns, *(["peak GPU memory of a rank, MB"] if on_gpu else []), title=title, box=MARKDOWN)
    for way in rows:
        rates = [run.samples_per_second for run in way.runs]
        cells = [way.name, str(way.ranks), f"{way.rate:.0f}", f"{min(rates):.0f} to {max(rates):.0f}"]
        cells += [f"{way.rate / rows[0].rate:.2f}x", f"{max(run.rss_mb for run in way.runs):.0f}"]
        if on_gpu:
            cells.append(f"{max(run.gpu_mb or 0.0 for run in way.runs):.0f}")
        result.add_row(*cells)
    return result


def stage_policy(settings: str | None) -> dict[str, Any]:
    """The policy that the stage `bc` has by default, or with other fields in the place of its `policy_settings`."""
    stage = yaml.safe_load((ROOT / "launch" / "stages" / "bc.yaml").read_text())["bc"]
    chunk = {name: stage[name] for name in ("n_obs_steps", "action_chunk_size", "n_action_steps")}
    further = stage["policy_settings"] if settings is None else json.loads(settings)
    return settings_of(stage["policy"], chunk | further)


def collect(data: Path, episodes: int) -> int:
    """Collects the demonstrations, unless they are there already, and returns the number of their frames."""
    command = [sys.executable, "-m", "gilbreth_phase0.collect"]
    arguments = ["--repo-id", REPO_ID, "--root", str(data), "--episodes", str(episodes)]
    subprocess.run([*command, *arguments], cwd=ROOT, check=True)
    return int(json.loads((data / REPO_ID / "meta" / "info.json").read_text())["total_frames"])


def main(  # noqa: PLR0917 - typer makes flags of them
    steps: Annotated[int, typer.Option(help="Optimizer steps of a run.", min=3 * LOG_INTERVAL)] = 100,
    batch_size: Annotated[int, typer.Option(help="Samples of a step, over all ranks.", min=2)] = 64,
    repeats: Annotated[int, typer.Option(help="Runs of each way.", min=1)] = 3,
    episodes: Annotated[int, typer.Option(help="Demonstrations of the dataset.", min=1)] = 30,
    num_workers: Annotated[int, typer.Option(help="DataLoader processes a rank.", min=0)] = 0,
    threads: Annotated[int, typer.Option(help="PyTorch's threads a rank.", min=1)] = 1,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the policy is trained.")] = "cpu",
    policy_settings: Annotated[
        str | None, typer.Option(help="Fields of LeRobot's ACTConfig, as JSON; without it the stage's own.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder that keeps the dataset; without it a temporary one.")
    ] = None,
) -> None:
    """Times the ways in turns and prints the table."""
    policy = stage_policy(policy_settings)
    rows = ways(device)
    with tempfile.TemporaryDirectory(prefix="train-throughput-") as temporary:
        folder = Path(temporary)
        data = (data or folder / "data").resolve()
        frames = collect(data, episodes)
        setting = Setting(folder, data, frames, policy, steps, batch_size, num_workers, threads, device)
        for repeat in range(repeats):
            for number, way in enumerate(rows):
                run = measure(way, setting, folder / f"{repeat}-{number}")
                way.runs.append(run)
                print(
                    f"{repeat + 1}/{repeats} {way.name}, {way.ranks} rank(s): {run.samples_per_second:.0f}/s",
                    flush=True,
                )
    title = f"{steps} steps of {batch_size} samples on {device}, medians of {repeats} runs in turns"
    Console(width=140).print(table(rows, title))
    sys.exit(int(any(way.rate < rows[0].rate for way in rows if way.ranks == 1)))


if __name__ == "__main__":
    typer.run(main)
