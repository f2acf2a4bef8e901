"""What one sync child does, as a value and as a command line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

TaskMode = Literal["probe", "online", "offline"]


@dataclass(frozen=True)
class Task:
    """What one child does.

    Attributes:
        run_dir: The run folder.
        wandb_dir: The folder that holds W&B's `wandb`.
        mode: Where the rows go; `probe` asks the server first.
        parent: The training process, or None to replay what is there and end.
        segment: The segment that the parent writes; None without a parent.
        finish_timeout: Seconds that the parent waits for the child after the segment's end.
        probe_timeout: Seconds that the server may take to answer the probe.
        verdict_fd: Where the probe's verdict is written for the parent, as one line of JSON.
        attempt: How often this child has begun without getting further, from 1.
        since: How many rows the server had when the first of these attempts began.
        reason: Why the rows do not go to the server, when they were to.
    """

    run_dir: Path
    wandb_dir: Path
    mode: TaskMode = "offline"
    parent: int | None = None
    segment: int | None = None
    finish_timeout: float = 20.0
    probe_timeout: float = 1.5
    verdict_fd: int | None = None
    attempt: int = 1
    since: int = 0
    reason: str | None = None

    def arguments(self) -> list[str]:
        """The command line after `python -m tracking.sync.child`."""
        arguments = [str(self.run_dir)]
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "run_dir" and value is not None:
                arguments.append(f"--{field.name.replace('_', '-')}={value}")
        return arguments


def parse_task(arguments: Sequence[str], description: str | None) -> Task:
    """Reads a command line; ends the process with a message where it is wrong."""
    parser = argparse.ArgumentParser(prog="python -m tracking.sync.child", description=description)
    parser.add_argument("run_dir", type=Path, help="the run folder")
    parser.add_argument("--wandb-dir", type=Path, required=True, help="the folder that holds W&B's `wandb`")
    parser.add_argument("--mode", choices=("probe", "online", "offline"), default="offline")
    parser.add_argument("--parent", type=int, help="the training process; without it, replay what is there and end")
    parser.add_argument("--segment", type=int)
    parser.add_argument("--finish-timeout", type=float, default=20.0)
    parser.add_argument("--probe-timeout", type=float, default=1.5)
    parser.add_argument("--verdict-fd", type=int)
    parser.add_argument("--attempt", type=int, default=1)
    parser.add_argument("--since", type=int, default=0)
    parser.add_argument("--reason")
    return Task(**vars(parser.parse_args(arguments)))
