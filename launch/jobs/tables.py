"""What the commands print: runs as a table, one run as a sheet, and the whole story of one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from launch.jobs.causes import lines_around
from launch.jobs.view import RunView
from tracking.words import NOTHING, clock, duration, many, number, percent, when

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from launch.slurm import JobState

_COLOURS = {"runs": "green", "done": "dim", "failed": "red", "stuck": "red", "cancelled": "dim", "waits": "yellow"}
# Which metric stands for a run in a list, by the beginning of its name: the first one that it has.
_FIRST = ("eval/success_rate", "eval/", "loss/total", "loss/", "train/")
_WIDE = 110
_GAP = 2
_LEAST_NAME = 16
_TAIL = len("_HHMMSS_abcdef0")
_SHEET_METRICS = 12


def run_table(views: Sequence[RunView], now: float, width: int) -> Table:
    """The runs, one a line; what a narrow terminal has no room for is left out."""
    from rich.table import Table
    from rich.text import Text

    wide = width >= _WIDE
    names = ["job", "state", "job no", "step", *(["steps/s"] if wide else []), "ends", "metric", "W&B"]
    rows = [_cells(view, now, wide) for view in views]
    room = _room(names, rows, width)
    if room < _LEAST_NAME:
        # A metric is what a run can be told from the others without.
        without = names.index("metric")
        names, rows = _without(names, without), [_without(row, without) for row in rows]
        room = max(_LEAST_NAME, _room(names, rows, width))
    table = Table(box=None, pad_edge=False)
    table.add_column("run", no_wrap=True)
    for at, name in enumerate(names):
        table.add_column(name, justify="left" if at < 2 else "right", no_wrap=True)
    for view, (job, state, *rest) in zip(views, rows, strict=True):
        # Text, because a run's name may hold what rich takes for markup.
        run = Text(_shortened(view.run.name, room), overflow="ellipsis")
        table.add_row(run, job, Text(state, style=_COLOURS.get(state, "")), *rest)
    return table


def _cells(view: RunView, now: float, wide: bool) -> list[str]:
    rate = (_rate(view),) if wide else ()
    cells = (view.job_id or NOTHING, view.word, _segment(view), _step(view, wide), *rate)
    return [*cells, _ends(view, now), _metric(view, wide), _lag(view)]


def _room(names: list[str], rows: list[list[str]], width: int) -> int:
    """What the other columns leave for the runs' names."""
    return width - sum(max(map(len, column)) + _GAP for column in zip(names, *rows, strict=True))


def _without(cells: list[str], at: int) -> list[str]:
    return [*cells[:at], *cells[at + 1 :]]


def _shortened(name: str, room: int) -> str:
    """A name without its middle, where it is too long: runs of a kind differ at the end, in time and commit."""
    if len(name) <= room:
        return name
    tail = min(_TAIL, room - 4)
    return f"{name[: room - tail - 1]}…{name[len(name) - tail :]}"


def notes(views: Sequence[RunView]) -> Iterator[str]:
    """What a table has no room for: why runs wait, and why they failed; the same words once."""
    told: dict[str, list[str]] = {}
    for view in views:
        if view.word in ("waits", "stuck", "failed", "unknown", "submitting") or (view.word == "runs" and view.advice):
            told.setdefault(view.words, []).append(view.job_id or view.run.name)
    for words, jobs in told.items():
        listed = ", ".join(jobs[:4]) + (f" and {len(jobs) - 4} more" if len(jobs) > 4 else "")
        yield f"{listed}: {words}"


def sheet(view: RunView, now: float) -> Table:
    """One run, with all that is known of it."""
    from rich.table import Table
    from rich.text import Text

    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for name, words in _lines(view, now):
        table.add_row(name, Text(words, style=_COLOURS.get(view.word, "") if name == "state" else ""))
    return table


