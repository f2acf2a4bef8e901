"""A short training loop in a process of its own, a fault at a chosen moment, and what became of every row.

A fault that needs the network itself to fail is played in a network namespace: `python fault_trials.py NAME FOLDER`.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from tracking import read_journal
from tracking.sync.child.status import read_status

from runs import children_on, offline_folders, rows_of, without_runtime
from support import free_port, wait_until
from wandb_server import WandbServer
from wandb_server.client import WandbClient

ROOT = Path(__file__).resolve().parents[1]
HALF = 40
# 224.0.0.1 can never be reached over TCP, on whatever network: the kernel says so at once.
NO_ROUTE_URL = "http://224.0.0.1:8080"

_LOOP = """
import json, math, resource, sys, time
from pathlib import Path
import numpy as np
from tracking import ExperimentTracker

run_dir, flags, half, finish_timeout = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
tags = {"model": "act", "dataset": "lift", "objective": "bc", "experiment_group": "demo"}
held = []

def timed(call, *arguments, **named):
    began = time.perf_counter()
    result = call(*arguments, **named)
    held.append(time.perf_counter() - began)
    return result

def halt(moment):
    (flags / moment).touch()
    while not (flags / f"{moment}-go").exists():
        time.sleep(0.01)

def limit(further):
    size = sum(path.stat().st_size for path in run_dir.glob("journal-*")) + further if further else -1
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

def log(step):
    timed(tracker.log_training_step, 1 / step, step, 8, ar=0.5)

tracker = timed(ExperimentTracker, tags=tags, run_dir=run_dir, log_interval=1, finish_timeout=finish_timeout)
start = held.pop()
for step in range(1, half + 1):
    log(step)
    time.sleep(0.005)
halt("middle")
MIDDLE
for step in range(half + 1, 2 * half + 1):
    log(step)
    time.sleep(0.005)
halt("end")
END
timed(tracker.finish)
finish = held.pop()
(flags / "held.json").write_text(json.dumps(
    {"start": start, "longest": max(held), "in_all": sum(held), "finish": finish, "calls": len(held)}
))
"""

_ODD = """
import torch
odd = {"a": math.nan, "b": -math.inf, "np": np.float32(0.5), "flag": True, "text": "x", "none": None}
odd |= {"deep": {"er": {"x": 1}}, "tensor": torch.tensor(0.25), "bad": object()}
for step in (3, 2, 2):
    timed(tracker.log_metrics, odd, step)
"""

Moment = Literal["at the start", "in the middle", "until before finish"]


@dataclass
class Scene:
    """What a fault can act on.

    Attributes:
        folder: Everything is written below it.
        server: The loopback W&B.
        client: Its real client, with which folders are uploaded in the end.
        finish_timeout: The tracker's, s.
        variables: More environment of the training.
        process: The training.
    """

    folder: Path
    server: WandbServer
    client: WandbClient
    finish_timeout: float
    variables: dict[str, str] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    def start(self, name: str, trial: Trial) -> subprocess.Popen[bytes]:
        """Starts a training process; its moments are files in `folder / name`."""
        (self.folder / name).mkdir()
        program = _LOOP.replace("MIDDLE", trial.middle_code).replace("END", trial.end_code)
        arguments = [str(self.run_dir), str(self.folder / name), str(HALF), str(self.finish_timeout)]
        environment = self.client.environment() | {"PYTHONPATH": str(ROOT)}
        for variable in ("WANDB_DIR", "WANDB_ENTITY"):
            del environment[variable]
        # W&B's client sends every 15 s; a trial has less patience.
        environment |= {"WANDB_X_FILE_STREAM_TRANSMIT_INTERVAL": "1", **self.variables}
        with (self.folder / f"{name}.log").open("wb") as log:
            command = [sys.executable, "-c", program, *arguments]
            return subprocess.Popen(command, env=environment, cwd=self.folder, stdout=log, stderr=subprocess.STDOUT)

    def wait_for(self, moment: str, name: str = "first") -> None:
        wait_until((self.folder / name / moment).exists, 60, f"{name} to be {moment}")

    def go(self, moment: str, name: str = "first") -> None:
        (self.folder / name / f"{moment}-go").touch()

    def server_rows(self) -> list[dict[str, Any]]:
        segments = read_journal(self.run_dir).segments
        run_id = segments[0].run_id if segments else ""
        return without_runtime(self.server.rows(self.server.entity, "vla-lego", run_id))


@dataclass(frozen=True)
class Trial:
    """One fault.

    Attributes:
        name: What goes wrong.
        moment: When.
        begin: Brings the fault about.
        lift: Takes it away again, after the process's end at the latest.
        isolated: Needs a network of its own.
        middle_code: What the training does in the middle.
        end_code: What it does before `finish`.
    """

    name: str
    moment: Moment
    begin: Callable[[Scene], None] = lambda scene: None
    lift: Callable[[Scene], None] = lambda scene: None
    isolated: bool = False
    middle_code: str = ""
    end_code: str = ""

    @property
    def title(self) -> str:
        return f"{self.name}, {self.moment}"


@dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        logged: Rows in the journal.
        calls: Rows that the loop logged; fewer stand in the journal where a disk stayed full to the end.
        arrived: Rows that the server holds as the journal has them, after the documented upload where there is one.
        twice: Rows that the server holds and should not.
        held: Seconds by `start`, `longest` (call of the loop), `in_all` (of these calls) and `finish`; empty for a
            process that was killed.
        ended: `online`, `offline` or `failed`, as the child left it.
        reason: Why it is not online, in the tracker's words.
        said: What the training printed.
        problems: What the journal's reader says.
    """

    logged: int
    calls: int
    arrived: int
    twice: int
    held: dict[str, float]
    ended: str
    reason: str
    said: str
    problems: list[str]


