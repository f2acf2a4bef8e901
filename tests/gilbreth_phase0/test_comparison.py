from __future__ import annotations

import pytest

from gilbreth_phase0.comparison import Against, against_first, as_json, show
from gilbreth_phase0.evaluate import EvaluationResult, summary
from gilbreth_phase0.rollout import Episode
from gilbreth_phase0.statistics import holm
from tracking.gate.best import two_sided

from support import refusal


def result(successes: str, first: int = 0) -> EvaluationResult:
    """Episodes from seeds in a row; `x` is a success."""
    return summary(Episode(first + n, one == "x", 50, 10.0) for n, one in enumerate(successes))


FIRST = "xxxx......"
OTHERS = {
    "better": result("xxxxxxxxxx"),  # +6 -0: p = 2 / 2**6
    "mixed": result("xxx.x....."),  # +1 -1: p = 1
    "worse": result(".........."),  # +0 -4: p = 2 / 2**4
}


def test_each_is_compared_with_the_first_by_an_exact_test() -> None:
    """Holm: of three, the smallest p three times, the next one twice, the greatest once, never falling."""
    assert against_first({"first": result(FIRST), **OTHERS}) == {
        "better": Against("first", 6, 0, 1 / 32, 3 / 32),
        "mixed": Against("first", 1, 1, 1.0, 1.0),
        "worse": Against("first", 0, 4, 1 / 8, 2 / 8),
    }
    assert against_first({"first": result(FIRST)}) == {}


def test_two_sided_is_the_chance_of_either_direction() -> None:
    assert two_sided(0, 0) == two_sided(3, 3) == 1.0
    assert two_sided(5, 1) == two_sided(1, 5) == pytest.approx(2 * (6 + 1) / 64)


def test_holm_keeps_the_order_and_never_falls() -> None:
    assert holm([]) == []
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.9]) == [1.0, 1.0]


def test_other_seeds_cannot_be_compared() -> None:
    other = {"first": result(FIRST), "other": result(FIRST, first=5)}
    assert "different seeds (10 differ, such as 0)" in refusal(lambda: against_first(other))


def test_the_table_fits_a_terminal_and_the_file_has_the_test(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    long = {"act_bc_lift-demo_20260101_091410_c40cd1c": result(FIRST), **OTHERS}
    show(long, "seeds 1000000 to 1000009; 2.0 s")
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= 80
    for text in ("4/10", "17-69 %", "+6 -0, p 0.094", "+0 -4, p 0.25", "3 comparisons (Holm)"):
        assert text in said
    written = as_json(long, {"starts": "fixed"})
    assert list(written) == list(long)
    assert written["better"]["against"] == {
        "policy": next(iter(long)), "better": 6, "worse": 0, "p": 1 / 32, "p_holm": 3 / 32
    }  # fmt: skip
    assert "against" not in written[next(iter(long))] and written["mixed"]["starts"] == "fixed"
