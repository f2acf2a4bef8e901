"""What `ExperimentTracker` costs a training process, against `wandb.log` of the same scalars, and what its child costs.

    python benchmarks/tracker_overhead.py [--blocks 20] [--rounds 5] [--rows 1000] [--device cuda]

Both ways are offline and take turns, so that a busy moment of the machine falls on both; `wandb.log` runs with W&B's
defaults. Gradient norm and learning rate are at hand: reading them from a model is the model's own cost. Prints
medians, and ends with 1 when a goal is missed. With `--device cuda` the losses are CUDA tensors on the steps that are
not logged, and a synchronisation there ends the benchmark. Takes about a minute.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal

import psutil
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tracking import ExperimentTracker, read_journal  # noqa: E402 - found in the line above

LOG_INTERVAL = 10
GPU_INTERVAL = 50
STEP_S = 0.020
PAUSE_S = 0.002
# The child looks into the journal once a second.
SETTLE_S = 2.5
START_LIMIT_S = 30.0
NEVER = 10**9

OPTIMIZER = SimpleNamespace(param_groups=[{"lr": 1e-3}])
ENGINE = SimpleNamespace(get_global_grad_norm=lambda: 1.5)
SCALARS = {
    "loss/total": 0.5,
    "loss/ar": 0.2,
    "loss/fm": 0.3,
    "train/lr": 1e-3,
    "train/grad_norm": 1.5,
    "perf/steps_per_sec": 50.0,
    "perf/samples_per_sec": 3200.0,
}

# Prints how long a statement takes in a fresh interpreter, s.
TIMED_IMPORT = "import time; start = time.perf_counter(); {}; print(time.perf_counter() - start)"


@dataclass
class Line:
    """A line of the table.

    Attributes:
        name: What is measured, with its unit.
        goal: What the ratio must stay under, or the tracker's own figure where there is nothing to compare with.
        ours: The tracker's figures.
        theirs: W&B's.
    """

    name: str
    goal: float | None = None
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)

    @property
    def ratio(self) -> float | None:
        """The tracker's median to W&B's."""
        return statistics.median(self.ours) / statistics.median(self.theirs) if self.theirs else None

    @property
    def missed(self) -> bool:
        """Whether there is a goal and the figure is not under it."""
        figure = statistics.median(self.ours) if self.ratio is None else self.ratio
        return self.goal is not None and figure >= self.goal

    def cells(self) -> list[str]:
        """The line as the table shows it."""
        goal = "" if self.goal is None else f"< {self.goal:g}{'x' if self.theirs else ''}"
        ratio = "" if self.ratio is None else f"{self.ratio:.2f}x"
        return [self.name, *_spread(self.ours), *_spread(self.theirs), ratio, goal]


def _spread(figures: list[float]) -> tuple[str, str]:
    if not figures:
        return "", ""
    ends = f"{min(figures):.3g} to {max(figures):.3g}" if len(figures) > 1 else ""
    return f"{statistics.median(figures):.3g}", ends


@contextmanager
def tracked(run_dir: Path, gpu_stats_interval: int = NEVER) -> Iterator[ExperimentTracker]:
    """A tracker whose child is at work."""
    with Path(os.devnull).open("w") as silent, redirect_stdout(silent):
        tracker = ExperimentTracker(
            tags=["benchmark"],
            mode="offline",
            log_interval=LOG_INTERVAL,
            gpu_stats_interval=gpu_stats_interval,
            run_dir=run_dir,
        )
        deadline = time.monotonic() + START_LIMIT_S
        while not (run_dir / "sync.json").exists():
            if time.monotonic() > deadline:
                sys.exit(f"the child was not at work after {START_LIMIT_S:g} s: {run_dir / 'sync-child.log'}")
            time.sleep(0.05)
        try:
            yield tracker
        finally:
            tracker.finish()


@contextmanager
def wandb_run(folder: Path) -> Iterator[Any]:
    """A run of W&B's client with a service of its own."""
    import wandb

    run = wandb.init(project="benchmark", mode="offline", dir=folder, settings=wandb.Settings(silent=True))
    try:
        yield run
    finally:
        run.finish()
        wandb.teardown()


def track(tracker: ExperimentTracker, step: int, loss: Any = 0.5, ar: Any = 0.2, fm: Any = 0.3) -> None:
    """One step of a training loop with the tracker."""
    tracker.log_training_step(loss, step, 64, OPTIMIZER, ENGINE, ar=ar, fm=fm)


def log(run: Any, step: int) -> None:
    """The same with W&B's client."""
    run.log({**SCALARS, "train/step": step})


