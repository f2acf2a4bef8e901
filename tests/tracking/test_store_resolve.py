"""How a model is asked for: names, aliases, versions, W&B's names, paths, and what is written down from before."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tracking import UserError
from tracking.store import Store, open_store, publish, resolve
from tracking.store.reference import Reference, old_form, parse, today

from model_store import no_settings_of_the_caller, published, save_bundle, store

__all__ = ["no_settings_of_the_caller", "store"]


class TestReferences:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("act-lift", Reference("act-lift", "latest")),
            ("act-lift:best", Reference("act-lift", "best")),
            ("lab/p/act-lift:v3", Reference("act-lift", "v3", "lab/p")),
            ("wandb-registry-model/lift:prod", Reference("lift", "prod", "wandb-registry-model")),
            ("./act-lift", Path("act-lift")),
            ("/models/x", Path("/models/x")),
        ],
    )
    def test_what_a_text_names(self, text: str, expected: Any) -> None:
        assert parse(text) == expected

    @pytest.mark.parametrize("text", ["", ":best", "act:", "a:b:c", "a/b/c/d", "a//b"])
    def test_what_names_nothing(self, text: str) -> None:
        with pytest.raises(UserError, match="names no model: expected NAME, NAME:ALIAS"):
            parse(text)

    def test_what_is_written_down_from_before(self) -> None:
        old = old_form(Reference("act-lift-best-step-10000"))
        assert old is not None and (old.reference, old.step, old.was_best) == (
            Reference("act-lift", "step-10000"), 10000, True
        )  # fmt: skip
        assert today("act-lerobot-pusht-checkpoint-step-5000") == ("act-lerobot-pusht", ["step-5000"])
        assert today("act-lift-best-step-10000") == ("act-lift", ["best", "step-10000"])
        assert today("act-lift-final") == ("act-lift", ["final"])
        assert today("act-lift") == ("act-lift", [])


class TestResolve:
    @pytest.fixture
    def three(self, store: Store) -> Store:
        published(store, 0, aliases="best", metadata={"step": 10000})
        published(store, 1, aliases="best", metadata={"step": 20000})
        published(store, 2, aliases="final", metadata={"step": 30000})
        return store

    @pytest.mark.parametrize(
        ("text", "version"),
        [
            ("act-lift", 2), ("act-lift:latest", 2), ("act-lift:best", 1), ("act-lift:v0", 0),
            ("act-lift:step-10000", 0),
            ("act-lift-best:latest", 1), ("act-lift-best", 1), ("act-lift-final", 2), ("act-lift-final:latest", 2),
            ("act-lift-best-step-10000:latest", 0), ("act-lift-best-step-10000", 0), ("act-lift-best-step-20000:v0", 1),
            ("act-lift-checkpoint-step-30000:latest", 2), ("act-lift-checkpoint-step-10000", 0),
        ],
    )  # fmt: skip
    def test_names(self, three: Store, text: str, version: int) -> None:
        found = resolve(text, three)
        assert found.version is not None
        assert (str(found), found.version.number) == (f"act-lift:v{version}", version)
        assert (found.path / "processors" / "pre.json").is_file()
        assert (found.note is None) == text.startswith("act-lift:") or text == "act-lift"

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("act-left", "unknown model 'act-left'. Did you mean 'act-lift'?"),
            ("act-lift:bset", "unknown alias or version of act-lift 'bset'. Did you mean 'best'?"),
            ("act-lift:v7", "unknown version of act-lift 'v7'"),
            ("act-lift-best-step-30000", "no version of act-lift was the best one at step 30000"),
            ("act-lift-best-step-11000", "unknown step of act-lift 'step-11000'"),
            ("act-lift-best:v3", "unknown model 'act-lift-best'"),
            ("./nowhere", "there is no such file or folder"),
        ],
    )
    def test_what_is_not_there(self, three: Store, text: str, message: str) -> None:
        with pytest.raises(UserError) as caught:
            resolve(text, three)
        assert message in str(caught.value)

    def test_the_step_of_the_version_that_was_the_best_one(self, three: Store) -> None:
        """GIVEN two runs at the same step THEN the old name means the one that was the best, not the newer one."""
        published(three, 3, metadata={"step": 20000})
        assert str(resolve("act-lift-best-step-20000", three)) == "act-lift:v1"
        assert str(resolve("act-lift-checkpoint-step-20000", three)) == "act-lift:v3"

    @pytest.mark.parametrize("dataset", ["lift", "lerobot-pusht", "lift-best", "best-step-5"])
    def test_names_as_users_have_written_them_down(self, store: Store, tmp_path: Path, dataset: str) -> None:
        for number, name in enumerate((f"act-{dataset}-best-step-10000", f"act-{dataset}-checkpoint-step-20000")):
            model, aliases = today(name)
            assert model == f"act-{dataset}"
            publish(store, save_bundle(tmp_path / str(number), number), model, aliases, mirror=False)
        publish(store, save_bundle(tmp_path / "2", 2.0), *today(f"act-{dataset}-final"), mirror=False)
        for name, number in (("best-step-10000", 0), ("checkpoint-step-20000", 1), ("final", 2), ("best", 0)):
            for alias in ("", ":latest"):
                assert str(resolve(f"act-{dataset}-{name}{alias}", store)) == f"act-{dataset}:v{number}"

    def test_a_name_of_an_old_form_that_is_there_wins(self, three: Store, tmp_path: Path) -> None:
        publish(three, save_bundle(tmp_path / "b", 9.0), "act-lift-best", mirror=False)
        assert str(resolve("act-lift-best:latest", three)) == "act-lift-best:v0"

    def test_paths(self, three: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        save_bundle(tmp_path / "runs" / "r" / "bundle")
        save_bundle(tmp_path / "mine")
        (tmp_path / "act-lift").mkdir()
        assert resolve("runs/r/bundle", three).path == tmp_path / "runs" / "r" / "bundle"
        assert resolve("mine", three).path == tmp_path / "mine"
        assert resolve(tmp_path / "mine", three).version is None
        assert str(resolve("act-lift", three)) == "act-lift:v2"
        assert resolve("./act-lift", three).path == tmp_path / "act-lift"

    def test_without_internet_wandbs_names_are_those_that_it_had(self, three: Store) -> None:
        record = {"kind": "wandb", "version": 1, "artifact": "lab/p/act-lift:v8", "aliases": ["prod"], "intent": None}
        three.log("act-lift").append(lambda _: record)
        for text in ("lab/p/act-lift:prod", "lab/p/act-lift:v8"):
            found = resolve(text, three, pull=False)
            assert str(found) == "act-lift:v1"
            assert found.note is not None and "as W&B had it at" in found.note
        with pytest.raises(UserError, match=r"next: where there is internet .*models pull lab/p/act-lift:v1"):
            resolve("lab/p/act-lift:v1", three, pull=False)

    def test_without_internet_it_says_where_it_looked_and_what_there_is(self, three: Store) -> None:
        with pytest.raises(UserError) as caught:
            resolve("act-left:best", three, project="lab/p")
        assert str(caught.value).splitlines() == [
            "unknown model 'act-left'. Did you mean 'act-lift'?",
            "  valid: act-lift",
            f"  looked for in {three.root}; W&B cannot be asked: WANDB_MODE is offline",
            "  next: where there is internet (a login node): python -m tracking.models pull lab/p/act-left:best",
        ]
        with pytest.raises(UserError, match="act-lift:v7 is a number of the store, so W&B is not asked for it") as it:
            resolve("act-lift:v7", three)
        assert str(it.value).endswith("; W&B's v7 is vla-lego/act-lift:v7")

    def test_without_internet_a_bare_name_is_what_wandb_had(self, three: Store) -> None:
        record = {"kind": "wandb", "version": 1, "artifact": "lab/p/act-lift:v8", "aliases": ["prod"], "intent": None}
        three.log("act-lift").append(lambda _: record)
        found = resolve("act-lift:prod", three, project="p")
        assert str(found) == "act-lift:v1" and "as W&B had it at" in (found.note or "")

    def test_where_the_store_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        assert open_store(environ={}).root == tmp_path / "models"
        assert open_store(environ={"GILBRETH_STORE": "/shared/m"}).root == Path("/shared/m")
        assert open_store("here", environ={"GILBRETH_STORE": "/shared/m"}).root == tmp_path / "here"
        with pytest.raises(UserError, match=r"there is no model store in .*/models\n  next: .*--store FOLDER"):
            resolve("act-lift", open_store(environ={}))
