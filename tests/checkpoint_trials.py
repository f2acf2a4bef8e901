"""Two ranks that save, prune, consolidate and publish, killed at random; each attempt resumes what the last one left.

The ranks are forked from a process that has its imports done. Rank 0 says through a pipe what it is at, the parent
kills both a random time after the part begins that it waits for, and then looks at what is on the disk.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import time
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import deepspeed  # noqa: F401 - before the ranks are forked
import lerobot.optim.schedulers  # noqa: F401
import torch
from safetensors import safe_open
from torch import nn

from gilbreth_phase0 import checkpointer, engine
from gilbreth_phase0.job import Job
from gilbreth_phase0.ranks import keep_extensions_here
from tracking import checkpoints
from tracking.checkpoints import Retention, saving
from tracking.consolidate import consolidate
from tracking.store import Store, publish
from tracking.store.verify import verify as verify_store

from support import free_port

PARTS = ("write", "fsync", "manifest", "rename", "prune", "consolidate", "publish")
RANKS = 2
_WIDTH = 256
_NAME = "act-lift"
_KEPT = Retention(last=2, every=10)


@dataclass
class Trial:
    """What one kill did.

    Attributes:
        aimed: The part that the kill was meant for.
        hit: What rank 0 was at when it died.
        restored: The step that the attempt went on from.
        saved: The last step that it knew to be saved.
        newest: The newest step on the disk afterwards that verifies.
        published: The last version in the model store that it knew of, -1 for none.
        faults: What was not as it must be.
    """

    aimed: str
    hit: str = "start"
    restored: int = 0
    saved: int = 0
    newest: int = 0
    published: int = -1
    faults: list[str] = field(default_factory=list)


class Campaign:
    """Attempts of one run, each killed.

    Args:
        folder: An empty folder.
        seed: Of the moments.
        stage: ZeRO stage.
    """

    def __init__(self, folder: Path, seed: int = 0, stage: int = 1) -> None:
        self._folder = folder
        self._random = random.Random(seed)
        self._stage = stage
        self._lasts: dict[str, float] = {}
        self._newest = 0
        keep_extensions_here()
        self._lasts = self._measure()

    def _measure(self) -> dict[str, float]:
        """Seconds of each part, in an attempt that is let go on for three saves."""
        took: dict[str, list[float]] = defaultdict(list)
        with self._attempt() as said:
            part, since = "start", time.monotonic()
            for line in said:
                now = time.monotonic()
                took[part].append(now - since)
                part, since = line, now
                if len(took["publish"]) == 3:
                    break
        self._newest = checkpoints.newest_step(self._folder / "checkpoints")
        return {part: statistics.median(seconds) for part, seconds in took.items()}

    def kill_in(self, part: str) -> Trial:
        """Kills an attempt while it is in a part, or near it, and looks at what is left."""
        trial = Trial(part)
        visits = self._random.randint(1, 3)
        with self._attempt() as said:
            for line in said:
                self._take(trial, line)
                visits -= line == part
                if not visits:
                    time.sleep(self._random.uniform(0, 0.9 * self._lasts[part]))
                    break
        for line in said:
            self._take(trial, line)
        self._look(trial)
        return trial

    def _take(self, trial: Trial, line: str) -> None:
        word, _, number = line.partition(" ")
        if word == "restored":
            trial.restored = trial.saved = int(number)
        elif word == "saved":
            trial.saved = int(number)
        elif word == "published":
            trial.published = int(number)
        else:
            trial.hit = word

    def _look(self, trial: Trial) -> None:
        folder = self._folder / "checkpoints"
        if trial.hit in {"start", "failed"}:
            trial.faults.append((self._folder / "log").read_text()[-2000:])
        if trial.restored != self._newest:
            trial.faults.append(f"resumed from {trial.restored}, {self._newest} was whole")
        found = checkpoints.newest_whole(folder, trial.faults.append)
        trial.newest = found[1].step if found else 0
        if trial.newest < trial.saved:
            trial.faults.append(f"{trial.saved} was saved, {trial.newest} is whole")
        for checkpoint in checkpoints.candidates(folder):
            checkpoints.verify(checkpoint)
        if not (folder / (folder / "latest").read_text()).is_dir():
            trial.faults.append("latest points nowhere")
        for model in self._folder.glob("*.safetensors"):
            with safe_open(model, "pt") as opened:
                if set(opened.keys()) != set(Model().state_dict()):
                    trial.faults.append(f"{model} is not whole")
        store = Store(self._folder / "store")
        if store.exists:
            trial.faults += verify_store(store, store.names())
        if trial.published >= 0 and trial.published not in store.state(_NAME).versions:
            trial.faults.append(f"{_NAME}:v{trial.published} was published and is not in the store")
        self._newest = trial.newest

    @contextmanager
    def _attempt(self) -> Iterator[Iterator[str]]:
        """Starts both ranks and gives what rank 0 says; kills them at the end. What was said before is read on then."""
        read, write = os.pipe()
        port, children = free_port(), []
        for rank in range(RANKS):
            child = os.fork()
            if not child:
                os.close(read)
                _rank(rank, port, self._folder, self._stage, os.fdopen(write, "w", buffering=1))
            children.append(child)
        os.close(write)
        pipe = os.fdopen(read)
        try:
            yield (line.strip() for line in iter(pipe.readline, ""))
        finally:
            for child in children:
                os.kill(child, signal.SIGKILL)
            for child in children:
                os.waitpid(child, 0)


class Model(nn.Module):
    """Large enough that every part takes some milliseconds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*(nn.Linear(_WIDTH, _WIDTH) for _ in range(8)))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.layers(inputs).square().mean()