def _lines(view: RunView, now: float) -> Iterator[tuple[str, str]]:
    run, progress = view.run, view.progress
    yield "run", run.name
    yield "state", view.words
    if view.advice:
        yield "next", view.advice
    if view.is_ongoing and view.cause is not None:
        yield "before", f"{view.cause}; {view.cause.fix}"
    if view.job_id:
        yield "job", view.job_id + (f" ({_request(view)})" if _request(view) else "")
    if view.segment > 1 or (view.of or 1) > 1:
        yield "job no", _segment(view)
    if progress.round is not None:
        yield "round", str(progress.round)
    if progress.step is not None:
        yield "step", _progress(view, now)
    if progress.metrics:
        yield "metrics", _metrics(view)
    if progress.rows:
        yield "W&B", _sync(view)
    for index, attempt in enumerate(run.attempts[-3:]):
        words = f"{attempt.get('key')} {attempt.get('outcome')}: {attempt.get('reason')}"
        yield "attempts" if index == 0 else "", words
    yield "folder", str(run.path)
    yield "logs", str(run.log_dir)


def story(view: RunView, now: float) -> Iterator[RenderableType]:
    """Why the run is where it is: what Slurm says, what its attempts came to, and the lines of the log."""
    from rich.text import Text

    yield Text(f"{view.run.name} {view.words}.")
    if view.is_ongoing and view.cause is not None:
        yield Text(f"Its last attempt failed: {view.cause}. What to do: {view.cause.fix}.")
    if view.advice:
        yield Text(f"What to do: {view.advice}.")
    if (job := view.job) is not None:
        yield Text("")
        yield Text("What Slurm says", style="bold")
        for line in _slurm_words(job, view, now):
            yield _indented(line)
    if view.run.attempts:
        yield Text("")
        yield Text("What its attempts came to", style="bold")
        for attempt in view.run.attempts:
            time, code = attempt.get("time"), attempt.get("exit_code")
            at = clock(float(time), now) if isinstance(time, int | float) else NOTHING
            reason = str(attempt.get("reason"))
            exit_code = f" (exit code {code})" if code is not None and f"exit code {code}" not in reason else ""
            yield _indented(f"{at}  {attempt.get('key')}  {attempt.get('outcome')}: {reason}{exit_code}")
    if view.cause is not None and (lines := lines_around(view.cause)):
        yield Text("")
        rank = f" of rank {view.cause.rank}" if view.cause.rank is not None else ""
        yield Text(f"The log{rank}: {view.cause.log}", style="bold", overflow="fold")
        for line in lines:
            mark = "bold" if " ".join(line.split()) == view.cause.line else "dim"
            yield _indented(line, style=mark, no_wrap=True)


def _indented(words: str, style: str = "", *, no_wrap: bool = False) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    table = Table.grid()
    table.add_row("  ", Text(words, style=style, no_wrap=no_wrap, overflow="ellipsis" if no_wrap else "fold"))
    return table


def _slurm_words(job: JobState, view: RunView, now: float) -> Iterator[str]:
    code = f", exit code {job.exit_code}" if job.exit_code else ""
    by_signal = f", signal {job.signal}" if job.signal else ""
    reason = f", reason {job.reason}" if job.reason else ""
    yield f"job {job.job_id}: {job.state}{reason}{code}{by_signal}"
    if request := _request(view):
        yield request
    has_started = job.start is not None and job.start <= now
    begins, ends = "started" if has_started else "expected to start", "to end by" if view.is_ongoing else "ended"
    times = (("submitted", job.submit), (begins, job.start), (ends, job.end if has_started else None))
    if told := [f"{name} {clock(time, now)}" for name, time in times if time is not None]:
        yield ", ".join(told)
    if job.restarts:
        yield f"requeued {many(job.restarts, 'time')}"


