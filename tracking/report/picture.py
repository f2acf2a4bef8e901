"""All metrics of the runs in one PNG, to be copied from a cluster and looked at."""

from __future__ import annotations

import io
from typing import Any

from tracking.report.data import Run
from tracking.report.figures import COLOURS, STYLE, colour, draw, make_scene
from tracking.report.panels import make_groups
from tracking.words import many, when

_PANEL_INCHES = (4.6, 2.6)
_DPI = 110


def png_page(runs: list[Run], now: float) -> bytes:
    """Draws every metric of the runs into one PNG.

    Args:
        runs: The runs.
        now: When the report is made, seconds since the epoch.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups, left_out = make_groups(runs)
    scene = make_scene(runs, groups)
    panels = [panel for group in groups for panel in group.panels]
    columns = min(3, max(1, len(panels)))
    lines = -(-len(panels) // columns) or 1
    head = 0.5 + 0.2 * len(runs)
    width, height = max(columns, 2) * _PANEL_INCHES[0], head + lines * _PANEL_INCHES[1]
    buffer = io.BytesIO()
    with mpl.rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=(width, height), facecolor="white")
        _draw_head(figure, runs, left_out, now, height)
        for place, panel in enumerate(panels):
            line, column = divmod(place, columns)
            bottom = height - head - (line + 1) * _PANEL_INCHES[1] + 0.3
            axes = figure.add_axes(
                (
                    (column + 0.1) / columns,
                    bottom / height,
                    0.85 / columns,
                    (_PANEL_INCHES[1] - 0.8) / height,
                )
            )
            draw(axes, panel, scene)
            title = f"{panel.name}  ({panel.unit})" if panel.unit else panel.name
            title = printable(title if axes.get_yscale() == "linear" else f"{title}  log scale")
            axes.set_title(title, loc="left", pad=14, fontsize=8.5, weight="bold", parse_math=False)
        figure.savefig(buffer, format="png", dpi=_DPI)
    return buffer.getvalue()


def _draw_head(figure: Any, runs: list[Run], left_out: int, now: float, height: float) -> None:
    note = f"by train/step, made {when(now)}" + (f", {many(left_out, 'metric')} not drawn" if left_out else "")
    figure.text(0.012, 1 - 0.18 / height, note, color=COLOURS["faint"][0], va="top")
    for place, run in enumerate(runs):
        top = 1 - (0.42 + 0.2 * place) / height
        last = f"step {run.last_step:,}, {many(run.rows, 'row')}" if run.last_step is not None else "no rows yet"
        text = printable(f"{run.name}   {run.state.word}, {last}")
        figure.text(0.012, top, text, color=colour(place), va="top", weight="bold", fontsize=9.5, parse_math=False)


def printable(text: str) -> str:
    """A text that can be drawn: without control characters and halves of characters."""
    whole = text.encode("utf-8", "replace").decode()
    return "".join(letter if letter.isprintable() else " " for letter in whole)
