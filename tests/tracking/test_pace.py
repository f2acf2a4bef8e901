"""How many jobs the rest of a run needs."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from tracking.pace import STATE, Pace, read_pace

# 2 s of waiting every 100 steps: a step costs 0.52 s with its share. A stop needs 1.5 * 2 + 5 + 2 * 0.5 = 9 s.
PACE = Pace(2.0, save_seconds=2.0, held_seconds=2.0, startup_seconds=31.0, save_freq=100, step=0, total=1000)


def test_steps_of_a_job() -> None:
    assert PACE.steps_in(300) == 500, "(300 - 31 - 9) / 0.52"
    assert PACE.steps_in(40) == 0
    assert replace(PACE, save_seconds=4.0, held_seconds=1.0).steps_in(300) == 503, "(300 - 31 - 12) / 0.51"


@pytest.mark.parametrize(
    ("step", "total", "expected"), [(0, 1000, 2), (0, 1001, 3), (500, 1000, 1), (1000, 1000, 1), (0, 1, 1)]
)
def test_segments(step: int, total: int, expected: int) -> None:
    assert replace(PACE, total=total).segments(300, step) == expected
    assert replace(PACE, total=total, step=step).segments(300) == expected


def test_a_job_into_which_not_one_step_fits() -> None:
    assert math.isinf(PACE.segments(40))


def test_it_survives_in_the_run_folder(weird_tmp_path: Path) -> None:
    assert read_pace(weird_tmp_path) is None
    PACE.write(weird_tmp_path)
    assert read_pace(weird_tmp_path) == PACE


@pytest.mark.parametrize("text", ["{", "[]", '{"steps": 1}', "3"])
def test_a_file_of_another_form_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / STATE).write_text(text)
    assert read_pace(tmp_path) is None
