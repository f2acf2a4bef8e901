"""The daemon's pushing process: it is told on stdin what to push, one JSON line a folder, and leaves by itself.

The end of stdin asks it to leave. Killing it costs nothing: the next one begins behind what the server has.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from pathlib import Path

from tracking.files import write_json
from tracking.sync.pusher import Pusher
from tracking.sync.services import forget_foreign_settings, leave, send_within

# sysexits.h: the server is not there; the key may not.
UNREACHABLE = 75
REFUSED = 77
# A login node is for its users' shells first.
_NICE = 5


def main() -> None:
    """Runs the process."""
    parser = argparse.ArgumentParser(prog="python -m tracking.sync.pushing", description=__doc__)
    parser.add_argument("--interval", type=float, required=True, help="seconds between two looks at a live run")
    parser.add_argument("--verdict", type=Path, required=True, help="where the server's word goes if that ends this")
    arguments = parser.parse_args()
    os.nice(_NICE)
    forget_foreign_settings()
    send_within(arguments.interval)
    pusher = Pusher("daemon", arguments.interval, say, stay=True)
    threading.Thread(target=_listen, args=[pusher], daemon=True).start()
    verdict = pusher.run().verdict
    code = 0
    if verdict is not None:
        code = REFUSED if verdict.refused else UNREACHABLE
        write_json(arguments.verdict, {"reason": verdict.reason}, durable=False)
    leave(code)


def say(text: str) -> None:
    """Prints a line with the time of day."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def _listen(pusher: Pusher) -> None:
    for line in sys.stdin:
        pusher.add(Path(json.loads(line)))
    pusher.stop()


if __name__ == "__main__":
    main()
