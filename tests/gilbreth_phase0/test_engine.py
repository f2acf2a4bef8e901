"""Real DeepSpeed engines on two ranks: what a checkpoint gives back, and what it refuses.

Starting two processes with DeepSpeed takes longer than everything that they do here, so that one pair goes through all
ZeRO stages and a second, fresh pair resumes them; the tests read what the ranks saw.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tracking import checkpoints

from rank_pairs import PROGRAMS, run_pair

pytestmark = pytest.mark.train

STAGES = range(4)
Seen = list[dict[str, Any]]


def ranks_of(phase: str, folder: Path) -> Seen:
    ended = run_pair([PROGRAMS / "checkpoint_rank.py", phase, folder], timeout=150)
    assert [rank.returncode for rank in ended] == [0, 0], "\n".join(rank.output for rank in ended)
    (folder / f"{phase}.out").write_text(ended[0].output)
    return [json.loads((folder / f"{phase}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> Seen:
    """What the two ranks saw that trained six steps, saved after three."""
    return ranks_of("train", folder)


@pytest.fixture(scope="module")
def resumed(folder: Path, undisturbed: Seen) -> Seen:
    """What two fresh processes saw that went on from the third step, and then did what must fail."""
    return ranks_of("resume", folder)


@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_ends_with_the_weights_of_an_undisturbed_one(
    stage: int, undisturbed: Seen, resumed: Seen
) -> None:
    last = {seen[f"zero-{stage}"]["last"] for seen in (*undisturbed, *resumed)}
    assert len(last) == 1, "bit for bit, on both ranks"
    assert last != {undisturbed[0][f"zero-{stage}"]["live"]}, "training went on"
    assert [seen[f"zero-{stage}"]["restored"] for seen in resumed] == [[3, "run-7"]] * 2


@pytest.mark.parametrize("stage", STAGES)
def test_deepspeed_itself_finds_the_state_with_the_run_id_at_the_top(stage: int, resumed: Seen) -> None:
    for seen in resumed:
        assert seen[f"zero-{stage}"]["client_state"] == {
            "wandb_run_id": "run-7",
            "gilbreth": {"step": 3, "seed": 0},
        }


@pytest.mark.parametrize("stage", STAGES)
def test_the_consolidated_weights_are_those_of_the_live_engine(stage: int, undisturbed: Seen) -> None:
    """GIVEN a save that was synced while training went on THEN it holds what there was when it began."""
    assert {seen[f"zero-{stage}"]["live"] for seen in undisturbed} == {undisturbed[0][f"zero-{stage}"]["consolidated"]}
    assert not any(seen[f"zero-{stage}"]["early"] for seen in undisturbed), "it has no name before it is finished"


@pytest.mark.parametrize("stage", STAGES)
def test_the_manifest_says_what_was_saved(stage: int, folder: Path, undisturbed: Seen) -> None:
    checkpoint = folder / f"zero-{stage}" / "checkpoints" / "step-00000003"
    manifest = checkpoints.verify(checkpoint)
    assert (manifest.step, manifest.world_size, manifest.zero_stage) == (3, 2, stage)
    assert (manifest.run_id, manifest.git_commit) == ("run-7", "c0ffee")
    there = {str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file()}
    assert set(manifest.files) == there - {"manifest.json"}
    shards = {0: 1, 1: 3, 2: 3, 3: 4}[stage]  # the model's, and each rank's of the optimizer (ZeRO 3: of both)
    assert len([name for name in manifest.files if name.endswith("_states.pt")]) == shards


def test_a_broken_newest_checkpoint_is_passed_over_on_both_ranks(folder: Path, resumed: Seen) -> None:
    assert [seen["past the broken one"] for seen in resumed] == [3, 3]
    said = (folder / "resume.out").read_text()
    assert "passing over step-00000006: " in said
    assert "zero_pp_rank_1" in said.partition("passing over")[2].splitlines()[0]


def test_a_rank_that_finds_the_disk_full_ends_the_save_on_both(resumed: Seen) -> None:
    for seen in resumed:
        assert seen["a disk that is full"] == ["[Errno 28] No space left on device: 'the shard'"]


def test_no_rank_starts_again_where_no_checkpoint_is_whole(resumed: Seen) -> None:
    for seen in resumed:
        kind, message = seen["none whole"]
        assert kind == "NoWholeCheckpointError"
        assert "manifest.json is missing" in message


def test_another_zero_stage_is_refused_with_the_numbers(resumed: Seen) -> None:
    for seen in resumed:
        kind, message = seen["other stage"]
        assert kind == "OtherLayoutError"
        assert "saved by 2 ranks with ZeRO stage 1; this job has 2 with stage 2." in message
        assert "bc.zero_stage=1" in message
        assert "= 2 GPUs in all" in message


@pytest.mark.parametrize("deed", ["zombie's save", "zombie's flush", "zombie's end"])
def test_an_attempt_that_lost_its_run_stops_on_both_ranks(deed: str, resumed: Seen) -> None:
    for seen in resumed:
        kind, message = seen[deed]
        assert kind == "OwnershipLostError"
        assert "now belongs to attempt the successor (restart 1)" in message


def test_an_attempt_that_lost_its_run_leaves_it_alone(folder: Path, resumed: Seen) -> None:
    run = folder / "zero-1"
    whole = sorted(path.name for path in (run / "checkpoints").glob("step-*"))
    assert whole == ["step-00000003", "step-00000006"]
    assert (run / "checkpoints" / "latest").read_text() == "step-00000006"
    assert not (run / "done.json").exists()
