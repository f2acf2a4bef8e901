"""Faults of pushing runs from a login node: each is played with real processes, and every row is counted afterwards.

Some need a file system of their own, which a namespace gives them: `python sync_trials.py NAME FOLDER OUTAGE`.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import sync_host_trials
import sync_push_trials
from sync_play import Outcome, play_here
from sync_site import ROOT, Tally

TRIALS = {**sync_push_trials.TRIALS, **sync_host_trials.TRIALS}


def play(title: str, folder: Path, outage: float = 3.0) -> Outcome:
    """Plays a trial once.

    Args:
        title: Which.
        folder: A folder that does not exist.
        outage: How long outages last, s.
    """
    if not TRIALS[title].isolated or os.environ.get("SYNC_TRIALS_ISOLATED") is not None:
        return play_here(TRIALS[title], folder, outage)
    unshare = [shutil.which("unshare") or "unshare", "--user", "--map-root-user", "--mount"]
    command = [*unshare, sys.executable, __file__, title, str(folder), str(outage)]
    environment = os.environ | {"SYNC_TRIALS_ISOLATED": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"}
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    fields = json.loads(done.stdout.splitlines()[-1])
    return Outcome(**fields | {"tallies": {name: Tally(**tally) for name, tally in fields["tallies"].items()}})


if __name__ == "__main__":
    print(json.dumps(asdict(play(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])))))
