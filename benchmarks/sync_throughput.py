"""Pushing finished runs: `python -m tracking.sync once` against W&B's own two ways, on one server in one run.

    python benchmarks/sync_throughput.py [--repeats 3] [--many 200] [--long 100000]

The runs are the same: rows of ten scalars in journals, and in offline folders that W&B's client wrote. The ways:

- `wandb sync FOLDER` in one process after the other, which is what the documentation of W&B says;
- `wandb beta sync -n N FOLDER...`, one process for all of them, N being the number of runs, 20 at most;
- `python -m tracking.sync once --root ROOT`.

Each time is a project of its own on the server, whose rows are counted afterwards. Wall time runs from the start of the
first process to the end of the last; memory is the greatest sum of RSS over the processes that are there at once, W&B's
service included. Ways take turns. Ends with 1 when a goal is missed.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import psutil
import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from tracking.identity import claim_identity  # noqa: E402
from tracking.journal import Journal, JournalWriter  # noqa: E402

from sync_site import kill, tree  # noqa: E402
from wandb_server import WandbServer  # noqa: E402
from wandb_server.client import WandbClient  # noqa: E402

SAMPLE_S = 0.05
BATCH = 20
IDLE_S = 65.0
SCALARS = [f"metric/{number}" for number in range(10)]
OURS, ONE_BY_ONE, BATCHED = "tracking.sync once", "wandb sync, one by one", "wandb beta sync"

_OFFLINE = """
import sys, wandb
runs, rows = int(sys.argv[1]), int(sys.argv[2])
answer = []
for number in range(runs):
    settings = wandb.Settings(console="off", silent=True)
    run = wandb.init(project="p", id=f"run-{number:03d}", mode="offline", reinit="create_new", settings=settings)
    for row in range(rows):
        run.log({f"metric/{one}": row / (one + 1) for one in range(10)} | {"train/step": row + 1})
    run.finish()
    answer.append(run.settings.sync_dir)
"""


@dataclass(frozen=True)
class Work:
    """Runs to be pushed.

    Attributes:
        runs: How many.
        rows: Rows of each.
    """

    runs: int
    rows: int

    @property
    def title(self) -> str:
        """For the table."""
        return f"{self.runs} run{'s' if self.runs > 1 else ''} of {self.rows} rows"


@dataclass
class Line:
    """A line of the table.

    Attributes:
        work: What was pushed.
        way: How.
        seconds: Wall times.
        memory: The greatest memory of each time, MB.
        arrived: The least number of rows that were there afterwards.
    """

    work: Work
    way: str
    seconds: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    arrived: int | None = None

    @property
    def median(self) -> float:
        """Of the wall times."""
        return statistics.median(self.seconds)


@dataclass
class Bench:
    """Where the ways are measured.

    Attributes:
        folder: Everything is written below it.
        server: The one server.
        client: Its processes' environment.
    """

    folder: Path
    server: WandbServer
    client: WandbClient
    projects: int = 0

    def measure(self, line: Line, folders: list[Path]) -> None:
        """Pushes once more in the line's way, into a new project."""
        self.projects += 1
        project = f"project-{self.projects}"
        batch = ["--no-skip-synced", f"-n{min(len(folders), BATCH)}"]
        ways: dict[str, Callable[[], list[list[str]]]] = {
            OURS: lambda: [[*_python("tracking.sync"), "once", f"--root={self.journals(line.work, project)}"]],
            ONE_BY_ONE: lambda: [[*_python("wandb"), "sync", "-p", project, str(folder)] for folder in folders],
            BATCHED: lambda: [[*_python("wandb"), "beta", "sync", *batch, f"--project={project}", *map(str, folders)]],
        }
        commands = ways[line.way]()
        began, memory = time.perf_counter(), 0.0
        for command in commands:
            memory = max(memory, self._run(command))
        line.seconds.append(time.perf_counter() - began)
        line.memory.append(memory)
        rows = sum(len(run.history) for run in self.server.runs(self.server.entity, project))
        line.arrived = rows if line.arrived is None else min(line.arrived, rows)

    def offline(self, work: Work) -> list[Path]:
        """Writes the runs into W&B's offline folders."""
        client = WandbClient(self.server, self.folder / f"offline-{work.runs}-{work.rows}")
        made = client.python(_OFFLINE, str(work.runs), str(work.rows), timeout=1800)
        return [Path(folder) for folder in made]

    def journals(self, work: Work, project: str) -> Path:
        """Writes the runs into journals, as the tracker does."""
        root = self.folder / project
        for number in range(work.runs):
            run_dir = root / f"run-{number:03d}"
            run_dir.mkdir(parents=True)
            identity = claim_identity(run_dir, f"run-{number:03d}", run_dir.name, project, None)
            writer = JournalWriter.begin(run_dir, identity.run_id, Journal())
            for row in range(work.rows):
                writer.row(row + 1, {name: row / (one + 1) for one, name in enumerate(SCALARS)})
            writer.end("finished", 0)
            writer.close()
        return root

    def idle(self, root: Path) -> tuple[float, float, int]:
        """The daemon beside runs that are on the server: memory, MB, CPU, s an hour, and its processes."""
        command = [*_python("tracking.sync"), "daemon", f"--root={root}"]
        with (self.folder / "daemon.log").open("wb") as log:
            daemon = subprocess.Popen(command, cwd=self.folder, env=self.environment(), stdout=log, stderr=log)
        try:
            time.sleep(IDLE_S)
            processes = tree(daemon.pid)
            before, began = sum(processes[0].cpu_times()[:2]), time.perf_counter()
            time.sleep(IDLE_S)
            spent = (sum(processes[0].cpu_times()[:2]) - before) / (time.perf_counter() - began)
            return processes[0].memory_info().rss / 1e6, spent * 3600, len(tree(daemon.pid))
        finally:
            kill(tree(daemon.pid))
            daemon.wait()

    def environment(self) -> dict[str, str]:
        """Of every process."""
        return self.client.environment() | {"PYTHONPATH": str(ROOT)}

    def _run(self, command: list[str]) -> float:
        greatest = 0.0
        self.client.work.mkdir(parents=True, exist_ok=True)
        with (self.folder / "ways.log").open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.client.work, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
            while process.poll() is None:
                greatest = max(greatest, memory_of(tree(process.pid)))
                time.sleep(SAMPLE_S)
        return greatest