def microseconds(call: Callable[[int], None], steps: range, pause: float = 0.0) -> float:
    """Calls with each step and returns the mean time of a call, without the pauses between them."""
    if not pause:
        start = time.perf_counter()
        for step in steps:
            call(step)
        return (time.perf_counter() - start) / len(steps) * 1e6
    spent = 0.0
    for step in steps:
        time.sleep(pause)
        start = time.perf_counter()
        call(step)
        spent += time.perf_counter() - start
    return spent / len(steps) * 1e6


def unlogged_steps(folder: Path, blocks: int, device: str) -> Line:
    """Times steps that are not logged.

    Raises:
        SystemExit: The tracker waited for the GPU.
    """
    line = Line("step that is not logged, us", goal=5.0)
    # None of them is a multiple of the interval.
    steps = range(1, 1 + 2000 * LOG_INTERVAL, LOG_INTERVAL)
    with tracked(folder / "unlogged") as tracker, losses_on(device) as losses:
        line.ours = [microseconds(lambda step: track(tracker, step, *losses), steps) for _ in range(blocks)]
    return line


@contextmanager
def losses_on(device: str) -> Iterator[list[Any]]:
    """Losses; nobody may wait for those on a GPU.

    Raises:
        SystemExit: Somebody did.
    """
    values = [0.5, 0.2, 0.3]
    if device == "cpu":
        yield values
        return
    import torch

    losses = [torch.full((), value, device=device) for value in values]
    # Not "error": an exception could be caught on its way here.
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        losses[0].item()
        yield losses
    torch.cuda.set_sync_debug_mode("default")
    waits = sum("synchronizing CUDA operation" in str(warning.message) for warning in caught)
    if waits != 1:
        sys.exit(f"the GPU was waited for {waits} times, and once, before the first step, was expected")


def logged_steps(folder: Path, blocks: int) -> list[Line]:
    """Times logged steps against `wandb.log`, in turns in one process.

    Raises:
        SystemExit: The two do not log the same scalars.
    """
    tight = Line("logged step, one after the other, us", goal=0.3)
    paused = Line("logged step, 2 ms between, us", goal=0.3)
    with tracked(folder / "logged") as tracker, wandb_run(folder) as run:
        for number in range(blocks):
            steps = range((1 + 50 * number) * LOG_INTERVAL, (51 + 50 * number) * LOG_INTERVAL, LOG_INTERVAL)
            for line, pause in ((tight, 0.0), (paused, PAUSE_S)):
                line.ours.append(microseconds(lambda step: track(tracker, step), steps, pause))
                line.theirs.append(microseconds(lambda step: log(run, step), steps, pause))
    names = set(read_journal(folder / "logged").rows[-1].data)
    if names != set(SCALARS):
        sys.exit(f"the tracker logged {sorted(names)}, W&B {sorted(SCALARS)}")
    return [tight, paused]


def make_work(seconds: float) -> Callable[[], object]:
    """Makes something that keeps one core busy, for so long on a machine that does nothing else."""
    block = bytes(2**20)
    times = []
    for _ in range(200):
        start = time.perf_counter()
        hashlib.sha256(block)
        times.append(time.perf_counter() - start)
    data = bytes(round(len(block) * seconds / min(times)))
    return lambda: hashlib.sha256(data)


def whole_loop(folder: Path, rounds: int) -> list[Line]:
    """Runs ten steps of a loop with the tracker and ten with a disabled one, its child stopped meanwhile, in turns."""
    share = Line("calls in a loop of 20 ms steps, log_interval 10, % of its time", goal=1.0)
    difference = Line("training process: more CPU in that loop than with it disabled, %")
    cold = Line("step that is not logged in that loop, more than with it disabled, us")
    beside = Line("child beside that loop, % of a core")
    work = make_work(STEP_S)

    def loop(tracker: ExperimentTracker, first: int) -> tuple[float, float, list[float]]:
        calls, start, cpu = [], time.perf_counter(), time.process_time()
        for step in range(first, first + LOG_INTERVAL):
            work()
            before = time.perf_counter()
            track(tracker, step)
            calls.append(time.perf_counter() - before)
        return time.perf_counter() - start, time.process_time() - cpu, calls

    with tracked(folder / "loop", gpu_stats_interval=GPU_INTERVAL) as tracker:
        time.sleep(SETTLE_S)
        disabled = ExperimentTracker(enabled=False)
        children, children_cpu, whole = services(), service_cpu(), 0.0
        for number in range(rounds):
            spent = total = 0.0
            # Each round has one reading of the GPU's statistics.
            for first in range(1 + number * GPU_INTERVAL, 1 + (number + 1) * GPU_INTERVAL, LOG_INTERVAL):
                for child in children:
                    child.suspend()
                _, cpu_without, empty = loop(disabled, first)
                for child in children:
                    child.resume()
                seconds, cpu, calls = loop(tracker, first)
                spent, total = spent + sum(calls), total + seconds
                difference.ours.append((cpu / cpu_without - 1) * 100)
                cold.ours.append((statistics.median(calls[:-1]) - statistics.median(empty[:-1])) * 1e6)
            share.ours.append(spent / total * 100)
            whole += total
        beside.ours.append((service_cpu() - children_cpu) / whole * 100)
    return [share, difference, cold, beside]