def _request(view: RunView) -> str:
    """What the job asked for, in short."""
    resources, job = view.run.config.get("resources"), view.job
    parts = []
    if isinstance(resources, dict):
        gpus = resources.get("gpus_per_node")
        parts.append(
            f"{many(int(resources.get('nodes') or 1), 'node')}" + (f" with {many(gpus, 'GPU')}" if gpus else "")
        )
    cluster = view.run.config.get("cluster")
    if isinstance(cluster, dict):
        where = [
            cluster.get("name"),
            job.partition if job is not None else cluster.get("partition"),
            cluster.get("qos"),
        ]
        parts.append(" / ".join(str(one) for one in where if one))
    limit = job.time_limit if job is not None and job.time_limit is not None else view.run.time_limit
    if limit is not None:
        parts.append(f"at most {duration(limit)}")
    return ", ".join(parts)


def _segment(view: RunView) -> str:
    return f"{view.segment} of {'~' if view.is_ongoing else ''}{view.of}" if view.of else str(view.segment)


def _step(view: RunView, wide: bool) -> str:
    step, total, at_round = view.progress.step, view.progress.total, view.progress.round
    if at_round is not None and at_round.made is not None:
        return f"round {at_round.number}: {at_round.made}/{at_round.episodes or NOTHING}"
    if step is None:
        return NOTHING
    return "/".join(f"{one:,}" if wide or one < 10_000 else f"{one / 1000:.4g}k" for one in (step, total) if one)


def _rate(view: RunView) -> str:
    return number(view.progress.rate) if view.progress.rate is not None and view.is_ongoing else NOTHING


def _ends(view: RunView, now: float) -> str:
    return clock(view.ends, now) if view.ends is not None else NOTHING


def _metric(view: RunView, wide: bool) -> str:
    metrics = view.progress.metrics
    for begin in _FIRST:
        for key, value in metrics.items():
            if key.startswith(begin):
                return f"{key} {number(value)}" if wide else f"{key.partition('/')[0]} {value:.2g}"
    return NOTHING


def _lag(view: RunView) -> str:
    progress = view.progress
    if progress.on_server is None:
        return NOTHING
    behind = progress.rows - progress.on_server
    if behind <= 0:
        return "all"
    return f"-{duration(progress.lag)}" if progress.lag is not None else f"-{behind:,} rows"


def _progress(view: RunView, now: float) -> str:
    progress = view.progress
    parts = [f"{progress.step:,}" + (f" of {progress.total:,}" if progress.total else "")]
    if progress.step is not None and progress.total:
        parts[0] += f" ({percent(progress.step / progress.total)})"
    if view.is_ongoing:
        if progress.rate is not None:
            parts.append(f"{number(progress.rate)} a second")
        if progress.seconds_left:
            parts.append(f"{duration(progress.seconds_left)} of training left")
        if view.word == "runs" and progress.logged is not None:
            parts.append(f"last row {duration(now - progress.logged)} ago")
    return ", ".join(parts)


def _metrics(view: RunView) -> str:
    shown = list(view.progress.metrics.items())[:_SHEET_METRICS]
    more = len(view.progress.metrics) - len(shown)
    return ", ".join(f"{key} {number(value)}" for key, value in shown) + (f" and {more} more" if more > 0 else "")


def _sync(view: RunView) -> str:
    progress = view.progress
    if progress.on_server is None:
        return f"{many(progress.rows, 'row')}, nobody has pushed them: python -m tracking.sync run {view.run.path}"
    behind = progress.rows - progress.on_server
    words = f"all {many(progress.rows, 'row')}" if behind <= 0 else f"{many(behind, 'row')} of {progress.rows:,} wait"
    if behind > 0 and progress.lag is not None:
        words += f", the oldest for {duration(progress.lag)}"
    if progress.sync_error:
        words += f"; {progress.sync_error}"
    return words + (f"; {progress.url}" if progress.url else "")


def heading(count: int, shown: int, now: float) -> str:
    """What a list that is drawn again and again stands under."""
    left = f", {shown} of them shown; --all shows the rest" if shown < count else ""
    return f"{when(now)}: {many(count, 'run')}{left}"
