"""The page: what is computed for it, and its rendering with everything inside one file."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import yaml

from tracking import words
from tracking.report.data import Run, Series
from tracking.report.figures import COLOURS, RUN_COLOURS, last_values, make_scene, svg_panel
from tracking.report.panels import make_groups

_LISTED = 20


# A page stays under a few megabytes.
_MAX_IMAGE_BYTES = 200_000


@dataclass(frozen=True)
class Tile:
    """One number at the top of the page."""

    label: str
    value: str
    note: str


@dataclass(frozen=True)
class NotFinite:
    """The values of one metric that are not finite: how many, and the first of them as `step 120 NaN`."""

    metric: str
    count: int
    first: list[str]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation: success rate with its 95 % interval, episodes, and what else was logged with it."""

    step: int
    rate: str
    interval: str
    episodes: str
    others: dict[str, str]


@dataclass(frozen=True)
class Picture:
    """A metric's picture and what stands above it."""

    name: str
    unit: str
    svg: str
    logarithmic: bool
    last: list[tuple[int, str]]
    flagged: int


@dataclass(frozen=True)
class View:
    """A run as the page shows it."""

    run: Run
    letter: str
    place: int
    tiles: list[Tile]
    warnings: list[str]
    not_finite: list[NotFinite]
    evaluations: list[Evaluation]
    values: list[tuple[str, list[str]]]
    metadata: list[tuple[str, str]]
    config: str
    images: list[tuple[str, str]]


