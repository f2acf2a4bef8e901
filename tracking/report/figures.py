"""The pictures: one a metric, as SVG for the page."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tracking.report.data import Attempt, Run
from tracking.report.panels import Curve, Group, Line, Panel, bins_for, not_finite_steps, thin
from tracking.report.panels import split_rollbacks as split
from tracking.words import NOTHING, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Transform

RUN_COLOURS = {
    "run-0": ("#2563c9", "#6ea8ff"),
    "run-1": ("#d9650b", "#ffa057"),
    "run-2": ("#12855c", "#45c996"),
    "run-3": ("#8a49c2", "#c396f0"),
    "run-4": ("#b8860b", "#e3bd4c"),
    "run-5": ("#c2417f", "#f28cbb"),
    "run-6": ("#0e8296", "#4fc6da"),
    "run-7": ("#6b5b4d", "#b9a797"),
}
"""One colour a run, on a light ground and on a dark one."""

COLOURS = {
    "ink": ("#1b2430", "#e6eaf0"),
    "faint": ("#66707e", "#98a3b3"),
    "rule": ("#e1e5eb", "#2c3440"),
    "alarm": ("#c4242f", "#ff7b82"),
    **RUN_COLOURS,
}
"""What the pictures are drawn with; a page's SVG names them as CSS variables, so that they follow its theme."""

_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)))
MAX_RUNS = len(RUN_COLOURS) * len(_DASHES)

STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 7,
    "svg.fonttype": "none",
    "path.simplify": False,
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
}
_PANEL_INCHES = (4.0, 1.95)
# Ratio of the highest to the lowest value from which a loss is drawn on a logarithmic axis.
_LOG_RATIO = 100.0
_MANY_INTERVALS = 60
_FEW_POINTS, _VERY_FEW_POINTS = 40, 12
# A label's width as a share of a picture's: one character, and the room between two labels.
_CHARACTER, _BETWEEN = 0.0145, 0.02


@dataclass(frozen=True)
class Border:
    """Where an attempt took over.

    Attributes:
        run: The run's place among those of the report.
        step: The training step.
        label: What stands above the line; empty where there is no room.
    """

    run: int
    step: float
    label: str


@dataclass(frozen=True)
class Scene:
    """What all pictures of a report share.

    Attributes:
        first: The lowest step of all runs.
        last: The highest.
        borders: Where attempts took over.
        runs: How many runs there are.
        bins: How many bins a curve gets.
    """

    first: float
    last: float
    borders: list[Border]
    runs: int
    bins: int


def colour(run: int) -> str:
    """The colour of a run on a light ground."""
    return RUN_COLOURS[f"run-{run % len(RUN_COLOURS)}"][0]


def make_scene(runs: list[Run], groups: list[Group]) -> Scene:
    """Finds the common axis and the borders of the attempts."""
    steps = [series.steps for run in runs for series in run.series.values()]
    first = min((float(one.min()) for one in steps), default=0.0)
    last = max((float(one.max()) for one in steps), default=1.0)
    curves = sum(len(panel.curves) for group in groups for panel in group.panels)
    span = (first, max(last, first + 1))
    borders = [border for place, run in enumerate(runs) for border in _borders(place, run.attempts, span, len(runs))]
    return Scene(*span, borders, len(runs), bins_for(curves))


def _borders(run: int, attempts: Sequence[Attempt], span: tuple[float, float], runs: int) -> list[Border]:
    begun = [attempt for attempt in attempts if attempt.host is not None]
    borders = [(float(attempt.border), attempt.label) for attempt in begun[1:] if attempt.border is not None]
    if runs > 1:
        return [Border(run, step, "") for step, _ in borders]
    labelled, free_from = [], -1.0
    for step, label in borders:
        place, width = (step - span[0]) / (span[1] - span[0]), len(label) * _CHARACTER
        has_room = place - width / 2 >= free_from
        labelled.append(Border(run, step, label if has_room else ""))
        free_from = place + width / 2 + _BETWEEN if has_room else free_from
    return labelled


@dataclass(frozen=True)
class Drawn:
    """A picture for the page, and whether its axis is logarithmic."""

    svg: str
    logarithmic: bool


