from __future__ import annotations

from pathlib import Path

import pytest

from gilbreth_phase0 import seeds
from gilbreth_phase0.starts import Starts, choose_starts
from tracking.files import write_json

from support import refusal


def test_the_ranges_are_apart_and_leave_nothing_between() -> None:
    spans = [
        seeds.DEMONSTRATIONS,
        seeds.SELECTION,
        seeds.REPORT,
        seeds.ROLLOUTS,
        seeds.CALIBRATION,
        seeds.EXPERT_TRIES,
        seeds.FRESH,
    ]
    assert [span.stop for span in spans[:-1]] == [span.start for span in spans[1:]]
    assert spans[0].start == 0


def test_what_is_reported_is_fixed_where_nothing_is_said() -> None:
    assert choose_starts("fixed", None, 20, None) == [Starts("fixed", range(1_000_000, 1_000_020))]
    assert choose_starts("fixed", 1_000_300, 5, None) == [Starts("fixed", range(1_000_300, 1_000_305))]


def test_fresh_seeds_differ_each_time_and_can_be_repeated() -> None:
    drawn = [choose_starts("fresh", None, 20, None)[0] for _ in range(3)]
    assert len({starts.seeds[0] for starts in drawn}) == 3  # false alarm: 3 pairs of 2 billion blocks, 2e-9
    for starts in drawn:
        assert starts.seeds[0] in seeds.FRESH and starts.seeds[-1] in seeds.FRESH
        assert f"--seed {starts.seeds[0]}" in str(starts)
        assert choose_starts("fixed", starts.seeds[0], 20, None) == [starts]


@pytest.mark.parametrize(
    ("first", "why"),
    [
        (0, "which are demonstrated and trained on"),
        (100_000, "which choose a checkpoint"),
        (999_999, "which choose a checkpoint"),
        (5_000_000, "which DAgger trains on"),
        (4_999_999, "which DAgger trains on"),
    ],
)
def test_seeds_that_made_or_chose_a_policy_are_not_reported(first: int, why: str) -> None:
    said = refusal(lambda: choose_starts("fixed", first, 2, None))
    assert f"--seed {first} --episodes 2: seeds {first} to {first + 1}, {why}" in said
    assert "next: leave --seed out" in said


def test_a_checkpoint_is_chosen_on_seeds_for_that() -> None:
    seeds.check_selection(range(100_000, 100_020))
    seeds.check_selection(range(0))  # no evaluation
    for wrong in (range(99_999, 100_019), range(999_990, 1_000_010)):
        assert "next: --eval-seed 100000" in refusal(lambda wrong=wrong: seeds.check_selection(wrong))


def test_demonstrated_starts_are_never_reported_alone(tmp_path: Path) -> None:
    (tmp_path / "it's lift" / "meta").mkdir(parents=True)
    write_json(tmp_path / "it's lift" / "meta" / "collect.json", {"seeds": [0, 2, 3], "failed_seeds": [1]})
    new, demonstrated = choose_starts("demonstrations", None, 2, tmp_path / "it's lift")
    assert new == Starts("fixed", range(1_000_000, 1_000_002))
    assert demonstrated == Starts("demonstrations", [0, 2])
    assert [starts.key("trained") for starts in (new, demonstrated)] == ["trained", "trained@demonstrations"]
    assert "--dataset data/lift" in refusal(lambda: choose_starts("demonstrations", None, 2, None))
    assert "does not say from which seeds" in refusal(lambda: choose_starts("demonstrations", None, 2, tmp_path))
