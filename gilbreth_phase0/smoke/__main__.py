"""`python -m gilbreth_phase0.smoke --level N`: does this cluster work? Minutes, not a queue of hours."""

from __future__ import annotations

import sys
import time

from gilbreth_phase0.arguments import command
from gilbreth_phase0.smoke import ddp, nodes, one_gpu, tracked, zero
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.devices import meet

_LEVELS = {1: one_gpu, 2: ddp, 3: zero, 4: nodes, 5: tracked}


def smoke(arguments: Arguments) -> None:
    """Runs the checks of one level and prints PASSED, or the check that failed and its fix."""
    start = time.monotonic()
    job = meet(arguments.run_dir)
    passed, *also = _LEVELS[arguments.level].run(arguments, job)
    untested = "" if job.device == "cuda" else ", on CPUs: no GPU was tested"
    lines = [f"PASSED: {passed}, {time.monotonic() - start:.0f} s{untested}", f"  run:   {arguments.run_dir}", *also]
    job.say("\n".join(lines))


app = command(Arguments, smoke)

if __name__ == "__main__":
    sys.exit(app())
