"""A place where runs are trained and pushed: jobs in processes of their own, a login node, a W&B on the loopback."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

from tracking.identity import read_identity
from tracking.intents import pending_intents

from runs import TAGS, rows_of, without_runtime
from support import wait_until
from wandb_server import WandbServer
from wandb_server.client import WandbClient
from wandb_server.runs import Run

ROOT = Path(__file__).resolve().parents[1]
PROJECT = "vla-lego"
# A stream that W&B's client gave up without a word is noticed after a minute, and tried again after half of one.
LOST_S = 240.0

# Does what its standard input says, line by line, and answers each line on a pipe.
_JOB = """
import json, os, sys, time
from tracking import ExperimentTracker

real, jump = time.time, [0.0]
time.time = lambda: real() + jump[0]
answers = os.fdopen(int(sys.argv[1]), "w", buffering=1)
tracker = ExperimentTracker(**json.loads(sys.argv[2]))
print("ready", file=answers)
for line in sys.stdin:
    word, *arguments = line.split()
    if word == "log":
        for step in range(int(arguments[0]), int(arguments[1]) + 1):
            tracker.log_metrics({"loss/total": 1 / step, "x": step}, step)
            time.sleep(float(arguments[2]))
    elif word == "clock":
        jump[0] = float(arguments[0])
    elif word == "config":
        tracker.log_config({"number": int(arguments[0])})
    elif word == "finish":
        tracker.finish(state=arguments[0])
    print(word, file=answers)
"""

# The login node's clock: a file says by how many seconds it is off.
_CLOCK = """
import os, time
_real = time.time
def _now():
    try:
        return _real() + float(open(os.environ["CLOCK_FILE"]).read() or 0)
    except (OSError, ValueError):
        return _real()
time.time = _now
"""


@dataclass(frozen=True)
class Tally:
    """What became of a run's rows.

    Attributes:
        expected: Rows in the journal.
        there: Rows on the server.
        lost: Rows of the journal that the server does not have.
        twice: Rows that the server has more than once, or that no journal has.
        unequal: Rows that differ from the journal's, or stand at another line than their number.
        stale: Metrics whose value in the run's summary is not the journal's last one.
        uploads: Uploads that still wait, and versions on the server beyond one for each content.
        state: The run's state on the server.
    """

    expected: int
    there: int
    lost: int
    twice: int
    unequal: int
    stale: int
    uploads: int
    state: str

    @property
    def is_whole(self) -> bool:
        """Everything is there, once, as the journal has it."""
        return not (self.lost or self.twice or self.unequal or self.stale or self.uploads)


class Job:
    """A training process.

    Attributes:
        run_dir: Its run folder.
        process: It.
    """

    def __init__(self, site: Site, name: str, mode: str, arguments: dict[str, Any]) -> None:
        """Starts it; `ready` waits until it trains."""
        self.run_dir = site.root / name
        read, write = os.pipe()
        tracker = {"run_dir": str(self.run_dir), "mode": mode, "tags": TAGS, "finish_timeout": 30.0} | arguments
        with (site.folder / f"{name}.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _JOB, str(write), json.dumps(tracker)],
                cwd=site.folder,
                env=site.environment(),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=[write],
                text=True,
            )
        os.close(write)
        self._answers = os.fdopen(read)

    def ready(self) -> Self:
        """Waits until the tracker stands."""
        self.answered("ready")
        return self

    def say(self, *words: object) -> None:
        """Tells the job what to do, without waiting for it."""
        assert self.process.stdin is not None
        print(*words, file=self.process.stdin, flush=True)

    def do(self, *words: object) -> None:
        """Tells the job what to do and waits until it is done."""
        self.say(*words)
        self.answered(str(words[0]))

    def log(self, first: int, last: int, pause: float = 0.005) -> None:
        """Trains these steps."""
        self.do("log", first, last, pause)

    def finish(self, state: str = "finished") -> None:
        """Ends the segment and the process."""
        self.do("finish", state)
        self.leave()

    def leave(self) -> None:
        """Ends the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        self._answers.close()

    def kill(self) -> None:
        """A power cut: the process, its child and W&B's service at once."""
        kill(tree(self.process.pid))
        self.process.wait(60)

    def children(self) -> list[psutil.Process]:
        """The sync child and W&B's service."""
        return tree(self.process.pid)[1:]

    def answered(self, word: str) -> None:
        """Waits for the answer to a word."""
        if (answer := self._answers.readline().strip()) != word:
            raise AssertionError(f"{self.run_dir.name}: expected {word!r}, the job said {answer!r}")


