"""Runs to be pushed, written by the journal's own writer, and the command line that pushes them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

import pytest

from tracking.identity import Identity, claim_identity
from tracking.journal import JournalWriter, read_journal
from tracking.sync.claims import Claim, Holder
from tracking.sync.views import offline

from sync_site import PROJECT, Site
from wandb_server import WandbServer
from wandb_server.client import WandbClient
from wandb_server.runs import HISTORY, LineFile, Run

End = Literal["finished", "preempted", "crashed"]
EXIT_CODES: dict[End, int] = {"finished": 0, "preempted": 143, "crashed": 3}

PLAIN = """
import sys, wandb
run = wandb.init(project="plain", id=sys.argv[1], mode="offline")
for x in range(int(sys.argv[2])):
    run.log({"x": x})
run.finish()
answer = run.settings.sync_dir
"""


@pytest.fixture
def site(wandb_server: WandbServer, wandb_client: WandbClient, tmp_path: Path) -> Iterator[Site]:
    """A login node in front of a W&B of the test's own."""
    with Site(tmp_path / "it's a site", wandb_server, wandb_client) as site:
        yield site


def begin(run_dir: Path) -> JournalWriter:
    """Begins the next segment of a run, and the run where there is none."""
    run_dir.mkdir(parents=True, exist_ok=True)
    return JournalWriter.begin(run_dir, identity_of(run_dir).run_id, read_journal(run_dir))


def identity_of(run_dir: Path) -> Identity:
    """The run that a folder holds, which is made where there is none."""
    return claim_identity(run_dir, None, run_dir.name, PROJECT, None)


def log(writer: JournalWriter, first: int, last: int) -> None:
    """Trains these steps."""
    for step in range(first, last + 1):
        writer.row(step, {"loss/total": 1 / step, "x": step})


def end(writer: JournalWriter, state: End = "finished") -> None:
    """Ends the segment."""
    writer.end(state, EXIT_CODES[state])
    writer.close()


def write_run(run_dir: Path, rows: int, state: End | None = "finished") -> Path:
    """A whole segment; with None as its state it goes on, or was killed."""
    writer = begin(run_dir)
    log(writer, 1, rows)
    if state is None:
        writer.close()
    else:
        end(writer, state)
    return run_dir


def fall_silent(run_dir: Path, seconds: float = 300.0) -> None:
    """Makes a run one that nobody has written for a while."""
    for path in run_dir.glob("journal-*.jsonl"):
        os.utime(path, (time.time() - seconds,) * 2)


def hold_from_elsewhere(run_dir: Path) -> Claim:
    """Makes a run one that a process on another host holds, which has just shown itself."""
    (run_dir / "claims").mkdir()
    holder = replace(Holder.this_process("child"), host="node7", table="another")
    (run_dir / "claims" / "000003.json").write_text(json.dumps(asdict(holder)))
    (run_dir / "claims" / "000003.beat").touch()
    return Claim(run_dir, 3)


def sync(
    site: Site, *arguments: str | Path, cwd: Path | None = None, timeout: float = 120.0, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Runs `python -m tracking.sync` with these arguments to its end."""
    return subprocess.run(
        [sys.executable, "-m", "tracking.sync", *map(str, arguments)],
        cwd=cwd or site.folder,
        env=site.environment() | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def run_on_server(site: Site, run_dir: Path) -> Run:
    """The run as the server has it; KeyError where it has none."""
    return site.server.run(site.server.entity, PROJECT, identity_of(run_dir).run_id)


def history(site: Site, run_dir: Path) -> LineFile:
    """The file of lines in which the server keeps the run's rows."""
    return run_on_server(site, run_dir).line_files[HISTORY]


def keep(file: LineFile, rows: int) -> None:
    """Makes the server forget all but the first rows."""
    del file.lines[rows:]
    # What the file has parsed is parsed again behind a write.
    file.write(0, [file.lines[0] or ""])


def record_plain(site: Site, name: str, rows: int) -> Path:
    """An offline folder of a script without a journal, in `./wandb`."""
    return Path(site.client.python(PLAIN, name, str(rows), WANDB_DIR=str(site.folder)))


def record_offline(site: Site, run_dir: Path) -> Path:
    """The offline folder that a job's child makes of a journal, in `./wandb`."""
    command = [sys.executable, "-m", "tracking.sync.child", str(run_dir), f"--wandb-dir={site.folder}"]
    subprocess.run(command, env=site.environment(), check=True, capture_output=True)
    (folder,) = offline.published(site.folder, identity_of(run_dir).run_id)
    return folder
