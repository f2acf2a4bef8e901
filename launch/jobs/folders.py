"""Run folders: which there are, and what launch and the jobs have written into them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from launch.places import ROOT
from tracking.errors import UserError, unknown
from tracking.files import read_json

# What makes a folder a run's: written at submission, by the job's first rank, by the tracker.
_MARKS = frozenset({"submission.json", "owner.json", "run.json", "journal-000.jsonl"})
# What changes while a run goes on.
_ACTIVE = ("submission.json", "owner.json", "attempts", "links", "done.json")
# Runs stand directly below a root, or grouped in folders.
_DEPTH = 2


@dataclass(frozen=True)
class RunFolder:
    """One run folder, by its listing; its files are read when they are asked for.

    Attributes:
        path: The folder.
        names: The files in it.
        active: When something of the run itself changed last, in seconds since the epoch.
    """

    path: Path
    names: frozenset[str] = field(repr=False)
    active: float

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def has_begun(self) -> bool:
        """Whether a job of it has written something."""
        return not self.names.isdisjoint({"owner.json", "attempts", "run.json", "journal-000.jsonl", "done.json"})

    @cached_property
    def submission(self) -> dict[str, Any]:
        """What `launch.submit` recorded; empty where it was not submitted by it."""
        return self._read("submission.json")

    @cached_property
    def done(self) -> dict[str, Any] | None:
        """The done record; None while the run is not complete."""
        return self._read("done.json") if "done.json" in self.names else None

    @cached_property
    def owner(self) -> dict[str, Any]:
        """The attempt that holds the run."""
        return self._read("owner.json")

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration; empty where there is none that can be read."""
        from launch.yaml_core import load_dumped

        return load_dumped(self.path / "config.yaml") if "config.yaml" in self.names else {}

    @cached_property
    def attempts(self) -> list[dict[str, Any]]:
        """How the attempts so far ended, the first one first (written by `gilbreth_phase0.attempt`)."""
        if "attempts" not in self.names:
            return []
        records = (_mapping(path) for path in (self.path / "attempts").glob("*.json"))
        return sorted((record for record in records if record), key=lambda record: float(record.get("time") or 0.0))

    @cached_property
    def jobs(self) -> list[str]:
        """The jobs of the run, the first one first: that of the submission, and those that a chain handed on to.

        Before them are those of earlier chains, of a run that was submitted again.
        """
        jobs = [*(str(link["job_id"]) for link in self._links if str(link["job_id"]) not in self.chain), *self.chain]
        if not self.submission or self.submission.get("state") == "submitting":
            jobs.append(str(self.owner.get("job_id") or ""))
        return list(dict.fromkeys(job for job in jobs if job))

    @cached_property
    def chain(self) -> list[str]:
        """The job of the submission, and those that came after it, the first one first."""
        chain = [str(job)] if (job := self.submission.get("job_id")) else []
        for link in self._links:
            if str(link.get("after")) in chain:
                chain.append(str(link["job_id"]))
        return chain

    @cached_property
    def _links(self) -> list[dict[str, Any]]:
        """What stands in `links`, the oldest first."""
        if "links" not in self.names:
            return []
        records = (_mapping(path) for path in (self.path / "links").glob("[!.]*.json"))
        return sorted((one for one in records if "job_id" in one), key=lambda one: float(one.get("time") or 0.0))

    @property
    def root(self) -> Path:
        """Where its jobs start: the tree as it was submitted, where that was kept, else the project."""
        snapshot = Path(str(self.submission.get("snapshot") or ROOT))
        return snapshot if snapshot.is_dir() else ROOT

    @property
    def stage(self) -> str:
        """The stage; empty where nothing tells."""
        return str(self.submission.get("stage") or self.config.get("stage") or "")

    @property
    def on_slurm(self) -> bool:
        """Whether Slurm runs it; else this machine, and its job's number is a process."""
        if "executor" in self.submission:
            return bool(self.submission["executor"] != "local")
        if self.config:
            return bool(_table(self.config, "cluster").get("executor") != "local")
        return not any(job.startswith("process-") for job in self.jobs)

    @property
    def log_dir(self) -> Path:
        """Where its logs are; below the project where its submission does not say."""
        given = self.submission.get("log_dir")
        return Path(str(given)) if given else ROOT / "logs" / self.name

    @property
    def time_limit(self) -> float | None:
        """Seconds that one job of it may run."""
        minutes = self.submission.get("minutes") or _table(self.config, "resources").get("time")
        return 60.0 * minutes if isinstance(minutes, int) else None

    def _read(self, name: str) -> dict[str, Any]:
        return _mapping(self.path / name) if name in self.names else {}


def _mapping(path: Path) -> dict[str, Any]:
    """A record; empty where it is gone, cannot be read or is none. One bad file must not hide the other runs."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _table(config: dict[str, Any], key: str) -> dict[str, Any]:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def find_runs(roots: Iterable[Path]) -> list[RunFolder]:
    """The run folders below some roots, the one that was active last first; a root may be a run folder itself.

    Each folder is listed once, and no file in it is read.
    """
    runs = [run for root in roots for run in _below(root, _DEPTH)]
    return sorted(runs, key=lambda run: run.active, reverse=True)


def _below(folder: Path, depth: int) -> Iterator[RunFolder]:
    try:
        with os.scandir(folder) as entries:
            listed = list(entries)
    except OSError:
        return
    names = frozenset(entry.name for entry in listed)
    if not names.isdisjoint(_MARKS):
        yield RunFolder(folder, names, max(_changed(listed), default=0.0))
        return
    if depth > 0:
        for entry in listed:
            if not entry.name.startswith(".") and entry.is_dir(follow_symlinks=False):
                yield from _below(Path(entry.path), depth - 1)


def _changed(listed: Sequence[os.DirEntry[str]]) -> Iterator[float]:
    for entry in listed:
        if entry.name in _ACTIVE or entry.name.startswith("journal-"):
            try:
                yield entry.stat().st_mtime
            except FileNotFoundError:
                continue


def choose_run(runs: Sequence[RunFolder], given: str) -> RunFolder:
    """The run that is meant by its name, the beginning of its name, its folder, or the number of a job of it.

    Raises:
        UserError: There is none, or there are several.
    """
    name = Path(given).name if "/" in given else given
    exact = [run for run in runs if run.name == name]
    found = exact or [run for run in runs if run.name.startswith(name)]
    if not found and re.fullmatch(r"[0-9]+(_[0-9]+)?", name):
        found = [run for run in runs if name in run.jobs]
    if len(found) == 1 or exact:
        return found[0]
    if found:
        shown = "\n  ".join(run.name for run in found[:8])
        more = f"\n  and {len(found) - 8} more" if len(found) > 8 else ""
        raise UserError(f"{given!r} is the beginning of {len(found)} runs; give more of the name:\n  {shown}{more}")
    if len(runs) <= 8:
        raise unknown("run", given, (run.name for run in runs))
    raise UserError(f"no run is named {given!r}, begins so, or has that job\n  next: python -m launch.jobs list --all")
