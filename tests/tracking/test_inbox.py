"""Results that come from elsewhere: who appends them, when, and that each is appended once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracking import ExperimentTracker, inbox, read_journal
from tracking.files import write_atomic

from support import refusal


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")


def logged(run: Path) -> list[tuple[int, dict[str, object]]]:
    return [(row.step, dict(row.data)) for row in read_journal(run).rows]


def test_a_result_stands_in_the_journal_once_whenever_it_comes(tmp_path: Path) -> None:
    """GIVEN results before, between and after a run's segments THEN each is appended at its step, by one segment."""
    run = tmp_path / 'it\'s a "run"'
    with ExperimentTracker(run_dir=run, tags=["mine"], notes="a note") as tracker:
        tracker.log_metrics({"loss/total": 1.0}, step=10)
        inbox.put(run, "report", 5, {"report/success_rate": 0.5})
        assert tracker.take_inbox() == 1
        assert tracker.take_inbox() == 0
    assert "has a result 'report' of step 5" in refusal(lambda: inbox.put(run, "report", 5, {"report/success_rate": 1}))

    inbox.put(run, "report", 10, {"report/success_rate": 0.75})
    assert inbox.take_after_end(run) == 1
    assert inbox.take_after_end(run) == 0
    assert logged(run) == [
        (10, {"loss/total": 1.0}),
        (5, {"report/success_rate": 0.5}),
        (10, {"report/success_rate": 0.75}),
    ]
    segments = read_journal(run).segments
    assert [(one.tags, one.notes) for one in segments] == [(segments[0].tags, "a note")] * 2


def test_what_was_appended_before_a_kill_is_not_appended_again(tmp_path: Path) -> None:
    """GIVEN a writer that was killed between the row and the folder `taken` THEN the next segment finds the row."""
    run = tmp_path / "run"
    with ExperimentTracker(run_dir=run, tags=["mine"]) as tracker:
        path = inbox.put(run, "report", 5, {"report/success_rate": 0.5, "report/mean_length": 40})
        content = path.read_bytes()
        assert tracker.take_inbox() == 1
    (run / "inbox" / "taken" / path.name).unlink()
    write_atomic(path, content)
    # A value that the journal does not have is news.
    with ExperimentTracker(run_dir=run, tags=["mine"]) as tracker:
        tracker.log_result({"report/mean_length": 40.0, "eval/success_rate": 1.0}, step=5)
        assert tracker.take_inbox() == 1
        tracker.log_result({"eval/success_rate": 1.0}, step=5)
    assert logged(run) == [
        (5, {"report/success_rate": 0.5, "report/mean_length": 40.0}),
        (5, {"eval/success_rate": 1.0}),
    ]


def test_what_is_no_result_is_refused_or_left(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert "is not a tracked run" in refusal(lambda: inbox.put(run, "report", 5, {}))
    with ExperimentTracker(run_dir=run, tags=["mine"]) as tracker:
        assert "cannot be part of a path" in refusal(lambda: inbox.put(run, "../report", 5, {}))
        assert "step -1" in refusal(lambda: inbox.put(run, "report", -1, {}))
        (run / "inbox").mkdir()
        for name, text in {"half.json": '{"step": 5, "met', "other.json": '{"step": 5}', "notes.txt": "5"}.items():
            (run / "inbox" / name).write_text(text)
        assert tracker.take_inbox() == 0
    assert logged(run) == []
    assert sorted(path.name for path in (run / "inbox").iterdir()) == ["half.json", "notes.txt", "other.json"]