def svg_panel(panel: Panel, scene: Scene) -> Drawn:
    """Draws one metric as an SVG element without a size of its own.

    Text stays text in the page's font, colours are the page's CSS variables, and ids are the picture's own.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    # The salt makes ids the same each time and keeps those of two pictures apart.
    with mpl.rc_context({**STYLE, "svg.hashsalt": ascii(panel.name)}):
        figure = Figure(figsize=_PANEL_INCHES)
        axes = figure.add_axes((0.105, 0.125, 0.875, 0.775))
        draw(axes, panel, scene)
        figure.patch.set_visible(False)
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return Drawn(_for_page(buffer.getvalue()), logarithmic=axes.get_yscale() == "log")


def _for_page(text: str) -> str:
    variables = {light: f"var(--{name})" for name, (light, _) in COLOURS.items()}
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    # A style element in an inline SVG would apply to the whole page.
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text)
    text = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\d+\.\d)\d+", r"\1", path[0]), text)
    text = re.sub(r"#[0-9a-f]{6}\b", lambda found: variables.get(found[0], found[0]), text)
    return re.sub(r"\s*\n\s*", "\n", text)


def draw(axes: Axes, panel: Panel, scene: Scene) -> None:
    """Draws one metric of every run that has it, with the borders of the attempts."""
    _prepare(axes, scene)
    finite = [curve.series.finite for curve in panel.curves]
    values = np.concatenate(finite) if finite else np.empty(0)
    if _is_logarithmic(panel.name, values):
        from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=6))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    devices = sorted({curve.device for curve in panel.curves if curve.device is not None}, key=int)
    for curve in panel.curves:
        place = devices.index(curve.device) if curve.device is not None else 0
        _draw_curve(axes, curve, scene, alpha=1.0 - 0.65 * place / max(len(devices) - 1, 1))
    _limit(axes, panel.name, values)


def _prepare(axes: Axes, scene: Scene) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    rule, faint = COLOURS["rule"][0], COLOURS["faint"][0]
    axes.patch.set_visible(False)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(rule)
    axes.tick_params(length=0, which="both", colors=faint, pad=3)
    axes.grid(axis="y", color=rule, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.get_offset_text().set_color(faint)
    axes.ticklabel_format(axis="y", scilimits=(-3, 5), useOffset=False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short_step(value, scene.last)))
    margin = 0.015 * (scene.last - scene.first)
    axes.set_xlim(scene.first - margin, scene.last + margin)
    for border in scene.borders:
        line = faint if scene.runs == 1 else colour(border.run)
        axes.axvline(border.step, color=line, linewidth=0.7, linestyle=(0, (3, 2.5)), zorder=1)
        if border.label:
            place = (border.step, 1.015)
            axes.annotate(
                border.label,
                place,
                xycoords=axes.get_xaxis_transform(),
                ha="center",
                va="bottom",
                color=faint,
                fontsize=6,
                parse_math=False,
            )


def short_step(step: float, last: float) -> str:
    """A step on an axis that ends at `last`: `500`, `20k`, `1.5M`."""
    if last >= 2e6:
        return f"{step / 1e6:g}M" if step else "0"
    return f"{step / 1e3:g}k" if last >= 1e4 and step else f"{step:g}"


def _draw_curve(axes: Axes, curve: Curve, scene: Scene, alpha: float) -> None:
    ink, dash = colour(curve.run), _DASHES[curve.run // len(RUN_COLOURS)]
    series, again = split(curve.series)
    line = thin(series.steps, series.values, scene.bins)
    if curve.low is not None and curve.high is not None:
        _draw_intervals(axes, curve, ink, scene)
    elif line.low is not None and line.high is not None:
        axes.fill_between(line.steps, line.low, line.high, color=ink, alpha=0.28 * alpha, linewidth=0.5)
    # Each value is marked where a line alone would hide how few they are, or would not show at all.
    few = len(line.steps) <= _FEW_POINTS or _has_lonely_points(line)
    axes.plot(
        line.steps,
        line.values,
        transform=_aside(axes, curve, scene) if curve.low is not None else axes.transData,
        color=ink,
        alpha=alpha,
        linewidth=1.2,
        linestyle=dash,
        marker="o" if few else "",
        markersize=3.4 if curve.low is not None or len(line.steps) <= _VERY_FEW_POINTS else 2.0,
        markeredgewidth=0,
        solid_joinstyle="round",
    )
    if len(again.steps):
        kept = slice(None, None, max(1, len(again.steps) // (2 * scene.bins)))
        steps, values = _with_gaps(again.steps[kept], again.values[kept])
        axes.plot(steps, values, color=ink, alpha=0.35, linewidth=1.0, marker="o", markersize=1.2, markeredgewidth=0)
    flagged = not_finite_steps(curve.series)
    if len(flagged):
        axes.plot(
            flagged,
            np.full(len(flagged), 0.03),
            transform=axes.get_xaxis_transform(),
            color=COLOURS["alarm"][0],
            linestyle="",
            marker="x",
            markersize=4,
            markeredgewidth=1.1,
            zorder=4,
        )


def _has_lonely_points(line: Line) -> bool:
    there = np.concatenate([[False], np.isfinite(line.values), [False]])
    return bool(np.any(there[1:-1] & ~there[:-2] & ~there[2:]))


def _with_gaps(steps: Any, values: Any) -> tuple[Any, Any]:
    """Breaks a line where its steps go back."""
    breaks = np.flatnonzero(np.diff(steps) < 0) + 1
    return np.insert(steps, breaks, np.nan), np.insert(values, breaks, np.nan)


def _draw_intervals(axes: Axes, curve: Curve, ink: str, scene: Scene) -> None:
    assert curve.low is not None and curve.high is not None
    steps, values = curve.series.steps, curve.series.values
    if len(steps) > _MANY_INTERVALS:
        axes.fill_between(steps, curve.low, curve.high, color=ink, alpha=0.2, linewidth=0)
        return
    below, above = np.fmax(values - curve.low, 0), np.fmax(curve.high - values, 0)
    bars = axes.errorbar(steps, values, yerr=[below, above], fmt="none", ecolor=ink, elinewidth=1.4, alpha=0.55)
    for lines in bars.lines[2]:
        lines.set_transform(_aside(axes, curve, scene))


def _aside(axes: Axes, curve: Curve, scene: Scene) -> Transform:
    """Moves a run's evaluations aside by a few points, so that those of several runs do not hide one another."""
    from matplotlib.transforms import ScaledTranslation

    figure = axes.get_figure()
    assert figure is not None
    inches = (curve.run - (scene.runs - 1) / 2) * 4 / 72
    return axes.transData + ScaledTranslation(inches, 0, figure.dpi_scale_trans)


