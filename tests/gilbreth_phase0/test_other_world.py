"""A run goes on with another number of ranks; real engines, 4 ranks, then 2, then 4 (`programs/other_world.py`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gilbreth_phase0 import other_world
from gilbreth_phase0.job import Job
from gilbreth_phase0.other_world import ConverterFailedError, OtherLayoutError, make_universal
from gilbreth_phase0.ranks import Ranks
from gilbreth_phase0.stop import StopProtocol
from tracking import checkpoints
from tracking.checkpoints import MANIFEST, Manifest
from tracking.files import write_json
from tracking.ownership import AttemptKey, Owner, OwnershipLostError

from rank_pairs import PROGRAMS, ROOT, rank_environment
from support import wait_until
from zero_shards import save_zero_2, some_weights

pytestmark = pytest.mark.train

STAGES = range(4)
WORLDS = (4, 2, 4)
SAVED = (2, 4, 6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("worlds")
    done = subprocess.run(
        [sys.executable, PROGRAMS / "other_world.py", folder, *map(str, WORLDS)],
        cwd=ROOT,
        env=rank_environment(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    (folder / "log").write_text(done.stdout)
    return folder


@pytest.fixture(scope="module")
def turns(folder: Path) -> list[dict[str, Any]]:
    """What each number of ranks saw, by ZeRO stage."""
    return [json.loads((folder / f"{turn}.json").read_text()) for turn in range(len(WORLDS))]


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_everything_is_what_was_saved_bit_for_bit(turn: int, stage: int, turns: list[dict[str, Any]]) -> None:
    saved, restored = turns[turn - 1][f"zero-{stage}"], turns[turn][f"zero-{stage}"]
    assert restored["start"] == saved["end"]
    kinds = {"embed.weight", "back.weight", "coarse", "precise", "norm.running_mean", "norm.num_batches_tracked"}
    assert kinds <= restored["start"].keys()
    if stage:
        assert {"embed.weight fp32", "embed.weight exp_avg", "middle.bias exp_avg_sq"} <= restored["start"].keys()
    moved = {name for name, digest in restored["end"].items() if restored["start"][name] != digest}
    assert {"embed.weight", "middle.bias"} <= moved, "training went on"
    assert not {"back.weight", "back.bias", "coarse", "precise", "mean", "count"} & moved


@pytest.mark.parametrize("turn", [1, 2])
@pytest.mark.parametrize("stage", STAGES)
def test_step_samples_run_and_learning_rate_go_on(turn: int, stage: int, turns: list[dict[str, Any]]) -> None:
    saved, restored = turns[turn - 1][f"zero-{stage}"], turns[turn][f"zero-{stage}"]
    step = SAVED[turn - 1]
    assert (restored["restored"]["step"], restored["restored"]["samples"]) == (step, step * 8)
    assert restored["restored"]["run_id"] == "run-7"
    assert restored["restored"]["save_seconds"] > 0
    assert restored["lr"][0] == saved["lr"][1] != restored["lr"][1]


def test_the_log_says_what_becomes_of_the_batch_and_the_learning_rate(folder: Path) -> None:
    said = (folder / "log").read_text()
    assert "2 rank(s) go on where 4 stopped: a step has 8 samples as before, 4 a rank" in said
    assert "4 rank(s) go on where 2 stopped: a step has 8 samples as before, 2 a rank" in said
    assert "the learning rate is not scaled" in said


def test_the_copies_verify_and_are_no_checkpoints(folder: Path) -> None:
    for stage in STAGES:
        run = folder / f"zero-{stage}" / "checkpoints"
        copies = sorted(run.glob("universal-*"))
        assert [copy.name for copy in copies] == [f"universal-step-0000000{n}" for n in SAVED[:2]] * (stage > 0)
        for copy, world_size in zip(copies, WORLDS[:2], strict=False):
            assert checkpoints.verify(copy).world_size == world_size
        assert {path.name for path in checkpoints.candidates(run)} == {f"step-0000000{n}" for n in SAVED}
        assert not [path.name for path in run.iterdir() if path.name.startswith((".", "latest_"))]


def whole(run: Path, **states: Any) -> tuple[Path, Manifest]:
    """A checkpoint with a manifest whose shards were made by hand."""
    checkpoint = save_zero_2(run / "checkpoints" / "step-00000003", some_weights(), **states)
    files = checkpoints.record_files(checkpoint, [path.name for path in checkpoint.iterdir()])
    manifest = Manifest(3, 2, 2, "run-7", None, files)
    write_json(checkpoint / MANIFEST, asdict(manifest))
    return checkpoint, manifest


def test_what_cannot_be_converted_is_refused_with_what_was_saved_what_is_here_and_the_command(tmp_path: Path) -> None:
    checkpoint, manifest = whole(tmp_path, config={"zero_optimization": {"round_robin_gradients": True}})
    job = Job(tmp_path, Ranks(), "cpu", None, StopProtocol(0), Owner.claim(tmp_path))
    with pytest.raises(OtherLayoutError) as caught:
        make_universal(checkpoint, manifest, job)
    message = str(caught.value)
    assert "saved by 2 ranks with ZeRO stage 2; this job has 1 with stage 2: with round_robin_gradients" in message
    assert "python -m launch.submit --stage bc … --set bc.zero_stage=2 --set resources.nodes=N" in message
    assert checkpoints.verify(checkpoint) == manifest
    assert not list(checkpoint.parent.glob("universal-*")), "nothing looks like a copy"
    assert not list(checkpoint.parent.glob(".pin-*")), "the source is no longer held"


def test_a_converter_that_is_killed_is_no_refusal(tmp_path: Path) -> None:
    """GIVEN a kill in the middle of converting THEN the attempt ends so that the next one converts again."""
    checkpoint, manifest = whole(tmp_path)
    job = Job(tmp_path, Ranks(), "cpu", None, StopProtocol(0), Owner.claim(tmp_path))

    def kill() -> None:
        arguments = f"gilbreth_phase0.universal\0{checkpoint}\0".encode()
        wait_until(lambda: [pid for pid in children() if arguments in command_of(pid)], 30, "the converter")
        for pid in children():
            if arguments in command_of(pid):
                os.kill(pid, signal.SIGKILL)

    with ThreadPoolExecutor(1) as pool:
        killing = pool.submit(kill)
        with pytest.raises(ConverterFailedError, match="the converter ended with -9") as caught:
            make_universal(checkpoint, manifest, job)
        killing.result()
    assert caught.value.exit_code == 1, "2 would end the run for good"
    assert not list(checkpoint.parent.glob("universal-*"))
    assert not list(checkpoint.parent.glob(".pin-*"))


def children() -> list[int]:
    return [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]


def command_of(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def test_a_copy_is_used_again_only_for_the_checkpoint_that_it_is_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint, manifest = whole(tmp_path)
    converted = 0

    def convert(source: Path, temporary: Path, job: Job) -> None:
        nonlocal converted
        converted += 1
        held = {path.name for path in source.parent.glob(".pin-*")}
        assert len(held) == 1, "the source is held meanwhile"
        (temporary / "copy").mkdir(parents=True)
        (temporary / "copy" / "file").write_text(f"copy {converted}")

    monkeypatch.setattr(other_world, "_convert", convert)
    job = Job(tmp_path, Ranks(), "cpu", None, StopProtocol(0), Owner.claim(tmp_path))
    copy = make_universal(checkpoint, manifest, job)
    assert make_universal(checkpoint, manifest, job) == copy
    assert converted == 1
    (copy / "file").write_text("other ")  # as long, other contents
    make_universal(checkpoint, manifest, job)
    assert (copy / "file").read_text() == "copy 2"
    write_json(checkpoint / MANIFEST, asdict(replace(manifest, git_commit="c0ffee")))
    make_universal(checkpoint, manifest, job)
    assert (copy / "file").read_text() == "copy 3"
    Owner.claim(tmp_path, AttemptKey("the successor", 1))
    (copy / "file").unlink()
    with pytest.raises(OwnershipLostError):
        make_universal(checkpoint, manifest, job)
