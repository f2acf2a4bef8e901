"""SIGKILL while two ranks save, prune, consolidate and publish; `benchmarks/checkpoint_faults.py` has more kills."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rank_pairs import ROOT, rank_environment

pytestmark = pytest.mark.train

PROGRAM = """
import dataclasses, json, sys
from pathlib import Path
from checkpoint_trials import PARTS, Campaign
campaign = Campaign(Path(sys.argv[1]))
print(json.dumps([dataclasses.asdict(campaign.kill_in(PARTS[n % len(PARTS)])) for n in range(int(sys.argv[2]))]))
"""


def test_what_was_saved_is_found_and_resumed_whatever_the_moment_of_the_kill(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, tmp_path, "10"]
    done = subprocess.run(
        command, cwd=ROOT, env=rank_environment(), capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    trials = json.loads(done.stdout.splitlines()[-1])
    assert [trial["faults"] for trial in trials] == [[]] * 10
    assert all(trial["newest"] >= trial["saved"] >= trial["restored"] for trial in trials)
    steps = [trial["newest"] for trial in trials]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0], "the attempts got on"
    assert len({trial["hit"] for trial in trials}) > 2, "the kills came at different moments"