def _http(status: int) -> Callable[[Scene], None]:
    def begin(scene: Scene) -> None:
        scene.server.faults.add(status=status)

    return begin


def _hang(scene: Scene) -> None:
    scene.server.faults.add(kind="hang")


def _set(name: str, value: Callable[[Scene], str]) -> Callable[[Scene], None]:
    return lambda scene: scene.variables.update({name: value(scene)})


def _close(scene: Scene) -> None:
    scene.server.stop_listening()


def _open(scene: Scene) -> None:
    scene.server.faults.clear()
    scene.server.resume_listening()


def _unwritable(scene: Scene) -> str:
    (scene.folder / "file").touch()
    return str(scene.folder / "file")


def _both_unwritable_and_cut(scene: Scene) -> None:
    scene.variables |= {"WANDB_DIR": _unwritable(scene), "WANDB_BASE_URL": NO_ROUTE_URL}


def _signal(number: signal.Signals, seed: int) -> Callable[[Scene], None]:
    def send(scene: Scene) -> None:
        assert scene.process is not None
        scene.go("middle")
        time.sleep(random.Random(seed).uniform(0.0, 0.2))
        scene.process.send_signal(number)

    return send


def _second_process(scene: Scene) -> None:
    second = scene.start("second", Trial("", "at the start"))
    scene.go("middle", "second")
    scene.wait_for("end", "second")
    scene.go("end", "second")
    second.wait(60)


