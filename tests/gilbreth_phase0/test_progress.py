from __future__ import annotations

import pytest

from gilbreth_phase0 import progress as module
from gilbreth_phase0.progress import progress


def test_a_log_gets_the_first_and_the_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("episodes", 3) as advance:
        for done in range(1, 4):
            advance(f"{done} succeeded")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "episodes: 0/3, starting"
    assert len(lines) == 2
    assert lines[1].startswith("episodes: 3/3, 3 succeeded, ")
    assert lines[1].endswith(" 0 s left")


def test_a_log_gets_a_line_after_some_seconds(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 101.0, 100.0 + module.LOG_SECONDS])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(clock))
    with progress("episodes", 10) as advance:
        advance("one")
        advance("two")
    assert capsys.readouterr().out.splitlines()[1:] == ["episodes: 2/10, two, 0.4/s, 20 s left"]


def test_a_silent_rank_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("episodes", 1, shown=False) as advance:
        advance("done")
    assert capsys.readouterr().out == ""
