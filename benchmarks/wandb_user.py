"""A user of W&B without this project: a script that logs offline, and the ways in which its folders are pushed."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from support import wait_until
from sync_site import PROJECT, kill, tree
from wandb_server import WandbServer
from wandb_server.client import WandbClient

# wandb-osh has a daemon instead of a command.
COMMANDS = {"wandb sync": ["sync"], "wandb beta sync": ["beta", "sync"], "wandb-osh": []}
PACKAGES = ["wandb-osh==1.2.2", "colorlog==6.12.0"]
RUN_ID = "run"
PATIENCE_S = 150.0

_USER = """
import os, sys, time, wandb
first, last, code = map(int, sys.argv[1:4])
pause, jump = map(float, sys.argv[4:6])
hook = sys.argv[6]
if hook:
    from wandb_osh.hooks import TriggerWandbSyncHook
    trigger = TriggerWandbSyncHook(hook)
run = wandb.init(project="vla-lego", resume="allow")
folder = os.path.dirname(run.dir)
run.define_metric("*", step_metric="train/step")
real = time.time
for step in range(first, last + 1):
    if jump and step == (first + last) // 2:
        time.time = lambda: real() + jump
    run.log({"loss/total": 1 / step, "x": step, "train/step": step})
    if hook and step % 20 == 0 and last - first < 1000:
        trigger(folder)
    time.sleep(pause)
print("logged", flush=True)
if pause:
    sys.stdin.readline()
run.finish(exit_code=code)
if hook:
    trigger(folder)
