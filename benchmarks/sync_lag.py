"""How long a row that a job writes takes to be on W&B's server, through the daemon at its default interval.

    python benchmarks/sync_lag.py [--runs 10] [--rows 240] [--pause 0.5]

Jobs of `ExperimentTracker` in offline mode write rows, and `python -m tracking.sync daemon` pushes them to a W&B on the
loopback. A row's lag runs from its `time` in the journal to the request in which it arrived. Every process has W&B's
defaults. Ends with 1 when a row took two intervals or longer, or when rows are missing.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
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

from tracking import read_journal  # noqa: E402
from tracking.identity import read_identity  # noqa: E402

from sync_site import PROJECT, Site, tree  # noqa: E402
from wandb_server import WandbServer  # noqa: E402
from wandb_server.client import WandbClient  # noqa: E402

INTERVAL_S = 30.0
SAMPLE_S = 0.5


def arrivals(site: Site, name: str) -> dict[int, float]:
    """When each line of a run's history arrived first."""
    identity = read_identity(site.root / name)
    assert identity is not None
    arrived: dict[int, float] = {}
    for upload in site.server.run(site.server.entity, PROJECT, identity.run_id).history_file.uploads:
        for line in range(upload.offset, upload.offset + upload.count):
            arrived.setdefault(line, upload.time)
    return arrived


def lags(site: Site, name: str) -> list[float]:
    """The lag of every row of a run, s.

    Raises:
        SystemExit: The server does not have all of them.
    """
    rows, arrived = read_journal(site.root / name).rows, arrivals(site, name)
    missing = [row.n for row in rows if row.n not in arrived]
    if missing:
        sys.exit(f"{name}: {len(missing)} of {len(rows)} rows have not arrived")
    return [arrived[row.n] - row.time for row in rows]


def cpu(processes: list[psutil.Process]) -> float:
    """CPU seconds of these processes so far, with what they have waited for."""
    spent = 0.0
    for process in processes:
        try:
            spent += sum(process.cpu_times()[:4])
        except psutil.NoSuchProcess:
            continue
    return spent


def watch(pid: int, until: float) -> tuple[float, float]:
    """Follows the daemon until a time (time.monotonic): its share of a core, %, and its greatest memory, MB."""
    began, before, greatest, spent = time.monotonic(), cpu(tree(pid)), 0.0, 0.0
    while time.monotonic() < until:
        time.sleep(SAMPLE_S)
        processes = tree(pid)
        # A pusher that has left is counted by its parent.
        spent = max(spent, cpu(processes) - before)
        try:
            greatest = max(greatest, sum(process.memory_info().rss for process in processes) / 1e6)
        except psutil.NoSuchProcess:
            continue
    return spent / (time.monotonic() - began) * 100, greatest


def main(
    runs: Annotated[int, typer.Option(help="Runs that are being written at once.", min=1)] = 10,
    rows: Annotated[int, typer.Option(help="Rows of each.", min=10)] = 240,
    pause: Annotated[float, typer.Option(help="Seconds between two rows.", min=0.0)] = 0.5,
) -> None:
    """Measures and prints the table."""
    with tempfile.TemporaryDirectory(prefix="sync-lag-") as temporary, WandbServer() as server:
        folder = Path(temporary)
        client = WandbClient(server, folder / "client")
        with Site(folder / "site", server, client, variables={}) as site:
            jobs = [site.job(f"run-{number:02d}") for number in range(runs)]
            daemon = site.daemon(interval=None)
            # Jobs do not begin at the same moment.
            for job in jobs:
                job.say("log", 1, rows, pause)
                time.sleep(pause / runs)
            share, greatest = watch(daemon.pid, time.monotonic() + rows * pause)
            for job in jobs:
                job.answered("log")
                job.finish()
            site.wait_whole(timeout=6 * INTERVAL_S)
            found = {name: lags(site, name) for name in site.names()}
    together = [lag for run in found.values() for lag in run]
    worst = [max(run) for run in found.values()]
    table = Table("lag, s", "figure", "goal", box=MARKDOWN, title=f"{runs} runs, {len(together)} rows")
    table.add_row("median", f"{statistics.median(together):.1f}", "")
    table.add_row("95 of 100 rows below", f"{statistics.quantiles(together, n=20)[-1]:.1f}", "")
    table.add_row("worst", f"{max(worst):.1f}", f"< {2 * INTERVAL_S:g}")
    table.add_row("worst of each run, smallest", f"{min(worst):.1f}", "")
    table.add_row("daemon and pusher, % of a core", f"{share:.1f}", "")
    table.add_row("daemon and pusher, greatest memory, MB (RSS)", f"{greatest:.0f}", "")
    Console(width=120).print(table)
    sys.exit(int(max(worst) >= 2 * INTERVAL_S))


if __name__ == "__main__":
    typer.run(main)
