"""Names and tags: what may become part of a path, and what a run must be found by."""

from __future__ import annotations

from datetime import datetime

import pytest

from tracking.errors import UserError
from tracking.labels import check_tags, tag_texts
from tracking.names import check_name, run_name, slug

TAGS = {"model": "act", "dataset": "lift", "objective": "bc", "experiment_group": "demo"}


def test_a_run_name_has_the_documented_form() -> None:
    at = datetime(2026, 1, 31, 9, 5, 7)
    assert run_name("act", "bc", "lift", "abc1234", at) == "act_bc_lift_20260131_090507_abc1234"
    assert run_name("act", "bc", "lerobot/push t", None, at) == "act_bc_lerobot-push-t_20260131_090507_nogit"
    check_name("run", run_name("a'b", 'c"d', "../../e", None, at))


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain-1.0_x", "plain-1.0_x"), ("it's \"mine\"", "it-s-mine"), ("../..", "unnamed"), ("", "unnamed"),
     ("-rf", "rf"), ("a\nb; echo foo", "a-b-echo-foo"), ("x" * 300, "x" * 128)],
)  # fmt: skip
def test_a_slug_is_a_valid_name(text: str, expected: str) -> None:
    assert slug(text) == expected
    assert check_name("run", slug(text)) == expected


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "-rf", "a/b", "a b", "a'b", "a\nb", "ü", "x" * 129, "a\n"])
def test_a_name_that_breaks_paths_is_refused_with_a_suggestion(name: str) -> None:
    with pytest.raises(UserError, match="try: ") as error:
        check_name("policy", name)
    assert repr(name) in str(error.value)


def test_missing_tags_are_all_named() -> None:
    with pytest.raises(UserError, match="tags lack dataset, experiment_group") as error:
        check_tags({"model": "act", "objective": "bc", "dataset": ""})
    assert "given: model, objective, dataset" in str(error.value)
    check_tags(TAGS)
    check_tags(["anything"])
    check_tags(None)
    with pytest.raises(UserError, match="not the text"):
        check_tags("model:act")


def test_tags_become_texts_that_wandb_accepts() -> None:
    assert tag_texts(TAGS) == ("model:act", "dataset:lift", "objective:bc", "experiment_group:demo")
    assert tag_texts(["a", "a", "", "b" * 100]) == ("a", "b" * 64)
    assert tag_texts(None) == ()
