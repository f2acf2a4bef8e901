"""Two ranks of `gilbreth_phase0.trials` without policies: what a fault and a stop come to on each."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from gilbreth_phase0.job import Job
from gilbreth_phase0.trials import Stopped, TrialError, Try, with_all_ranks
from tracking.errors import UserError


def count_threads() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


def main(folder: Path) -> None:
    job = Job.start(folder / "job", "cpu")
    broken = folder / "broken"
    seen: list[object] = []

    def goes_on(tries: Try) -> str:
        try:
            tries(broken, range(5))
        except TrialError as error:
            return str(error)
        return "no fault"

    def refuses(tries: Try) -> None:
        goes_on(tries)
        raise UserError("no")

    seen.append(with_all_ranks(job, broken, goes_on))
    try:
        with_all_ranks(job, broken, refuses)
    except UserError as error:
        seen.append(str(error))
    if not job.ranks.is_main:
        os.kill(os.getpid(), signal.SIGUSR2)
    try:
        with_all_ranks(job, broken, lambda tries: tries(broken, range(100)))
    except Stopped as stopped:
        seen.append(stopped.stop.name)
    (folder / f"{job.ranks.rank}.json").write_text(json.dumps(seen))
    threads = count_threads()
    job.close()
    assert count_threads() < threads, "one that outlives its group may abort the end of Python"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
