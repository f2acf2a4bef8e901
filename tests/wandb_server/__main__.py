"""Runs the loopback W&B by hand: `python -m wandb_server --port 8080`, from tests/."""

from __future__ import annotations

import argparse
import signal
import sys
import threading

from wandb_server.server import WandbServer


def main() -> None:
    """Serves until it is interrupted."""
    parser = argparse.ArgumentParser(prog="wandb_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="TCP port on 127.0.0.1; 0 takes a free one")
    arguments = parser.parse_args()
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, lambda *_: stop.set())
    with WandbServer(arguments.port) as server:
        sys.stdout.write(f"export WANDB_BASE_URL={server.url} WANDB_API_KEY={server.api_key}\n")
        sys.stdout.flush()
        stop.wait()


if __name__ == "__main__":
    main()