@dataclass
class Site:
    """A run root, a server, and what runs there; `with` ends all of it.

    Attributes:
        folder: Everything is written below it.
        root: The run folders.
        server: The loopback W&B.
        client: Its real client.
        outage: How long an outage lasts, s.
        variables: More environment of the processes; W&B's client sends every 15 s, a trial has less patience.
    """

    folder: Path
    server: WandbServer
    client: WandbClient
    outage: float = 3.0
    variables: dict[str, str] = field(default_factory=lambda: {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1"})
    processes: list[subprocess.Popen[Any]] = field(default_factory=list)

    @property
    def root(self) -> Path:
        return self.folder / "runs"

    def __enter__(self) -> Self:
        self.root.mkdir(parents=True)
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for process in self.processes:
            kill(tree(process.pid))
            process.wait(30)
        kill(strangers(self.folder))

    def environment(self) -> dict[str, str]:
        """Of every process."""
        given = {name: value for name, value in self.client.environment().items() if name != "WANDB_DIR"}
        return given | {"PYTHONPATH": str(ROOT), "WANDB_PROJECT": PROJECT} | self.variables

    def job(self, name: str, mode: str = "offline", **arguments: Any) -> Job:
        """Starts a job on a run, which is continued where it is there, and waits until it trains."""
        job = Job(self, name, mode, arguments)
        self.processes.append(job.process)
        return job.ready()

    def train(self, name: str, first: int, last: int, *, state: str = "finished", mode: str = "offline") -> Path:
        """A whole segment of a run."""
        job = self.job(name, mode)
        job.log(first, last)
        job.finish(state)
        return job.run_dir

    # The login node

    def daemon(self, *, before: Iterable[str] = (), interval: float | None = 1.0) -> subprocess.Popen[Any]:
        """Starts a daemon on the root, with its own interval where None is given; its words are in `daemon.log`."""
        command = [*before, *self._command("daemon"), *([] if interval is None else [f"--interval={interval:g}"])]
        return self.start(command, "daemon.log")

    def start(self, command: list[str], log_name: str) -> subprocess.Popen[Any]:
        """Starts a process of the login node, with a log in the site's folder."""
        with (self.folder / log_name).open("ab") as log:
            process = subprocess.Popen(
                command, cwd=self.folder, env=self.environment(), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def once(self, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Pushes what there is; its words are added to `once.log`."""
        done = subprocess.run(
            self._command("once"),
            cwd=self.folder,
            env=self.environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )
        with (self.folder / "once.log").open("a") as log:
            log.write(f"{done.stdout}exit code {done.returncode}\n")
        return done

    def stop(self, process: subprocess.Popen[Any]) -> int:
        """Asks a daemon to end, as `kill` does."""
        process.send_signal(signal.SIGTERM)
        return process.wait(60)

    def set_clock(self, off: float) -> None:
        """Sets the clock of processes of the login node that are started with it, or run already."""
        folder = self.folder / "clock"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(_CLOCK)
        (folder / "off.new").write_text(str(off))
        (folder / "off.new").replace(folder / "off")
        self.variables |= {"PYTHONPATH": f"{folder}:{ROOT}", "CLOCK_FILE": str(folder / "off")}

    def _command(self, verb: str) -> list[str]:
        return [sys.executable, "-m", "tracking.sync", verb, f"--root={self.root}"]

    # What the server has

    def names(self) -> list[str]:
        """The run folders."""
        return sorted(path.parent.name for path in self.root.glob("*/run.json"))

    def server_rows(self, name: str) -> list[dict[str, Any]]:
        """The rows of a run on the server."""
        run = self._run(name)
        return run.history if run is not None else []

    def state(self, name: str) -> str:
        """The run's state on the server; `absent` where it has none."""
        run = self._run(name)
        return run.state if run is not None else "absent"

    def _run(self, name: str) -> Run | None:
        identity = read_identity(self.root / name)
        runs = {run.name: run for run in self.server.runs(self.server.entity, PROJECT)}
        return runs.get(identity.run_id) if identity is not None else None

    def wait_rows(self, name: str, rows: int, timeout: float = 90.0) -> None:
        """Waits until the server has at least so many rows of a run."""
        wait_until(lambda: len(self.server_rows(name)) >= rows, timeout, f"{rows} rows of {name}: {self.said()}")

    def wait_whole(self, names: Iterable[str] | None = None, timeout: float = 120.0, state: str | None = None) -> None:
        """Waits until the server has all of these runs and knows their end, in this state if one is given."""

        def is_whole(name: str) -> bool:
            there = self.state(name)
            return (there == state if state else there not in ("running", "absent")) and self.tally(name).is_whole

        for name in self.names() if names is None else names:
            wait_until(lambda name=name: is_whole(name), timeout, f"{name} to be whole: {self.said()}")  # type: ignore[misc]

    def said(self) -> str:
        """The end of the daemon's log."""
        log = self.folder / "daemon.log"
        return log.read_text()[-2000:] if log.exists() else ""

    def tally(self, name: str) -> Tally:
        """Compares a run's journal with what the server has of it, row by row."""
        run_dir = self.root / name
        expected = {row["_step"]: row for row in rows_of(run_dir)}
        there = without_runtime(self.server_rows(name))
        count = Counter(row["_step"] for row in there)
        unequal = sum(
            row["_step"] in expected and (row != expected[row["_step"]] or row["_step"] != line)
            for line, row in enumerate(there)
        )
        return Tally(
            expected=len(expected),
            there=len(there),
            lost=len(expected.keys() - count.keys()),
            twice=sum(number - 1 if step in expected else number for step, number in count.items()),
            unequal=unequal,
            stale=self._stale(name, expected.values()),
            uploads=len(pending_intents(run_dir)) + self._surplus(name),
            state=self.state(name),
        )

    def _stale(self, name: str, expected: Iterable[dict[str, Any]]) -> int:
        last: dict[str, Any] = {}
        for row in expected:
            last |= row
        run = self._run(name)
        return 0 if run is None else sum(run.summary.get(key) != value for key, value in last.items())

    def _surplus(self, name: str) -> int:
        """Versions of the run's artifacts that hold what another version of the same artifact holds."""
        artifacts = [
            artifact
            for artifact in list(self.server.store.artifacts.values())
            if artifact.state == "COMMITTED" and artifact.sequence.name.startswith(f"{name}-")
        ]
        return len(artifacts) - len({(artifact.sequence.name, artifact.digest) for artifact in artifacts})


def tree(pid: int) -> list[psutil.Process]:
    """A process and everything that it has started, it first; nothing where it has ended."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def strangers(folder: Path) -> list[psutil.Process]:
    """Processes of a site whose parent has ended: their command line names its folder."""
    # Beside `…/1` there may be another site in `…/10`.
    inside = re.compile(re.escape(str(folder)) + r"(/|$)")
    found = []
    for process in psutil.process_iter():
        try:
            if any(inside.search(word) for word in process.cmdline()):
                found += tree(process.pid)
        except psutil.Error:
            continue
    return [process for process in found if process.pid != os.getpid()]


def kill(processes: Iterable[psutil.Process]) -> None:
    """Ends processes, all of them before any can notice."""
    processes = list(processes)
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in processes:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