def html_page(runs: list[Run], now: float) -> bytes:
    """Renders the page.

    Args:
        runs: The runs, in the order of their colours.
        now: When the report is made, seconds since the epoch.

    Returns:
        One HTML file that loads nothing from anywhere.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("tracking.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "when": words.when,
        "size": words.size,
        "duration": words.duration,
        "many": words.many,
    }
    groups, left_out = make_groups(runs)
    scene = make_scene(runs, groups)
    pictures = []
    for group in groups:
        members = []
        for panel in group.panels:
            drawn = svg_panel(panel, scene)
            # matplotlib has escaped what stands in it.
            members.append(
                Picture(
                    name=panel.name,
                    unit=panel.unit,
                    svg=Markup(drawn.svg),
                    logarithmic=drawn.logarithmic,
                    last=last_values(panel),
                    flagged=sum(int(np.sum(~np.isfinite(curve.series.values))) for curve in panel.curves),
                )
            )
        pictures.append((group.title, members))
    text = environment.get_template("page.html.j2").render(
        views=[_view(run, place) for place, run in enumerate(runs)],
        groups=pictures,
        left_out=left_out,
        devices=any(curve.device for group in groups for panel in group.panels for curve in panel.curves),
        now=now,
        colours=COLOURS,
        run_colours=len(RUN_COLOURS),
        final=_final_values(runs) if len(runs) > 1 else [],
        differences=_differences(runs) if len(runs) > 1 else [],
    )
    return text.encode("utf-8", "replace")


def _view(run: Run, place: int) -> View:
    not_finite = [found for series in run.series.values() if (found := _not_finite(series)) is not None]
    return View(
        run=run,
        letter=chr(ord("A") + place),
        place=place % len(RUN_COLOURS),
        tiles=list(_tiles(run)),
        warnings=list(_warnings(run, not_finite)),
        not_finite=not_finite,
        evaluations=_evaluations(run),
        values=[(name, _summary(run.series[name])) for name in sorted(run.series)]
        + [(name, [text, "", "", ""]) for name, text in sorted(run.texts.items()) if name not in run.series],
        metadata=_metadata(run.metadata),
        config=yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True, width=100) if run.config else "",
        images=list(_images(run)),
    )


def _images(run: Run) -> Iterator[tuple[str, str]]:
    """The last image of each metric, as far as they are small: its name, and the picture as an address of its own."""
    for name, text in sorted(run.texts.items()):
        kind, _, place = text.partition(" ")
        path = run.folder / place
        if kind != "image" or path.suffix != ".png" or not path.is_file() or path.stat().st_size > _MAX_IMAGE_BYTES:
            continue
        yield name, f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _tiles(run: Run) -> Iterator[Tile]:
    if run.last_step is not None:
        begun = sum(attempt.host is not None for attempt in run.attempts)
        spent = sum(attempt.seconds for attempt in run.attempts)
        yield Tile("Step", f"{run.last_step:,}", f"{words.many(begun, 'attempt')}, {words.duration(spent)}")
    if (loss := run.series.get("loss/total")) is not None and len(loss.finite):
        best = int(np.nanargmin(np.where(np.isfinite(loss.values), loss.values, np.nan)))
        note = f"lowest {words.number(loss.values[best])} at step {loss.steps[best]:,.0f}"
        yield Tile("Loss", words.number(loss.finite[-1]), note)
    if evaluations := _evaluations(run):
        last = evaluations[-1]
        note = f"{last.interval}, {last.episodes} episodes" if last.interval else f"step {last.step:,}"
        yield Tile("Success", last.rate, note)
    if (speed := run.series.get("perf/samples_per_sec")) is not None and len(speed.finite):
        yield Tile("Samples a second", words.number(float(np.median(speed.finite))), "median")
    gpus = [series.finite for name, series in run.series.items() if _is_gpu(name, "utilization")]
    if gpus and len(together := np.concatenate(gpus)):
        peaks = [series.finite for name, series in run.series.items() if _is_gpu(name, "memory_peak_gb")]
        peak = np.concatenate(peaks) if peaks else np.empty(0)
        note = f"peak memory {words.number(peak.max())} GiB" if len(peak) else words.many(len(gpus), "GPU")
        yield Tile("GPU utilisation", f"{together.mean():.0f} %", note)
    whole = [checkpoint for checkpoint in run.checkpoints if checkpoint.fault is None]
    if whole:
        yield Tile("Checkpoint", f"step {whole[0].step:,}", f"{len(whole)} whole, {words.size(whole[0].size)} each")
    yield Tile("W&B", run.sync.title, "see Sync below")


def _is_gpu(name: str, what: str) -> bool:
    return name.startswith("gpu/") and name.endswith(f"/{what}")


def _warnings(run: Run, not_finite: list[NotFinite]) -> Iterator[str]:
    if run.state.level in ("warn", "bad"):
        yield run.state.text
    for found in not_finite:
        yield f"{found.metric} has {words.many(found.count, 'value')} that are not finite: {', '.join(found.first[:3])}"
    for checkpoint in run.checkpoints:
        if checkpoint.fault is not None:
            yield f"checkpoint {checkpoint.name} is not whole: {checkpoint.fault}"
    if run.problems:
        yield f"{words.many(len(run.problems), 'remark')} on the journal and the run's files, listed below"


def _not_finite(series: Series) -> NotFinite | None:
    places = np.flatnonzero(~np.isfinite(series.values))
    if not len(places):
        return None
    first = [f"step {series.steps[place]:,.0f} {words.number(series.values[place])}" for place in places[:_LISTED]]
    return NotFinite(series.name, len(places), first)


def _evaluations(run: Run) -> list[Evaluation]:
    """The rows that hold a success rate, in their order."""
    rates = run.series.get("eval/success_rate")
    if rates is None:
        return []
    by_row = {
        name: dict(zip(series.rows, series.values, strict=True))
        for name, series in run.series.items()
        if name.startswith("eval/")
    }
    shown = []
    for row, step, rate in zip(rates.rows, rates.steps, rates.values, strict=True):
        here = {name.removeprefix("eval/"): values[row] for name, values in by_row.items() if row in values}
        here.pop("success_rate")
        low, high = here.pop("success_rate_low", None), here.pop("success_rate_high", None)
        episodes = here.pop("episodes", None)
        shown.append(
            Evaluation(
                step=int(step),
                rate=words.percent(rate),
                interval=f"{100 * low:.0f}-{100 * high:.0f} %" if low is not None and high is not None else "",
                episodes=f"{episodes:.0f}" if episodes is not None else "?",
                others={name: words.number(value) for name, value in sorted(here.items())},
            )
        )
    return shown


def _summary(series: Series) -> list[str]:
    finite = series.finite
    if not len(finite):
        return [*[words.NOTHING] * 3, f"{len(series.values):,}"]
    return [*map(words.number, (finite[-1], finite.min(), finite.max())), f"{len(series.values):,}"]


def _metadata(segments: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Flat names and values of the last attempt; what an earlier one had otherwise stands behind."""
    flat = [dict(_flatten(segment)) for segment in segments]
    rows = []
    for name in flat[-1] if flat else ():
        value = flat[-1][name]
        earlier = list(dict.fromkeys(one[name] for one in flat[:-1] if name in one and one[name] != value))
        rows.append((name, value + (f"  (earlier: {', '.join(earlier[-3:])})" if earlier else "")))
    return rows


def _flatten(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _flatten(item, f"{prefix}{key}.")
        elif item is not None:
            yield f"{prefix}{key}", {True: "yes", False: "no"}[item] if isinstance(item, bool) else str(item)


def _final_values(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """The last finite value of every metric in each run."""
    names = sorted({name for run in runs for name in run.series})
    rows = []
    for name in names:
        finite = [run.series[name].finite if name in run.series else np.empty(0) for run in runs]
        rows.append((name, [words.number(values[-1]) if len(values) else words.NOTHING for values in finite]))
    return rows


def _differences(runs: list[Run]) -> list[tuple[str, list[str]]]:
    """The settings in which the runs' configurations differ."""
    flat = [dict(_flatten(run.config)) for run in runs]
    names = sorted({name for one in flat for name in one})
    rows = ((name, [one.get(name, words.NOTHING) for one in flat]) for name in names)
    return list(islice((row for row in rows if len(set(row[1])) > 1), 100))
