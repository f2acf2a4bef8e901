"""Each stage's YAML against the program that gets it. Programs import much, so one process looks at all of them."""

from __future__ import annotations

import subprocess
import sys

from launch.config import ROOT

CHECK = """
import importlib, json, sys
from launch.config import resolve
from launch.spec import flags
from gilbreth_phase0.arguments import parse

for stage in ("collect", "bc", "dagger", "eval", "smoke"):
    config = resolve(stage, "local", [])
    model = importlib.import_module(config.stage.module).Arguments
    # The program reads the section model_management from the configuration that is saved with the run.
    fields = set(model.model_fields) - {"run_dir", "model_management"}
    if set(config.arguments) != fields:
        sys.exit(f"{stage}: missing {fields - set(config.arguments)}, unknown {set(config.arguments) - fields}")
    given = {"run_dir": "runs/x"}
    for flag in flags(config.arguments):
        name, _, value = flag.removeprefix("--").partition("=")
        name = name if value else name.removeprefix("no-")
        given[name.replace("-", "_")] = value or not flag.startswith("--no-")
    print(parse(model, given))
"""


def test_every_stage_fits_its_program() -> None:
    done = subprocess.run([sys.executable, "-c", CHECK], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5
