"""A pipeline on the screen."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launch.pipeline.decisions import Decision, Seen
from launch.pipeline.record import Record
from launch.places import default_cluster, run_root
from tracking.files import read_json
from tracking.words import NOTHING

if TYPE_CHECKING:
    from rich.console import RenderableType

_COLOURS = {
    **{"runs": "green", "done": "dim", "failed": "red", "stuck": "yellow", "cancelled": "red", "waits": "yellow"},
    **{"passed": "green", "ended": "red"},
}
_ACTIONS = {
    "new": "new run",
    "again": "same run, again",
    "gate": "gate only",
    "leave": "left alone",
    "skip": "skipped",
}


def place(where: Path, cluster: str) -> str:
    """The options by which a command of this shell finds a run root; to be asked before this process enters the lab."""
    at = "" if where == run_root(cluster) else f" --root {shlex.quote(str(where))}"
    return f"{'' if cluster == default_cluster() else f' --cluster {cluster}'}{at}"


def status(record: Record, seen: Sequence[Seen], at: str) -> RenderableType:
    """The stages as a table, below it why and what to do."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for name in ("stage", "run", "job", "state", "gate", "asked for"):
        table.add_column(name, no_wrap=name in ("stage", "job", "state", "gate"), overflow="fold")
    for one in seen:
        state, gate = _state(one, seen), one.gate.word if one.gate.word != "none" else NOTHING
        table.add_row(
            one.stage,
            Text(one.record.run if one.record is not None else NOTHING),
            (one.view.job_id if one.view is not None else None) or NOTHING,
            Text(state, style=_COLOURS.get(state, "")),
            Text(_gate(one, seen) or gate, style=_COLOURS.get(gate, "")),
            "; ".join(_condition(condition) for condition in record.conditions.get(one.stage, ())) or NOTHING,
        )
    lines = [Text(line, overflow="fold") for line in notes(record, seen, at)]
    results = [found for one in seen if (found := _policies(one)) is not None]
    return Group(Text(f"pipeline {record.name} on {record.cluster}", style="bold"), table, *lines, *results)


def _policies(one: Seen) -> RenderableType | None:
    """What an evaluation of several policies has found; None before its end, and of one policy."""
    if one.view is None or one.view.run.done is None:
        return None
    results = read_json(one.view.run.path / "evaluation.json") or {}
    if len(results) < 2:
        return None
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    trials = next(iter(results.values()))["trials"]
    title = Text(f"{one.stage}: the policies on the same {trials} seeds", style="bold")
    table = Table(box=None, pad_edge=False)
    table.add_column("policy", overflow="fold")
    for name in ("success", "95 %", "steps", "against the first"):
        table.add_column(name, no_wrap=True)
    for name, found in results.items():
        low, high = found["interval_95"]
        against = found.get("against")
        table.add_row(
            Text(name),
            f"{found['successes']}/{found['trials']}",
            f"{100 * low:.0f}-{100 * high:.0f} %",
            f"{found['mean_length']:.0f}",
            f"+{against['better']} -{against['worse']}, p {against['p_holm']:.2g}" if against else "",
        )
    return Group(title, table)


def _condition(one: dict[str, float | str]) -> str:
    signs = (("min", ">="), ("max", "<="))
    return ", ".join(f"{one['metric']} {sign} {one[bound]:g}" for bound, sign in signs if bound in one)


def _state(one: Seen, seen: Sequence[Seen]) -> str:
    if one.view is None:
        return NOTHING
    if one.view.word == "cancelled" and not one.view.run.has_begun and _blocker(one, seen) is not None:
        return "not begun"
    return one.view.word


def _gate(one: Seen, seen: Sequence[Seen]) -> str:
    return NOTHING if one.gate.word == "ended" and _blocker(one, seen) is not None else ""


def _blocker(one: Seen, seen: Sequence[Seen]) -> Seen | None:
    """The first stage before this one at which the pipeline stopped."""
    before = list(seen)[: list(seen).index(one)]
    return next((earlier for earlier in before if earlier.has_failed), None)


def notes(record: Record, seen: Sequence[Seen], at: str) -> Iterator[str]:
    """Why a gate passed or failed, why a stage waits or ended, and the next command."""
    again = f"python -m launch.pipeline run --resume {record.name}{at}"
    for one in seen:
        if one.gate.why and one.gate.word != "ended":
            yield f"{one.stage}: gate {one.gate.word}: {one.gate.why}"
        if one.view is None or _blocker(one, seen) is not None:
            continue
        if one.view.word not in ("done", "submitting"):
            yield f"{one.stage}: {one.view.words}"
        if one.gate.word == "ended":
            yield f"{one.stage}: gate: {one.gate.why}"
    stopped = next((one for one in seen if one.has_failed), None)
    if stopped is not None and stopped.view is not None and stopped.record is not None:
        if stopped.view.word in ("failed", "cancelled"):
            yield f"next: python -m launch.jobs explain {stopped.record.run}{at}"
        yield f"next: with --min, --max or --set for what is to differ: {again}"
    elif any(one.record is None or one.record.gate is None or one.record.gate.job_id is None for one in seen):
        yield f"next: it was not submitted to the end: {again}"
    elif all(one.has_passed for one in seen):
        yield "all gates passed"
    else:
        current = next(one for one in seen if not one.has_passed)
        name = current.record.run if current.record is not None else ""
        yield f"next: python -m launch.jobs status {name}{at}"


def plan(stages: Sequence[str], decisions: Sequence[Decision]) -> Iterator[str]:
    """What is to be done for each stage, a line each."""
    for stage, one in zip(stages, decisions, strict=True):
        yield f"{stage:<8} {_ACTIONS[one.action]}: {one.run}{f' ({one.why})' if one.why else ''}"