"""


@dataclass
class Scene:
    """One fault on its way through one peer.

    Attributes:
        way: Which.
        server: Its server.
        client: Its processes' environment and folders.
        expected: The steps that were logged.
        codes: What the commands ended with; None for one that had to be stopped.
        notes: What else was seen.
        outage: How long an outage lasts, s.
        hook: wandb-osh's folder of commands, or empty.
    """

    way: str
    server: WandbServer
    client: WandbClient
    outage: float
    hook: str = ""
    expected: set[int] = field(default_factory=set)
    codes: list[int | None] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def folders(self) -> list[Path]:
        """What `./wandb/offline-run-*` stands for."""
        return sorted(self.client.work.glob("wandb/offline-run-*"))

    def start(self, first: int, last: int, pause: float = 0.0, *, mode: str = "offline", run: str = RUN_ID,
              code: int = 0, jump: float = 0.0) -> subprocess.Popen[str]:  # fmt: skip
        """Starts the user's script; with a pause it waits for a word before it finishes."""
        self.expected |= set(range(first, last + 1)) if run == RUN_ID else set()
        self.client.work.mkdir(parents=True, exist_ok=True)
        arguments = [str(value) for value in (first, last, code, pause, jump, self.hook)]
        return subprocess.Popen(
            [sys.executable, "-c", _USER, *arguments],
            cwd=self.client.work,
            env=self.client.environment() | {"WANDB_MODE": mode, "WANDB_RUN_ID": run},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def train(self, *arguments: Any, **named: Any) -> Path:
        """A whole segment; returns its folder."""
        before = set(self.folders())
        self.start(*arguments, **named).communicate()
        made = set(self.folders()) - before
        return made.pop() if made else self.client.work

    def begin_push(self, folders: list[Path]) -> subprocess.Popen[str] | None:
        """Gives the command on these folders; wandb-osh's daemon is told by its hook."""
        if not self.hook:
            command = [sys.executable, "-m", "wandb", *COMMANDS[self.way], *map(str, folders)]
            return self.client.start(command)
        for folder in folders:
            code = (
                "import sys; from wandb_osh.hooks import TriggerWandbSyncHook as Hook; Hook(sys.argv[1])(sys.argv[2])"
            )
            subprocess.run([sys.executable, "-c", code, self.hook, str(folder)], env=self.client.environment(),
                           check=True, capture_output=True)  # fmt: skip
        return None

    def end_push(self, process: subprocess.Popen[str] | None) -> None:
        """Waits for the command's end, or until wandb-osh has nothing left to do."""
        if process is None:
            wait_until(self._is_idle, PATIENCE_S * 2, "wandb-osh to be idle")
            return
        try:
            process.communicate(timeout=PATIENCE_S)
            self.codes.append(process.returncode)
        except subprocess.TimeoutExpired:
            kill(tree(process.pid))
            process.communicate()
            self.codes.append(None)

    def push(self, folders: list[Path] | None = None) -> None:
        """Pushes, once more where it failed and said so."""
        for _ in range(2):
            self.end_push(self.begin_push(self.folders() if folders is None else folders))
            if self.hook or self.codes[-1] == 0:
                return

    def state(self, run: str = RUN_ID) -> str:
        """The run's state on the server."""
        runs = {found.name: found for found in self.server.runs(self.server.entity, PROJECT)}
        return runs[run].state if run in runs else "absent"

    def words(self) -> str:
        """What became of it, for the table."""
        rows = self.server.rows(self.server.entity, PROJECT, RUN_ID)
        count = Counter(int(row["train/step"]) for row in rows)
        lost = len(self.expected - count.keys())
        twice = sum(count.values()) - len(count)
        steps = [row["train/step"] for row in rows]
        order = "" if steps == sorted(steps) else "**not in order**"
        ends = Counter("stopped" if code is None else f"exit {code}" for code in self.codes)
        codes = ", ".join(f"{end}, {times} times" if times > 1 else end for end, times in ends.items())
        return "; ".join(
            filter(None, [cell(len(self.expected), len(rows), lost, twice), order, self.state(), codes, *self.notes])
        )

    def _is_idle(self) -> bool:
        busy = any(
            "sync" in process.cmdline() for process in psutil.process_iter() if is_below(process, self.client.work)
        )
        return not busy and not list(Path(self.hook).glob("*.command"))


def is_below(process: psutil.Process, folder: Path) -> bool:
    """Whether a process works in a folder or below it."""
    try:
        return Path(process.cwd()).is_relative_to(folder)
    except psutil.Error:
        return False


def cell(expected: int, there: int, lost: int, twice: int, unequal: int = 0) -> str:
    """Rows in a few words."""
    words = [f"{there} of {expected}"]
    words += [
        f"**{number} {what}**" for number, what in ((lost, "lost"), (twice, "twice"), (unequal, "wrong")) if number
    ]
    return ", ".join(words)


@contextmanager
def osh(folder: Path, client: WandbClient, binaries: Path) -> Iterator[str]:
    """wandb-osh's daemon, with its defaults; gives its folder of commands."""
    commands = folder / "commands"
    packages = next(binaries.parent.glob("lib/python*/site-packages"))
    paths = {"PATH": f"{binaries}:{Path(sys.executable).parent}:/usr/bin:/bin", "PYTHONPATH": str(packages)}
    client.settings |= paths
    client.work.mkdir(parents=True, exist_ok=True)
    with (folder / "osh.log").open("wb") as log:
        command = [str(binaries / "wandb-osh"), "--command-dir", str(commands)]
        process = subprocess.Popen(command, cwd=folder, env=client.environment(), stdout=log, stderr=log)
    try:
        yield str(commands)
    finally:
        kill(tree(process.pid))
        process.wait()


def install(folder: Path) -> Path:
    """Makes an environment with wandb-osh; returns its folder of programs."""
    subprocess.run(["uv", "venv", "-q", "--python", sys.executable, str(folder)], check=True)
    python = folder / "bin" / "python"
    subprocess.run(["uv", "pip", "install", "-q", "-p", str(python), "--no-deps", *PACKAGES], check=True)
    here = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    (next(folder.glob("lib/python*/site-packages")) / "borrowed.pth").write_text(f"{here}\n")
    return folder / "bin"
