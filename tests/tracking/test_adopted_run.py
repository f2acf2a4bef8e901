"""A run that W&B has rows of and whose folder is lost: the new journal's rows come behind them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracking.identity import claim_identity, rows_before
from tracking.sync.child.status import read_status
from tracking.sync.compare import compare

from online_runs import log, online_environment, server_rows, tracker_for
from runs import offline_folders
from wandb_server import WandbServer

__all__ = ["online_environment"]

pytestmark = [pytest.mark.wandb, pytest.mark.usefixtures("online_environment")]


def test_a_run_without_its_folder_goes_on_behind_what_the_server_has(wandb_server: WandbServer, tmp_path: Path) -> None:
    first = tracker_for(tmp_path / "lost")
    log(first, 1, 10)
    first.finish()
    run_id = first.get_run_id()
    for begin in (11, 21):
        again = tracker_for(tmp_path / "new", resume_id=run_id)
        log(again, begin, begin + 9)
        again.finish()

    rows = server_rows(wandb_server, run_id)
    assert [row["_step"] for row in rows] == list(range(30))
    assert [row["train/step"] for row in rows] == list(range(1, 31))
    comparison = compare(tmp_path / "new")
    assert (comparison.is_equal, comparison.rows, comparison.on_server) == (True, 20, 20)


def test_a_run_that_was_named_before_it_began_has_nothing_before_it(wandb_server: WandbServer, tmp_path: Path) -> None:
    tracker = tracker_for(tmp_path / "run", resume_id="ab12cd34")
    log(tracker, 1, 5)
    tracker.finish()
    assert [row["_step"] for row in server_rows(wandb_server, "ab12cd34")] == list(range(5))


def test_offline_there_is_no_folder_that_would_overwrite_the_server(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tracker = tracker_for(tmp_path / "run", resume_id="ab12cd34", mode="offline")
    log(tracker, 1, 5)
    tracker.finish()
    status = read_status(tmp_path / "run")
    assert status is not None and status.state == "left"
    assert offline_folders(tmp_path / "run") == []
    said = capfd.readouterr().out
    assert f"python -m tracking.sync run {tmp_path / 'run'}" in said
    assert "wandb sync /" not in said


def test_what_was_before_is_recorded_once(tmp_path: Path) -> None:
    identity = claim_identity(tmp_path, "ab12cd34", "name", "project", None)
    assert rows_before(tmp_path, identity) == 0
    assert rows_before(tmp_path, identity, there=7) == 7
    assert rows_before(tmp_path, identity, there=12) == 7
    assert rows_before(tmp_path, claim_identity(tmp_path, None, "name", "project", None)) == 7
