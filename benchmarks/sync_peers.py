"""The faults of pushing runs through `wandb sync`, `wandb beta sync` and wandb-osh, beside `python -m tracking.sync`.

    python benchmarks/sync_peers.py [--only PATTERN] [--ways WAY,WAY] [--outage 5]

A user without this project: a script that logs offline with a fixed `WANDB_RUN_ID` and `resume="allow"`, continues ten
steps back after a requeue, and the documented command on `./wandb/offline-run-*`. It is given a second time where it
ended with an error or had to be stopped; who is told of a success does not try again. For wandb-osh the script calls
its hook every 20 steps and at the end, and its daemon runs with its defaults. Every way has a server of its own.

wandb-osh 1.2.2 is no part of this environment: it is installed with `uv` into a temporary one, which borrows this one's
packages by a `.pth` file. A step is lost where the server has no row of it, and twice where it has more than one.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Callable
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

from wandb_user import COMMANDS, Scene, cell, install, is_below, osh  # noqa: E402

from support import wait_until  # noqa: E402
from sync_play import Outcome  # noqa: E402
from sync_site import kill, tree  # noqa: E402
from sync_trials import TRIALS, play  # noqa: E402
from wandb_server import WandbServer  # noqa: E402
from wandb_server.client import WandbClient  # noqa: E402

OURS = "tracking.sync"
WAYS = [*COMMANDS, OURS]
# One that takes two requests, so that there is a middle.
MANY = 3000


# The faults, under the titles of the trials of `python -m tracking.sync`


def _segments(scene: Scene) -> None:
    for number in range(3):
        scene.train(1 + 30 * number, 40 + 30 * number)


def _requeued(scene: Scene) -> None:
    _segments(scene)
    scene.push()


def _requeued_live(scene: Scene) -> None:
    for number in range(3):
        process = scene.start(1 + 30 * number, 40 + 30 * number, 0.1)
        assert process.stdout is not None
        process.stdout.readline()
        scene.push()
        if scene.state() != "running":
            scene.notes.append(f"'{scene.state()}' while segment {number} runs")
        process.communicate("go\n")
        scene.push()


def _offline_then_online(scene: Scene) -> None:
    scene.train(1, 40)
    scene.train(41, 80, mode="online")
    scene.push()


def _wrong_order(scene: Scene) -> None:
    _segments(scene)
    folders = scene.folders()
    for folder in folders:
        folder.rename(folder.with_name(f"moved-{folder.name}"))
    for folder, other in zip(folders, reversed(folders), strict=True):
        folder.with_name(f"moved-{folder.name}").rename(other)
    scene.push()


def _killed_job(scene: Scene) -> None:
    process = scene.start(1, 40, 0.005)
    assert process.stdout is not None
    process.stdout.readline()
    kill(tree(process.pid))
    process.communicate()
    scene.push()


def _killed_pusher(scene: Scene) -> None:
    folder = scene.train(1, MANY)
    for _ in range(2):
        seen = scene.server.count("file_stream")
        process = scene.begin_push([folder])
        wait_until(lambda seen=seen: scene.server.count("file_stream") > seen, 60, "the first rows")  # type: ignore[misc]
        below = [other for other in psutil.process_iter() if is_below(other, scene.client.work)]
        kill(below)
        if process is not None:
            process.communicate()
    scene.push([folder])


def _outage(title: str) -> Callable[[Scene], None]:
    kinds = {"hang": "hang", "connection dropped": "drop", "answer lost": "lose", "server down": "drop"}
    kind, status = kinds.get(title, "http"), int(title[:3]) if title[:3].isdigit() else 500

    def play_it(scene: Scene) -> None:
        first = scene.server.faults.add("file_stream", kind, status=status, after=1)  # type: ignore[arg-type]
        folder = scene.train(1, MANY)
        # wandb-osh was told by the script.
        process = None if scene.hook else scene.begin_push([folder])
        wait_until(lambda: first.hits or (process is not None and process.poll() is not None), 60, "the fault")
        if title == "server down":
            scene.server.stop_listening()
        elif "alone" not in title:
            scene.server.faults.add("*", kind, status=status)  # type: ignore[arg-type]
        if "until" in title:
            scene.end_push(process)
        else:
            time.sleep(scene.outage)
        scene.server.faults.clear()
        scene.server.resume_listening()
        if "until" not in title:
            scene.end_push(process)
        if scene.codes and scene.codes[-1] != 0:
            scene.push([folder])

    return play_it


def _twice(scene: Scene) -> None:
    scene.train(1, 80)
    scene.push()
    scene.push()


def _two_at_once(scene: Scene) -> None:
    scene.train(1, 80)
    both = [scene.begin_push(scene.folders()) for _ in range(2)]
    for process in both:
        scene.end_push(process)


def _torn(scene: Scene) -> None:
    (file,) = scene.train(1, 80).glob("*.wandb")
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * 0.6)])
    scene.push()


def _damaged_beside(scene: Scene) -> None:
    for run, content in (("empty", b""), ("header", None)):
        (file,) = scene.train(1, 3, run=run).glob("*.wandb")
        file.write_bytes(file.read_bytes()[:7] if content is None else content)
    scene.train(1, 80)
    scene.push()


def _node_clock(scene: Scene) -> None:
    scene.train(1, 80, jump=-86400.0)
    scene.push()


FAULTS: dict[str, Callable[[Scene], None]] = {
    "three offline segments, requeued, each rolled back by 10 steps": _requeued,
    "the same while they run, with the daemon": _requeued_live,
    "an offline segment followed by an online one": _offline_then_online,
    "segments in the wrong order on disk": _wrong_order,
    "job killed with everything (kill -9)": _killed_job,
    "the pusher killed in the middle of a push, twice": _killed_pusher,
    **{title: _outage(title.partition(",")[0]) for title in TRIALS if title.endswith("in the middle of a push")},
    "pushed a second time": _twice,
    "a second daemon on another host": _two_at_once,
    "a torn journal line": _torn,
    "an empty and a 7-byte .wandb beside": _damaged_beside,
    "the node's clock jumps": _node_clock,
}


def play_peer(way: str, title: str, folder: Path, outage: float, binaries: Path) -> str:
    """Plays a fault through a peer and says what became of it."""
    folder.mkdir(parents=True)
    with WandbServer() as server:
        scene = Scene(way, server, WandbClient(server, folder / "client"), outage)
        if way != "wandb-osh":
            FAULTS[title](scene)
            return scene.words()
        with osh(folder, scene.client, binaries) as scene.hook:
            FAULTS[title](scene)
            scene.end_push(None)
            return scene.words()


def our_words(outcome: Outcome) -> str:
    """The same of a trial of `python -m tracking.sync`."""
    words = [f"{cell(t.expected, t.there, t.lost, t.twice, t.unequal)}; {t.state}" for t in outcome.tallies.values()]
    return "; ".join([*words, *outcome.notes, *(f"**{problem}**" for problem in outcome.problems)])


def main(
    only: Annotated[str, typer.Option(help="Play the faults whose title this pattern finds.")] = "",
    ways: Annotated[str, typer.Option(help="Which ways, with commas between.")] = ",".join(WAYS),
    outage: Annotated[float, typer.Option(help="How long outages last, s.", min=1.0)] = 5.0,
) -> None:
    """Plays the faults and prints the table."""
    chosen = ways.split(",")
    table = Table(box=MARKDOWN)
    for column in ("fault", *chosen):
        table.add_column(column, no_wrap=True)
    with tempfile.TemporaryDirectory(prefix="sync-peers-") as temporary:
        folder = Path(temporary)
        binaries = install(folder / "osh") if "wandb-osh" in chosen else folder
        for number, title in enumerate(title for title in FAULTS if re.search(only, title)):
            cells = []
            for way in chosen:
                print(f"{title}, {way} …", file=sys.stderr, flush=True)
                place = folder / f"{number}-{way.replace(' ', '-')}"
                ours = way == OURS
                cells.append(
                    our_words(play(title, place, outage)) if ours else play_peer(way, title, place, outage, binaries)
                )
            table.add_row(title, *cells)
    Console(width=1000).print(table)


if __name__ == "__main__":
    typer.run(main)
