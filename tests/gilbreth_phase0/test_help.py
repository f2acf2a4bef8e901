"""`--help` of the stages' programs, in a terminal 80 columns wide."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from rank_pairs import ROOT

PROGRAMS = ("collect", "evaluate", "smoke", "train_dagger", "train_policy")


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_fits_a_terminal(program: str) -> None:
    environment = {**os.environ, "COLUMNS": "80"}
    command = [sys.executable, "-m", f"gilbreth_phase0.{program}", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    assert "--run-dir" in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80, done.stdout