def _rank(rank: int, port: int, folder: Path, stage: int, pipe: IO[str]) -> None:
    """Trains, saves, prunes, consolidates and publishes until it is killed. Does not return."""
    log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": RANKS, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in values.items()}
        tell = (lambda line: print(line, file=pipe)) if rank == 0 else (lambda line: None)
        _train(Job.start(folder, "cpu"), stage, tell)
    finally:
        traceback.print_exc()
        print("failed", file=pipe)
        os._exit(1)


def _train(job: Job, stage: int, tell: Callable[[str], None]) -> None:
    optimisation = engine.Optimisation(
        lr=1e-3,
        weight_decay=0.0,
        warmup_steps=2,
        training_steps=10_000,
        clip_grad_norm=1.0,
        zero_stage=stage,
        micro_batch_size=4,
        gradient_accumulation=1,
    )
    wrapped = engine.initialise(Model(), optimisation, job)
    saver = checkpointer.Checkpointer(wrapped, job)
    step = saver.restore().step
    tell(f"restored {step}")
    _tell_parts(wrapped, tell)
    model = job.run_dir / "model.safetensors"
    tell("train")
    while True:
        # From the second turn on beside the sync of the save before.
        wrapped.backward(wrapped(torch.randn(4, _WIDTH)))
        wrapped.step()
        step += 1
        if not saver.is_under_way:
            saver.begin(step, {"step": step}, None, None)
            continue
        saved = saver.finish()
        tell(f"saved {step - 1}")
        tell("prune")
        job.on_main(lambda trusted=saved.checkpoint: checkpoints.prune(trusted.parent, _KEPT, trusted=trusted) and None)
        tell("consolidate")
        job.on_main(lambda new=saved.checkpoint: consolidate(new, model) and None)
        tell("publish")
        version = job.on_main(lambda: publish(Store(job.run_dir / "store"), model, _NAME, mirror=False).version.number)
        tell(f"published {version}")
        saver.begin(step, {"step": step}, None, None)


def _tell_parts(wrapped: Any, tell: Callable[[str], None]) -> None:
    """Has the parts of a save say that they begin."""

    def told(part: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            tell(part)
            return real(*given, **named)

        return call

    wrapped.save_checkpoint = told("write", wrapped.save_checkpoint)
    checkpoints.record_files = told("fsync", checkpoints.record_files)  # with the training beside it
    saving.write_json = told("manifest", saving.write_json)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if target.name.startswith("step-"):
            tell("rename")  # with the sync of the folder behind it, and `latest`
        return real(self, target)

    Path.rename = rename  # type: ignore[method-assign]
