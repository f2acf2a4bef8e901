"""`python -m launch.jobs`: runs as a table, one run in full, its logs, and what may be done to it.

Argparse, because people call it again and again, and typer imports pydantic: it takes longer to start than a list.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from tracking.errors import UserError, exit_on_user_error

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import Console, RenderableType

    from launch.jobs.folders import RunFolder
    from launch.jobs.view import RunView

# Whoever wants more says so: each one is asked for, and a run root may hold years of runs.
_SHOWN = 25
_WATCH_S = 5.0


def main(given: Sequence[str] | None = None) -> int:
    """Runs the command line; where no command is named, it is `list`.

    Returns:
        The exit code: 1 from `status` for a run that has failed, and from `logs -f` for one that is not complete.
    """
    words = list(sys.argv[1:] if given is None else given)
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        words.insert(0, "list")
    arguments = _parser().parse_args(words)
    run: Callable[[argparse.Namespace, list[Path]], int] = arguments.run_command
    with exit_on_user_error():
        try:
            return run(arguments, _roots(arguments.root, arguments.cluster))
        except BrokenPipeError:  # `launch.jobs | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
    return 2


def _list(arguments: argparse.Namespace, roots: list[Path]) -> int:
    if arguments.json:
        views, problem = _look(_newest(roots, everything=arguments.all)[0])
        _print_json({"runs": views, "slurm": problem})
    elif arguments.watch:
        _draw_again(lambda: _draw_list(roots, everything=arguments.all))
    else:
        _show(_draw_list(roots, everything=arguments.all))
    return 0


def _status(arguments: argparse.Namespace, roots: list[Path]) -> int:
    view = _one(roots, arguments.name)
    if arguments.json:
        _print_json(view)
    elif arguments.watch:
        _draw_again(lambda: _draw_sheet(_one(roots, view.run.name)))
    else:
        _show(_draw_sheet(view))
    return int(view.word == "failed")


def _explain(arguments: argparse.Namespace, roots: list[Path]) -> int:
    view = _one(roots, arguments.name)
    from rich.console import Group

    from launch.jobs.tables import story

    _show(Group(*story(view, time.time())))
    return 0


def _logs(arguments: argparse.Namespace, roots: list[Path]) -> int:
    view = _one(roots, arguments.name)
    from launch.jobs.logs import last_lines, log_of, rank_logs

    path, at = None, 0
    if not arguments.follow or arguments.rank in rank_logs(view.run, view.job_id):
        path = log_of(view.run, view.job_id, arguments.rank)
        print(f"# {path}", file=sys.stderr, flush=True)
        shown, at = last_lines(path, arguments.lines)
        print(*shown, sep="\n", flush=True)
    return _follow(roots, view, arguments.rank, (path, at)) if arguments.follow else 0


def _cancel(arguments: argparse.Namespace, roots: list[Path]) -> int:
    from launch.jobs.actions import cancel

    print(cancel(_one(roots, arguments.name)))
    return 0


def _requeue(arguments: argparse.Namespace, roots: list[Path]) -> int:
    from launch.jobs.actions import requeue

    run = _one(roots, arguments.name)
    try:
        print(requeue(run))
    except KeyboardInterrupt:
        print(
            "interrupted: Slurm may have the job\n  next: the same command again, which takes up a job that is there",
            file=sys.stderr,
        )
        return 130
    return 0


def _roots(given: list[Path] | None, cluster: str | None) -> list[Path]:
    """Where run folders are looked for; Slurm is made reachable where the lab is meant."""
    if cluster == "lab":
        from launch.places import enter_lab

        enter_lab()
    if given:
        for folder in given:
            if not _may_list(folder):
                raise UserError(
                    f"--root {folder}: there is no such folder, or you may not list it\n"
                    "  next: give the folder of the run folders"
                )
        return [folder.absolute() for folder in given]
    from launch.places import default_cluster, run_root

    name = cluster or default_cluster()
    root = run_root(name)
    if not _may_list(root):
        raise UserError(
            f"there is no run yet: {root}, the run_root of {name!r}, is not there, or you may not list it\n"
            "  next: --root FOLDER, or --cluster NAME"
        )
    return [root]


def _may_list(folder: Path) -> bool:
    """Whether there is such a folder whose entries this user may see."""
    return os.access(folder, os.R_OK | os.X_OK) and folder.is_dir()


def _newest(roots: Sequence[Path], *, everything: bool) -> tuple[list[RunFolder], int]:
    """The runs that are shown, and how many there are; one that waits for its first job is always among them."""
    from launch.jobs.folders import find_runs

    runs = find_runs(roots)
    if everything:
        return runs, len(runs)
    return [run for at, run in enumerate(runs) if at < _SHOWN or not run.has_begun], len(runs)


def _look(runs: Sequence[RunFolder], *, in_full: bool = False) -> tuple[list[RunView], str | None]:
    from launch.jobs.view import look_at

    return look_at(runs, time.time(), in_full=in_full)


def _one(roots: Sequence[Path], given: str) -> RunView:
    from launch.jobs.folders import choose_run, find_runs

    folder = Path(given)
    runs = find_runs([folder.absolute()] if "/" in given and _may_list(folder) else roots)
    (view,), problem = _look([choose_run(runs, given)], in_full=True)
    if problem is not None:
        print(f"warning: {problem}", file=sys.stderr)
    return view


def _draw_list(roots: Sequence[Path], *, everything: bool) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from launch.jobs.tables import heading, notes, run_table

    runs, count = _newest(roots, everything=everything)
    views, problem = _look(runs)
    now = time.time()
    if not views:
        return Text(f"No run in {', '.join(map(str, roots))}.")
    below = [*([f"warning: {problem}"] if problem else []), *notes(views)]
    lines = [Text(line, overflow="fold") for line in below]
    return Group(Text(heading(count, len(views), now), style="dim"), run_table(views, now, _console().width), *lines)


def _draw_sheet(view: RunView) -> RenderableType:
    from launch.jobs.tables import sheet

    return sheet(view, time.time())


def _draw_again(draw: Callable[[], RenderableType]) -> None:
    from rich.live import Live

    try:
        with Live(draw(), console=_console(), auto_refresh=False, screen=_console().is_terminal) as live:
            while True:
                time.sleep(_WATCH_S)
                live.update(draw(), refresh=True)
    except KeyboardInterrupt:
        return


def _follow(roots: Sequence[Path], view: RunView, rank: int, offset: tuple[Path | None, int]) -> int:
    from launch.jobs.logs import follow, rank_logs
    from launch.jobs.view import ONGOING

    name, latest = view.run.name, [view]

    def state() -> tuple[str, bool]:
        latest[0] = _one(roots, name)
        # What runs on says something else each time.
        word = latest[0].word
        return (word if word in ("runs", "ends") else latest[0].words), word not in (*ONGOING, "unknown")

    def find_log() -> Path | None:
        return rank_logs(latest[0].run, latest[0].job_id).get(rank)

    done = view.run.path / "done.json"
    try:
        for line in follow(find_log, state, done.is_file, offset):
            print(line, flush=True)
    except KeyboardInterrupt:
        return 130
    return int(not done.is_file())


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False)


def _show(what: RenderableType) -> None:
    console = _console()
    if console.is_terminal:
        console.print(what)
        return
    with console.capture() as captured:
        console.print(what)
    # Columns are filled up with blanks, which are in the way of whoever copies from a file.
    print(*(line.rstrip() for line in captured.get().rstrip("\n").split("\n")), sep="\n")


def _print_json(value: object) -> None:
    from launch.jobs.view import RunView, as_plain

    def plain(one: object) -> object:
        return as_plain(one) if isinstance(one, RunView) else str(one)

    print(json.dumps(value, indent=2, default=plain))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m launch.jobs",
        description="Runs, not jobs: what each is, what it waits for, how it ended and why.",
        epilog="Without a command: list. `python -m launch.jobs COMMAND --help` says more.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--root",
        type=Path,
        action="append",
        metavar="FOLDER",
        help="where run folders are; may be given again (default: the profile's run_root)",
    )
    where.add_argument("--cluster", metavar="NAME", help="cluster profile (default: that of launch.submit)")
    one = argparse.ArgumentParser(add_help=False, parents=[where])
    one.add_argument("name", metavar="RUN", help="a run's name, the beginning of it, its folder, or its job's number")
    shown = argparse.ArgumentParser(add_help=False)
    shown.add_argument("--json", action="store_true", help="print JSON instead of a table")
    shown.add_argument("--watch", action="store_true", help="draw it again every few seconds, until Ctrl-C")

    def add(name: str, run: object, words: str, *parents: argparse.ArgumentParser) -> argparse.ArgumentParser:
        command = commands.add_parser(name, parents=parents, help=words, description=f"{words[0].upper()}{words[1:]}.")
        command.set_defaults(run_command=run)
        return command

    table = add("list", _list, "show the runs, the newest first", where, shown)
    table.add_argument("--all", action="store_true", help=f"show all runs, not only the {_SHOWN} newest")
    add("status", _status, "show one run in full; exit code 1 where it has failed", one, shown)
    add("explain", _explain, "say why a run waits or failed: Slurm's words, its attempts, the lines of the log", one)
    logs = add("logs", _logs, "print the end of a rank's log", one)
    logs.add_argument(
        "-f", "--follow", action="store_true", help="go on until the run is done, over requeues; exit code 0 only then"
    )
    logs.add_argument("--rank", type=_count, default=0, metavar="N", help="whose log; 0 also has the batch script's")
    logs.add_argument("-n", "--lines", type=_count, default=40, metavar="N", help="how many lines (default: 40)")
    add("cancel", _cancel, "cancel the jobs of a run, and wait until Slurm says that they are", one)
    add("requeue", _requeue, "take a run that has ended up again where it was saved: the same W&B run", one)
    return parser


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
