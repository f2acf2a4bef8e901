"""Real DeepSpeed checkpoints of every ZeRO stage: bit for bit what the engine and DeepSpeed's converter had.

One process makes all of them (`programs/zero_grid.py`); the tests read what it left.
"""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tracking.consolidate import consolidate, consolidated_weights
from tracking.errors import UserError

from rank_pairs import ROOT, rank_environment
from zero_verdicts import FROZEN, HALVES, Verdict, judge

pytestmark = pytest.mark.train

PROGRAM = Path(__file__).parent / "programs" / "zero_grid.py"
FACTORS = ("stage", "dtype", "world", "frozen", "tied", "buffers", "groups")


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> dict[Path, dict[str, Any]]:
    """Folders of checkpoints, and what each is."""
    folder = tmp_path_factory.mktemp("grid")
    done = subprocess.run(
        [sys.executable, PROGRAM, folder],
        cwd=ROOT,
        env=rank_environment(),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    return {path.parent: json.loads(path.read_text()) for path in sorted(folder.glob("*/case.json"))}


@pytest.fixture(scope="module")
def verdicts(grid: dict[Path, dict[str, Any]]) -> dict[Path, Verdict]:
    return {folder: judge(folder) for folder in grid}


def test_the_grid_is_a_pairwise_cover(grid: dict[Path, dict[str, Any]]):
    plain = [case for case in grid.values() if not case["special"]]
    values = {factor: {case[factor] for case in plain} for factor in FACTORS}
    assert [len(values[factor]) for factor in FACTORS] == [4, 3, 3, 2, 2, 2, 2]
    for one, other in itertools.combinations(FACTORS, 2):
        met = {(case[one], case[other]) for case in plain}
        assert met == set(itertools.product(values[one], values[other]))


def test_the_weights_are_those_of_the_live_engine(verdicts: dict[Path, Verdict]):
    assert {folder.name: verdict.ours for folder, verdict in verdicts.items() if verdict.ours} == {}
    assert len(verdicts) > 20


def test_weights_in_memory_are_those_of_the_file(grid: dict[Path, dict[str, Any]]):
    for folder in grid:
        done = consolidate(folder, folder / "ours.safetensors")
        written = load_file(done.files[0])
        in_memory = consolidated_weights(folder)
        assert in_memory.keys() == written.keys() | done.tied.keys()
        assert all(torch.equal(in_memory[name], value) for name, value in written.items())


def test_deepspeeds_converter_is_equal_but_where_it_is_known_to_be_wrong(
    grid: dict[Path, dict[str, Any]], verdicts: dict[Path, Verdict]
):
    for folder, case in grid.items():
        verdict, wrong = verdicts[folder], {}
        if case["stage"] == 0 or case["special"] == "bf16_optimizer":
            assert ("TypeError" if case["stage"] == 0 else "is not a zero checkpoint") in verdict.refusal
        elif case["frozen"] and case["stage"] == 1:
            wrong = dict.fromkeys(FROZEN, "missing")
        elif case["frozen"] and case["dtype"] != "fp32":
            half = str(HALVES[case["dtype"]]).removeprefix("torch.")
            wrong = dict.fromkeys(FROZEN, f"{half}, not float32")
        assert verdict.theirs == verdict.apart == wrong, folder.name


def test_both_engines_write_the_same_file(grid: dict[Path, dict[str, Any]], tmp_path: Path):
    folder = next(folder for folder, case in grid.items() if case["stage"] == 3 and case["tied"] and case["frozen"])
    ours = consolidate(folder, tmp_path / "ours", dtype="bf16")
    theirs = consolidate(folder, tmp_path / "theirs", dtype="bf16", engine="deepspeed")
    left, right = load_file(ours.files[0]), load_file(theirs.files[0])
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) and left[name].dtype == right[name].dtype for name in left)
    assert ours.tied == theirs.tied == {"head.weight": "embed.weight"}


def test_a_shard_of_the_next_step_is_named(grid: dict[Path, dict[str, Any]], tmp_path: Path):
    tried = 0
    for folder, case in grid.items():
        for shard in sorted((folder / "step-3").glob("*_states.pt")) if case["stage"] else ():
            mixed = tmp_path / folder.name / shard.stem / "step-2"
            shutil.copytree(folder / "step-2", mixed)
            shutil.copy(shard, mixed)
            # SGD counts no steps, and one rank's model states have no others to compare with.
            if case["stage"] == 3 and (case["world"] == 1 or (case["optimizer"] == "sgd" and "optim" in shard.name)):
                assert "nothing else tells" in consolidate(mixed, tmp_path / "out").notices[0]
                continue
            with pytest.raises(UserError, match="step") as caught:
                consolidated_weights(mixed)
            assert str(mixed) in str(caught.value)
            tried += 1
    assert tried > 30
