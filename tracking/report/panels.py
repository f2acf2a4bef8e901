"""Which curves share a picture, and how many points of them are drawn."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tracking.report.data import Floats, Run, Series

MAX_PANELS = 60
"""More pictures than that make the page slow to read and to write; the table of values has every metric."""

_NAMESPACES = {
    "loss": "Loss",
    "train": "Training",
    "eval": "Evaluation",
    "dagger": "DAgger",
    "perf": "Throughput",
    "gpu": "GPU",
}
_UNITS = {
    "perf/steps_per_sec": "steps/s",
    "perf/samples_per_sec": "samples/s",
    "gpu/utilization": "%",
    "gpu/memory_used_gb": "GiB",
    "gpu/memory_peak_gb": "GiB",
    "gpu/temperature": "°C",
}
_DEVICE = re.compile(r"gpu/(\d+)/(.+)")
_BOUNDS = ("_low", "_high")
# What a reader looks for first in its namespace.
_FIRST = {"loss/total", "eval/success_rate", "perf/samples_per_sec", "gpu/utilization"}
# Tables show these; a curve of it would be a straight line.
_NOT_DRAWN = {"eval/episodes"}
_MAX_POINTS = 12_000
_MAX_NOT_FINITE = 60


@dataclass(frozen=True)
class Curve:
    """One metric of one run in a picture.

    Attributes:
        run: The run's place among those of the report.
        device: The GPU's number, where a run has several.
        series: Steps and values.
        low: The interval's lower ends, shape [n], NaN where a row has none; None for a metric without intervals.
        high: Its upper ends.
    """

    run: int
    device: str | None
    series: Series
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Panel:
    """One picture: a metric, of every run that has it."""

    name: str
    unit: str
    curves: list[Curve]


@dataclass(frozen=True)
class Group:
    """The pictures of one namespace."""

    title: str
    panels: list[Panel]


def make_groups(runs: list[Run]) -> tuple[list[Group], int]:
    """Sorts all metrics into pictures.

    Returns:
        The namespaces in reading order, and how many metrics found no place.
    """
    panels: dict[str, list[Curve]] = {}
    for number, run in enumerate(runs):
        for name in sorted(run.series, key=_natural):
            if name in _NOT_DRAWN or _is_bound(name, run):
                continue
            device = _DEVICE.fullmatch(name)
            curve = _curve(run, number, name, device[1] if device else None)
            panels.setdefault(f"gpu/{device[2]}" if device else name, []).append(curve)
    names = sorted(panels, key=lambda name: (_rank(name), _natural(name)))
    groups: dict[str, list[Panel]] = {}
    for name in names[:MAX_PANELS]:
        groups.setdefault(_title(name), []).append(Panel(name, _UNITS.get(name, ""), panels[name]))
    return [Group(title, members) for title, members in groups.items()], max(0, len(names) - MAX_PANELS)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts `gpu/10` behind `gpu/9`, and what matters most to the front."""
    parts = [(int(part), "") if part.isdecimal() else (0, part) for part in re.split(r"([0-9]+)", name)]
    return [(0 if name in _FIRST else 1, ""), *parts]


def _title(name: str) -> str:
    namespace = name.split("/", 1)[0] if "/" in name else "Other"
    return _NAMESPACES.get(namespace, namespace)


def _rank(name: str) -> tuple[int, str]:
    titles = list(_NAMESPACES.values())
    title = _title(name)
    return (titles.index(title), "") if title in titles else (len(titles), title)


def _is_bound(name: str, run: Run) -> bool:
    ends = [name.removesuffix(suffix) for suffix in _BOUNDS if name.endswith(suffix)]
    return any(all(f"{stem}{suffix}" in run.series for suffix in ("", *_BOUNDS)) for stem in ends)


def _curve(run: Run, number: int, name: str, device: str | None) -> Curve:
    series = run.series[name]
    low, high = (run.series.get(f"{name}{suffix}") for suffix in _BOUNDS)
    if low is None or high is None:
        return Curve(number, device, series)
    return Curve(number, device, series, _at_rows(low, series.rows), _at_rows(high, series.rows))


def _at_rows(series: Series, rows: Floats) -> Floats:
    """The values of another metric in the same rows, NaN where a row lacks it."""
    places = np.minimum(np.searchsorted(series.rows, rows), len(series.rows) - 1)
    values: Floats = np.where(series.rows[places] == rows, series.values[places], np.nan)
    return values


@dataclass(frozen=True)
class Line:
    """What is drawn of a curve.

    Attributes:
        steps: Where, shape [m], never decreasing.
        values: The values, or the mean of each bin; NaN breaks the line.
        low: The lowest value of each bin; None where every value is drawn.
        high: The highest value of each bin.
    """

    steps: Floats
    values: Floats
    low: Floats | None
    high: Floats | None


def bins_for(curves: int) -> int:
    """How many bins a curve gets, so that a page stays under a megabyte whatever it shows."""
    return int(np.clip(_MAX_POINTS // max(curves, 1), 40, 280))


def split_rollbacks(series: Series) -> tuple[Series, Series]:
    """Separates what counts from what a later attempt has trained again.

    Returns:
        The series without the steps that come again later, which never goes back, and those steps.
    """
    lowest_ahead = np.minimum.accumulate(series.steps[::-1])[::-1]
    counts = series.steps <= lowest_ahead
    return _only(series, counts), _only(series, ~counts)


def _only(series: Series, kept: NDArray[np.bool_]) -> Series:
    return Series(series.name, series.rows[kept], series.steps[kept], series.values[kept])


def thin(steps: Floats, values: Floats, bins: int) -> Line:
    """Makes many points few: mean, lowest and highest value of each bin of steps, so that no spike is lost.

    Args:
        steps: Shape [n], never decreasing.
        values: Shape [n]; what is not finite is left out, and a bin of nothing else breaks the line.
        bins: How many bins at most. Up to twice as many points are drawn one by one.
    """
    finite = np.isfinite(values)
    # Beyond that the limits of an axis overflow.
    values = np.where(finite, np.clip(values, -1e200, 1e200), np.nan)
    if len(steps) <= 2 * bins:
        return Line(steps, values, None, None)
    edges = np.linspace(steps[0], steps[-1], bins + 1)
    places = np.minimum(np.searchsorted(edges, steps, side="right"), bins)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    count = np.add.reduceat(finite.astype(float), starts)
    total = np.add.reduceat(np.where(finite, values, 0.0), starts)
    mean = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return Line(steps[starts], mean, np.fmin.reduceat(values, starts), np.fmax.reduceat(values, starts))


def not_finite_steps(series: Series) -> Floats:
    """Where a curve is flagged for a value that is not finite; a few dozen places at most."""
    steps: Floats = np.unique(series.steps[~np.isfinite(series.values)])
    if len(steps) > _MAX_NOT_FINITE:
        steps = steps[np.linspace(0, len(steps) - 1, _MAX_NOT_FINITE).astype(int)]
    return steps