def _is_logarithmic(name: str, values: Any) -> bool:
    falls = name.startswith("loss/") or name == "train/grad_norm"
    return bool(falls and len(values) and values.min() > 0 and values.max() / values.min() >= _LOG_RATIO)


def _limit(axes: Axes, name: str, values: Any) -> None:
    """Gives shares and percentages their whole range, and rates and sizes an axis from zero."""
    low, high = (values.min(), values.max()) if len(values) else (0.0, 0.0)
    whole = 1.0 if name.endswith("_rate") else 100.0 if name == "gpu/utilization" else None
    if not len(values):
        axes.set_yticks([])
    elif whole is not None and low >= 0 and high <= whole:
        axes.set_ylim(-0.04 * whole, 1.04 * whole)
        axes.set_yticks(np.linspace(0, whole, 5))
    elif name.startswith(("perf/", "gpu/memory")) and low >= 0 and high > 0:
        axes.set_ylim(0, 1.08 * high)


def last_values(panel: Panel) -> list[tuple[int, str]]:
    """What stands beside a picture's name: the last finite value of each curve, with the run's place."""
    shown = []
    for curve in panel.curves:
        finite = curve.series.finite
        value = number(float(finite[-1])) if len(finite) else NOTHING
        shown.append((curve.run, f"{curve.device}: {value}" if curve.device is not None else value))
    return shown