def services() -> list[psutil.Process]:
    """Every process that this one has started, and theirs."""
    return list(psutil.Process().children(recursive=True))


def service_cpu() -> float:
    """CPU seconds of these processes so far."""
    return float(sum(sum(process.cpu_times()[:4]) for process in services()))


def service_pss() -> float:
    """Memory of these processes in MB; a page that several processes share is counted in parts."""
    return float(sum(process.memory_full_info().pss for process in services())) / 1e6


def service(folder: Path, rows: int) -> list[Line]:
    """Measures CPU time and memory of the training process and of those beside it, one way after the other."""
    lines = [
        Line("CPU to start, all processes, s"),
        Line("CPU for 1000 rows in the training process, s"),
        Line("CPU for 1000 rows beside it, s"),
        Line("private memory that the training process gains, MB"),
        Line("greatest memory (PSS) beside it, MB"),
    ]
    own = psutil.Process()

    def measure(way: AbstractContextManager[Any], call: Callable[[Any, int], None]) -> list[float]:
        own_start, private = time.process_time(), own.memory_full_info().uss
        with way as target:
            time.sleep(SETTLE_S)
            own_cpu, beside_cpu, peak = time.process_time(), service_cpu(), service_pss()
            to_start = own_cpu - own_start + beside_cpu
            spent = 0.0
            for row in range(1, rows + 1):
                time.sleep(PAUSE_S)
                before = time.process_time()
                call(target, row * LOG_INTERVAL)
                spent += time.process_time() - before
                if row % 100 == 0:
                    peak = max(peak, service_pss())
            time.sleep(SETTLE_S)
            beside = service_cpu() - beside_cpu
            peak = max(peak, service_pss())
            gained = (own.memory_full_info().uss - private) / 1e6
            return [to_start, spent * 1000 / rows, beside * 1000 / rows, gained, peak]

    # The tracker first: pages of W&B's client would be shared with this process once it has been imported here.
    ours = measure(tracked(folder / "service"), track)
    theirs = measure(wandb_run(folder), log)
    for line, our, their in zip(lines, ours, theirs, strict=True):
        line.ours, line.theirs = [our], [their]
    return lines


def imports(rounds: int) -> list[Line]:
    """Times the imports in fresh processes, in turns."""
    package, tracker = Line("import tracking, s", goal=1.2), Line("from tracking import ExperimentTracker, s", goal=1.2)

    def seconds(statement: str) -> float:
        command = [sys.executable, "-c", TIMED_IMPORT.format(statement)]
        return float(subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout)

    seconds("import tracking.tracker, wandb")  # the first run reads from disk and writes the byte code
    for _ in range(rounds):
        package.ours.append(seconds("import tracking"))
        tracker.ours.append(seconds("from tracking import ExperimentTracker"))
        package.theirs.append(seconds("import wandb"))
    tracker.theirs = package.theirs
    return [package, tracker]


def main(
    blocks: Annotated[int, typer.Option(help="Blocks of calls of each way.", min=3)] = 20,
    rounds: Annotated[int, typer.Option(help="Imports of each way, and 50 steps of a training loop.", min=3)] = 5,
    rows: Annotated[int, typer.Option(help="Rows for the figures of the processes beside.", min=100)] = 1000,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where the losses are.")] = "cpu",
) -> None:
    """Measures everything and prints the table."""
    os.chdir(ROOT)
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(prefix="tracker-overhead-") as temporary:
        folder = Path(temporary)
        lines = [
            *service(folder, rows),
            unlogged_steps(folder, blocks, device),
            *logged_steps(folder, blocks),
            *whole_loop(folder, rounds),
            *imports(rounds),
        ]
    title = f"losses on {device}; load {load:.1f} before, {os.getloadavg()[0]:.1f} after"
    columns = ["measured", "tracker", "lowest to highest", "wandb", "lowest to highest", "ratio", "goal"]
    table = Table(*columns, title=title, box=MARKDOWN)
    for line in lines:
        table.add_row(*line.cells())
    Console(width=170).print(table)
    for line in lines:
        if line.missed:
            print(f"missed: {line.name}")
    sys.exit(int(any(line.missed for line in lines)))


if __name__ == "__main__":
    typer.run(main)