def loopback_address(address: str) -> None:
    """Gives the loopback of this network namespace an address; 0.0.0.0 takes every route away."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        if address != "0.0.0.0":
            fcntl.ioctl(control, 0x8914, struct.pack("16sH14x", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
        request = struct.pack("16sHH4s8x", b"lo", socket.AF_INET, 0, socket.inet_aton(address))
        fcntl.ioctl(control, 0x8916, request)  # SIOCSIFADDR


def _make_trials() -> list[Trial]:
    http = [(f"{status}", _http(status)) for status in (401, 403, 404, 429, 500)]
    closed_url = _set("WANDB_BASE_URL", lambda scene: f"http://127.0.0.1:{free_port()}")
    start = [("no route", _set("WANDB_BASE_URL", lambda scene: NO_ROUTE_URL)), ("closed port", closed_url)]
    trials = [Trial(name, "at the start", begin) for name, begin in [*start, ("black hole", _hang), *http]]
    cut = Trial(
        "no route",
        "in the middle",
        lambda _: loopback_address("0.0.0.0"),
        lambda _: loopback_address("127.0.0.1"),
        True,
    )
    middle = [("closed port", _close), ("black hole", _hang), *http]
    trials += [cut, *(Trial(name, "in the middle", begin, _open) for name, begin in middle)]
    back = [("closed port", _close), ("black hole", _hang), ("500", _http(500))]
    trials += [Trial(name, "until before finish", begin, _open) for name, begin in back]
    trials += [
        Trial("SIGTERM", "in the middle", _signal(signal.SIGTERM, 1)),
        Trial("SIGKILL", "in the middle", _signal(signal.SIGKILL, 2)),
        Trial("disk full", "in the middle", middle_code="limit(2000)"),
        Trial("disk full", "until before finish", middle_code="limit(2000)", end_code="limit(0)"),
        Trial("unwritable WANDB_DIR", "at the start", _set("WANDB_DIR", _unwritable)),
        Trial("unwritable WANDB_DIR and no route", "at the start", _both_unwritable_and_cut),
        Trial("odd values, steps backwards", "in the middle", middle_code=_ODD),
        Trial("second process, same run", "in the middle", _second_process),
    ]
    return trials


TRIALS = {trial.title: trial for trial in _make_trials()}


def play(trial: Trial, folder: Path, finish_timeout: float = 20.0) -> Outcome:
    """Plays a fault once.

    Args:
        trial: The fault.
        folder: A folder that does not exist.
        finish_timeout: Of the tracker, s.
    """
    if trial.isolated and os.environ.get("FAULT_TRIALS_ISOLATED") is None:
        return _play_isolated(trial, folder, finish_timeout)
    folder.mkdir(parents=True)
    with WandbServer() as server:
        scene = Scene(folder, server, WandbClient(server, folder / "client"), finish_timeout)
        if trial.moment == "at the start":
            trial.begin(scene)
        scene.process = scene.start("first", trial)
        scene.wait_for("middle")
        if trial.moment != "at the start":
            wait_until(lambda: len(scene.server_rows()) == HALF, 60, "the first half of the rows")
            trial.begin(scene)
        scene.go("middle")
        wait_until(lambda: (folder / "first" / "end").exists() or scene.process.poll() is not None, 60, "the end")
        if trial.moment == "until before finish":
            wait_until(lambda: _given(scene) == 2 * HALF or trial.end_code, 30, "W&B's client to have run into it")
            trial.lift(scene)
        scene.go("end")
        scene.process.wait(120)
        wait_until(lambda: not children_on(scene.run_dir), 120, "the child to end")
        trial.lift(scene)
        server.faults.clear()
        return _outcome(scene)


def _given(scene: Scene) -> int:
    status = read_status(scene.run_dir)
    return status.rows if status is not None else 0


def _outcome(scene: Scene) -> Outcome:
    status = read_status(scene.run_dir)
    journal = read_journal(scene.run_dir)
    _upload(scene)
    expected = [_canonical(row) for row in rows_of(scene.run_dir)]
    there = [_canonical(row) for row in scene.server_rows()]
    held_file = scene.folder / "first" / "held.json"
    held = json.loads(held_file.read_text()) if held_file.exists() else {}
    return Outcome(
        logged=len(expected),
        calls=int(held.pop("calls", len(expected))),
        arrived=len(set(expected) & set(there)),
        twice=len(there) - len(set(expected) & set(there)),
        held=held,
        ended="none" if status is None else "failed" if status.state == "failed" else status.mode,
        reason=(status.error or "") if status is not None else "",
        said=(scene.folder / "first.log").read_text(),
        problems=journal.problems,
    )


def _canonical(row: dict[str, Any]) -> str:
    """A row as text: 1.0 and 1 are one number in W&B, and NaN is itself."""
    numbers = {key: float(value) for key, value in row.items() if type(value) in (int, float)}
    return json.dumps(row | numbers, sort_keys=True)


def _upload(scene: Scene) -> None:
    """Does what the tracker tells the user to do where the rows are not on the server."""
    if (status := read_status(scene.run_dir)) is not None and status.mode == "online" and status.state == "done":
        return
    environment = scene.client.environment()
    if not offline_folders(scene.run_dir):
        command = [sys.executable, "-m", "tracking.sync.child", str(scene.run_dir), "--wandb-dir", str(scene.run_dir)]
        subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, timeout=120)
    done = scene.client.wandb("sync", *map(str, offline_folders(scene.run_dir)))
    assert done.returncode == 0, done.stdout


def _play_isolated(trial: Trial, folder: Path, finish_timeout: float) -> Outcome:
    unshare = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--net"]
    command = [*unshare, sys.executable, __file__, trial.title, str(folder), str(finish_timeout)]
    environment = os.environ | {"FAULT_TRIALS_ISOLATED": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return Outcome(**json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    loopback_address("127.0.0.1")
    print(json.dumps(asdict(play(TRIALS[sys.argv[1]], Path(sys.argv[2]), float(sys.argv[3])))))
