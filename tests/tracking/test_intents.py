"""Uploads that wait: put once, found in order, gone when acknowledged."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tracking.artifacts import put_config, put_diff
from tracking.errors import UserError
from tracking.intents import Intent, acknowledge, pending_intents, pinned_files, put_intent, read_intent


def test_intents_wait_in_order_until_they_are_acknowledged(tmp_path: Path) -> None:
    first = put_intent(
        tmp_path, Intent("a-config", "config", {"config.yaml": "artifacts/x.yaml"}, ("best",), {"step": 3})
    )
    second = put_intent(tmp_path, Intent("b", "model", {"w": "/abs/w"}))
    assert [path.name for path in (first, second)] == ["000-a-config.json", "001-b.json"]
    assert read_intent(first).aliases == ("best",)
    assert read_intent(first).metadata == {"step": 3}
    assert pinned_files(tmp_path) == {tmp_path / "artifacts/x.yaml", Path("/abs/w")}

    acknowledge(first, {"version": "v0"})
    assert pending_intents(tmp_path) == [second]
    assert pinned_files(tmp_path) == {Path("/abs/w")}


def test_the_same_upload_is_put_once(tmp_path: Path) -> None:
    for _ in range(3):
        put_config(tmp_path, "it's a run", {"lr": 0.1, "name": "ü"})
    put_config(tmp_path, "it's a run", {"lr": 0.2})
    put_diff(tmp_path, "it's a run", "+line\n")
    paths = pending_intents(tmp_path)
    assert [path.name for path in paths] == [
        "000-it-s-a-run-config.json", "001-it-s-a-run-config.json", "002-it-s-a-run-diff.json"
    ]  # fmt: skip
    (file,) = read_intent(paths[0]).files.values()
    assert yaml.safe_load((tmp_path / file).read_text()) == {"lr": 0.1, "name": "ü"}
    assert len(list((tmp_path / "artifacts").iterdir())) == 3


def test_what_cannot_be_an_artifact_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="artifact name 'a/b' cannot be part of a path"):
        put_intent(tmp_path, Intent("a/b", "config", {}))
    path = put_intent(tmp_path, Intent("a", "config", {}))
    path.write_text("[]")
    with pytest.raises(UserError, match="is not an upload intent"):
        read_intent(path)
