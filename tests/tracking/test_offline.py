"""W&B's offline folders: one of a run under the documented pattern, whatever happened before."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracking.errors import UserError
from tracking.sync.views import offline

RUN = "ab12cd34"


def build(wandb_dir: Path, name: str, content: str, run_id: str = RUN) -> Path:
    building = offline.make_building_folder(wandb_dir, run_id)
    folder = building / "wandb" / name
    folder.mkdir(parents=True)
    (folder / f"run-{run_id}.wandb").write_text(content)
    return building


def contents(folder: Path) -> dict[str, str]:
    return {path.parent.name: path.read_text() for path in folder.glob("offline-run-*/run-*.wandb")}


def test_a_later_folder_takes_the_place_of_an_earlier_one(weird_tmp_path: Path) -> None:
    """GIVEN two that W&B named alike, within one second THEN neither is lost."""
    for content in ("first", "second", "third"):
        building = build(weird_tmp_path, f"offline-run-20260131_120000-{RUN}", content)
        offline.publish(building, weird_tmp_path, RUN, weird_tmp_path)

    assert list(contents(weird_tmp_path / "wandb").values()) == ["third"]
    assert sorted(contents(weird_tmp_path / "wandb" / "superseded").values()) == ["first", "second"]
    assert not (weird_tmp_path / "wandb" / "building").exists()


def test_other_runs_are_left_alone(tmp_path: Path) -> None:
    offline.publish(build(tmp_path, "offline-run-1-other000", "other", "other000"), tmp_path, "other000", tmp_path)
    unfinished = build(tmp_path, "offline-run-2-other000", "unfinished", "other000")
    offline.publish(build(tmp_path, f"offline-run-3-{RUN}", "mine"), tmp_path, RUN, tmp_path)

    assert sorted(contents(tmp_path / "wandb").values()) == ["mine", "other"]
    assert unfinished.exists()
    assert not (tmp_path / "wandb" / "superseded").exists()


def test_what_a_dead_process_was_building_is_removed(tmp_path: Path) -> None:
    dead = tmp_path / "wandb" / "building" / f"{RUN}-node7-4711"
    dead.mkdir(parents=True)
    offline.publish(build(tmp_path, f"offline-run-1-{RUN}", "whole"), tmp_path, RUN, tmp_path)
    assert not dead.exists()


def test_a_folder_that_cannot_be_written_is_named_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="set WANDB_DIR to a folder of yours"):
        offline.make_building_folder(tmp_path / "file", RUN)


def test_the_command_is_the_documented_one_in_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert offline.sync_command(tmp_path, RUN) == f"wandb sync ./wandb/offline-run-*-{RUN}*"
    assert offline.sync_command(tmp_path / "it's", RUN) == (
        f"wandb sync '{tmp_path}/it'\"'\"'s/wandb'/offline-run-*-{RUN}*"
    )
