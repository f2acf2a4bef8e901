"""`python -m tracking.sync`: pushes runs to W&B from a login node, and says how far they are.

Argparse, because the daemon is this very process and must stay small beside many others' work.
"""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from tracking.errors import UserError, exit_on_user_error
from tracking.sync.services import leave

_COMMANDS = ("daemon", "once", "run", "status", "verify")
_DEFAULT_ROOTS = (Path("runs"), Path("wandb"), Path("models"))


def main() -> None:
    """Runs the command line."""
    given = sys.argv[1:]
    if not given or (given[0] not in _COMMANDS and given[0] not in ("-h", "--help") and given[0].startswith("-")):
        given = ["daemon", *given]
    arguments = _parser().parse_args(given)
    code = 1
    try:
        with exit_on_user_error():
            code = _run(arguments)
    except SystemExit as end:
        code = int(end.code or 0)
    except KeyboardInterrupt:
        code = 130
    except Exception:  # noqa: BLE001 - leaving skips what Python prints of it
        traceback.print_exc()
    finally:
        leave(code)


def _run(arguments: argparse.Namespace) -> int:
    if arguments.command == "run":
        from tracking.sync.foreground import push_named

        return push_named(arguments.path, closing=arguments.closing)
    if arguments.command == "verify":
        from tracking.sync.compare import verify

        return verify(arguments.path or roots_of(arguments.root), as_json=arguments.json)
    if arguments.command == "status":
        from tracking.sync.overview import show_status

        return show_status(roots_of(arguments.root), as_json=arguments.json)
    if arguments.command == "once":
        from tracking.sync.foreground import push_all

        return push_all(roots_of(arguments.root))
    from tracking.sync.daemon import Daemon, detach

    awaited = [root.absolute() for root in arguments.root or _DEFAULT_ROOTS if not root.is_dir()]
    roots = roots_of([root for root in arguments.root if root.absolute() not in awaited] or arguments.root)
    daemon = Daemon(roots, arguments.interval, arguments.max_hours, awaited)
    for root in awaited if arguments.root else ():
        print(f"{root} is not there yet; it is looked after once it is", flush=True)
    if arguments.detach:
        detach(roots)
    daemon.run()
    return 0


def roots_of(given: Sequence[Path]) -> list[Path]:
    """The folders to look below: those that were given, else `runs`, `wandb` and `models` in the current one.

    Raises:
        UserError: One is not there, or none is.
    """
    for root in given:
        if not root.is_dir():
            raise UserError(
                f"--root {root}: there is no such folder\n  next: give the folder that holds the run folders"
            )
    roots = list(given) or [root for root in _DEFAULT_ROOTS if root.is_dir()]
    if not roots:
        raise UserError(
            f"there is neither ./runs, ./wandb nor ./models in {Path.cwd()}\n"
            "  next: go to the folder where jobs are submitted, or give --root FOLDER"
        )
    return [root.absolute() for root in roots]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tracking.sync",
        description="Pushes runs to W&B from a login node: each run is one W&B run, however many jobs it took.",
        epilog="Without a command: daemon. `python -m tracking.sync COMMAND --help` says more.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    root = argparse.ArgumentParser(add_help=False)
    root.add_argument(
        "--root",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="where run folders, W&B's offline folders and model stores are, also in groups; may be given again "
        "(default: ./runs, ./wandb and ./models); the daemon looks after those too that are made later",
    )
    as_json = argparse.ArgumentParser(add_help=False)
    as_json.add_argument("--json", action="store_true", help="print JSON instead of a table")

    daemon = commands.add_parser("daemon", parents=[root], help="look again and again, and push what there is")
    daemon.add_argument(
        "--interval", type=_positive, default=30.0, metavar="SECONDS", help="between two looks (default: 30)"
    )
    daemon.add_argument("--max-hours", type=_positive, metavar="HOURS", help="end by itself after so long")
    daemon.add_argument("--detach", action="store_true", help="go on after the logout; the log is in ROOT/.sync")
    commands.add_parser("once", parents=[root], help="push what there is, and end; for cron and jobs' ends")
    run = commands.add_parser("run", help="push the named runs, and end")
    run.add_argument("path", type=Path, nargs="+", metavar="PATH", help="run folders, or W&B's offline folders")
    run.add_argument("--closing", action="store_true", help="as the end of a job: without internet say what to run")
    commands.add_parser("status", parents=[root, as_json], help="show how far each run is; asks nobody")
    verify = commands.add_parser("verify", parents=[root, as_json], help="compare every row with the server's")
    verify.add_argument("path", type=Path, nargs="*", metavar="PATH", help="run folders (default: all below the roots)")
    return parser


def _positive(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return number


if __name__ == "__main__":
    main()
