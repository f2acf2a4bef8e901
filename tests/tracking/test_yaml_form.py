"""The tracker's settings in the form that RL users have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tracking import ExperimentTracker, UserError, read_journal
from tracking.yaml_form import read_form

FORM = {
    "use_wandb": True,
    "wandb": {"project": "p", "entity": None, "name": "ppo", "tags": ["a", "b"], "notes": "n", "group": "g",
              "job_type": "train", "mode": "offline"},
}  # fmt: skip


def test_a_file_and_a_mapping_say_the_same(weird_tmp_path: Path) -> None:
    path = weird_tmp_path / "ppo.yaml"
    path.write_text(yaml.safe_dump(FORM))
    expected = {"enabled": True, "project": "p", "name": "ppo", "tags": ["a", "b"], "notes": "n", "group": "g",
                "job_type": "train", "mode": "offline"}  # fmt: skip
    assert read_form(path) == expected
    assert read_form(str(path)) == expected
    assert read_form(FORM) == expected
    assert read_form({}) == {"enabled": True}


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"use_wanbd": True}, "unknown key in the settings 'use_wanbd'. Did you mean 'use_wandb'?"),
        ({"wandb": {"projct": "x"}}, "unknown key under wandb in the settings 'projct'. Did you mean 'project'?"),
        ({"use_wandb": "yes"}, "is true or false, not 'yes'"),
        ({"wandb": ["a"]}, "is a mapping, not ['a']"),
        ({"wandb": {"project": 3}}, "wandb.project in the settings is text, not 3"),
        ({"wandb": {"tags": "a"}}, "is a list of texts or a mapping, not 'a'"),
    ],
)
def test_what_is_not_of_the_form_is_refused(form: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        read_form(form)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read"), ("a: [", "is not YAML"), ("- a", "must hold")]
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "x.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError, match=message):
        ExperimentTracker.from_yaml(path)


def test_use_wandb_false_records_nothing(tmp_path: Path) -> None:
    tracker = ExperimentTracker.from_yaml(FORM | {"use_wandb": False}, run_dir=tmp_path / "run")
    tracker.log_metrics({"x": 1}, 1)
    tracker.finish()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.wandb
def test_the_labels_reach_the_journal(tmp_path: Path) -> None:
    tracker = ExperimentTracker.from_yaml(FORM, run_dir=tmp_path, config={"algorithm": "ppo"})
    tracker.finish()
    (segment,) = read_journal(tmp_path).segments
    assert (segment.tags, segment.group, segment.job_type, segment.notes) == (("a", "b"), "g", "train", "n")
    assert read_journal(tmp_path).config == {"algorithm": "ppo"}