def memory_of(processes: list[psutil.Process]) -> float:
    """The sum of their RSS, MB."""
    together = 0
    for process in processes:
        try:
            together += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return together / 1e6


def _python(module: str) -> list[str]:
    return [sys.executable, "-m", module]


def missed(lines: list[Line], idle: float) -> list[str]:
    """The goals that were not reached, in words."""
    found = [f"{line.way}, {line.work.title}: {line.arrived} rows there" for line in lines
             if line.way == OURS and line.arrived != line.work.runs * line.work.rows]  # fmt: skip
    for ours in (line for line in lines if line.way == OURS):
        others = {line.way: line.median for line in lines if line.work == ours.work}
        if ours.work.runs > 1 and others[ONE_BY_ONE] < 8 * ours.median:
            found.append(f"{ours.work.title}: less than 8 times as fast as {ONE_BY_ONE}")
        if ours.work.runs == 20 and ours.median > 2 * others[BATCHED]:
            found.append(f"{ours.work.title}: more than twice the time of {BATCHED}")
        if max(ours.memory) >= 250:
            found.append(f"{ours.work.title}: {max(ours.memory):.0f} MB")
    return found + ([f"idle daemon: {idle:.0f} MB"] if idle >= 30 else [])


def cells(line: Line, lines: list[Line]) -> list[str]:
    """A line as the table shows it."""
    others = {other.way: other.median for other in lines if other.work == line.work}
    ends = f" ({min(line.seconds):.1f} to {max(line.seconds):.1f})" if len(line.seconds) > 1 else ""
    ratios = [f"{others[way] / line.median:.1f}x" for way in (ONE_BY_ONE, BATCHED)]
    arrived = f"{line.arrived} of {line.work.runs * line.work.rows}"
    return [line.work.title, line.way, f"{line.median:.1f}{ends}", *ratios, f"{max(line.memory):.0f}", arrived]


def main(
    repeats: Annotated[int, typer.Option(help="Times of each way; the two large works are done once.", min=1)] = 3,
    many: Annotated[int, typer.Option(help="Runs of the second work.", min=1)] = 200,
    long: Annotated[int, typer.Option(help="Rows of the one long run.", min=1)] = 100_000,
) -> None:
    """Measures everything and prints the tables."""
    works = {Work(20, 100): repeats, Work(many, 100): 1, Work(1, long): 1}
    lines: list[Line] = []
    with tempfile.TemporaryDirectory(prefix="sync-throughput-") as temporary, WandbServer() as server:
        bench = Bench(Path(temporary), server, WandbClient(server, Path(temporary) / "client"))
        for work, times in works.items():
            folders = bench.offline(work)
            ways = [Line(work, way) for way in (ONE_BY_ONE, BATCHED, OURS)]
            for _ in range(times):
                for line in ways:
                    print(f"{work.title}, {line.way} …", file=sys.stderr, flush=True)
                    bench.measure(line, folders)
            lines += ways
        root = bench.journals(Work(many, 1), "idle")
        idle, spent, processes = bench.idle(root)
    columns = ["pushed", "way", "s", f"against {ONE_BY_ONE}", f"against {BATCHED}", "greatest memory, MB", "rows there"]
    table = Table(*columns, box=MARKDOWN)
    for line in lines:
        table.add_row(*cells(line, lines))
    Console(width=170).print(table)
    print(
        f"Idle daemon beside {many} runs: {idle:.0f} MB (RSS), {spent:.1f} s of CPU an hour, {processes} process(es)."
    )
    for words in (found := missed(lines, idle)):
        print(f"missed: {words}")
    sys.exit(int(bool(found)))


if __name__ == "__main__":
    typer.run(main)
