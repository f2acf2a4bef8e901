"""What is to be done for each stage: of a new pipeline everything, of one that stopped what is missing."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launch.jobs.folders import RunFolder, find_runs
from launch.jobs.view import ONGOING, RunView, look_at
from launch.pipeline.gates import GateView, jobs_of, look_at_gate, same_gate
from launch.pipeline.plan import Step
from launch.pipeline.record import Record, StepRecord
from launch.slurm import SlurmSilent, states
from launch.yaml_core import load_dumped
from tracking.errors import UserError
from tracking.gate.rules import SECTION

Action = Literal["new", "again", "gate", "leave", "skip"]
"""A new run; the same run once more; only the gate; nothing: it is under way; nothing: it has passed."""


@dataclass(frozen=True)
class Seen:
    """What a stage is now.

    Attributes:
        stage: The stage.
        record: What the pipeline has recorded of it; None where it was never submitted.
        view: Its run; None where there is no run folder.
        gate: Its gate.
    """

    stage: str
    record: StepRecord | None
    view: RunView | None
    gate: GateView

    @property
    def has_passed(self) -> bool:
        """Whether the run is complete, and its gate has passed."""
        return self.view is not None and self.view.word == "done" and self.gate.word == "passed"

    @property
    def has_failed(self) -> bool:
        """Whether nothing goes on here before somebody does something."""
        ended = self.view is not None and self.view.word in ("failed", "cancelled")
        return ended or self.gate.word in ("failed", "ended")


@dataclass(frozen=True)
class Decision:
    """What is done for a stage.

    Attributes:
        action: That.
        run: The run that it is done for.
        why: The reason, for the user.
    """

    action: Action
    run: str
    why: str = ""


def see(run_root: Path, record: Record) -> tuple[list[Seen], str | None]:
    """Looks at every stage of a pipeline, with two questions to Slurm for all.

    Returns:
        What each is, and what went wrong with Slurm; None where nothing did.
    """
    folders: dict[str, RunFolder] = {}
    for stage, step in record.steps.items():
        for run in find_runs([run_root / step.run]):
            folders[stage] = run
    views, problem = look_at(list(folders.values()), time.time())
    view_of = dict(zip(folders, views, strict=True))
    gates = [job for step in record.steps.values() for job in jobs_of(step.gate)]
    try:
        known = states(gates) if gates else {}
    except SlurmSilent as error:
        problem = problem or str(error).splitlines()[0]
        known = {}
    seen = []
    for stage in record.stages:
        own = record.steps.get(stage)
        gate = look_at_gate(own.gate, run_root / own.run, known) if own is not None else GateView("none")
        if problem is not None and gate.word == "ended":
            gate = GateView("unknown", problem, gate.job_id)
        seen.append(Seen(stage, own, view_of.get(stage), gate))
    return seen, problem


def decide(steps: Sequence[Step], seen: Sequence[Seen]) -> list[Decision]:
    """Decides what to do for each stage.

    Args:
        steps: The stages as they are asked for, with the runs that they had so far.
        seen: What each is now.

    Raises:
        UserError: A stage that goes on now would have to be changed, or nobody can tell what it does.
    """
    decisions: dict[str, Decision] = {}
    redone = False
    for step, now in zip(steps, seen, strict=True):
        own = _decide(step, now, decisions, redone=redone)
        decisions[step.stage] = own
        redone = redone or own.action in ("new", "again", "gate")
    return list(decisions.values())


def _decide(step: Step, now: Seen, earlier: Mapping[str, Decision], *, redone: bool) -> Decision:
    name, view, record = step.spec.name, now.view, now.record
    if record is None or view is None or not view.run.submission:
        return Decision("new", name)
    if view.word == "unknown" or now.gate.word == "unknown":
        raise UserError(
            f"{step.stage}: nobody can tell what {name} does ({now.gate.why or view.words})\n  next: try again later"
        )
    if view.word == "ends" and not now.gate.is_alive:
        raise UserError(f"{step.stage}: {name} is being stopped\n  next: the same command again in a moment")
    fresh = {one.stage for one in step.takes if earlier[one.stage].run != record.takes.get(one.stage)}
    changed = changes(step, view.run.path)
    asked_otherwise = now.gate.is_alive and not same_gate(step, record)
    if view.word in ("runs", "ends") and (changed or fresh or redone or asked_otherwise):
        what = ", ".join(changed) or "what is asked of it or of a stage before it"
        raise UserError(
            f"{step.stage} runs now ({name}), and {what} was changed\n"
            f"  next: wait for its end, or cancel it: python -m launch.jobs cancel {name}"
        )
    if fresh or changed:
        why = f"{', '.join(changed)} changed" if changed else f"{', '.join(sorted(fresh))} has a new run"
        return Decision("new", next_run(name), why)
    if view.word == "done":
        if now.gate.word == "passed" and same_gate(step, record):
            return Decision("skip", name, "passed")
        if now.gate.is_alive and same_gate(step, record) and not redone:
            return Decision("leave", name, "its gate is queued")
        return Decision("gate", name, "the run is complete")
    if view.word in ONGOING:
        if now.gate.is_alive and same_gate(step, record) and not redone:
            return Decision("leave", name, view.words)
        # A run that waits does so for a gate that is replaced now.
        return Decision("again" if redone else "gate", name, view.words)
    return Decision("again", name, view.words)


def changes(step: Step, run_dir: Path) -> list[str]:
    """The arguments in which a run was asked for something else; what it asks Slurm for may differ."""
    before = load_dumped(run_dir / "config.yaml")
    after = {step.stage: step.config.arguments, "tracking": step.config.tracking.model_dump(mode="json")}
    after[SECTION] = step.config.model_management or {}
    found = []
    for section, new in after.items():
        old = before.get(section) or {}
        found += [f"{section}.{key}" for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    return found


def next_run(name: str) -> str:
    """`lift-bc` becomes `lift-bc-2`, and that `lift-bc-3`."""
    match = re.fullmatch(r"(.*)-(\d+)", name)
    return f"{match[1]}-{int(match[2]) + 1}" if match else f"{name}-2"
