"""The model store on one host: what is published, found, held and deleted."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tracking import UserError
from tracking.files import write_json
from tracking.identity import claim_identity
from tracking.intents import acknowledge, pending_intents, read_intent
from tracking.store import Store, publish, resolve
from tracking.store.lineage import record_use
from tracking.store.prune import Rules, prune
from tracking.store.push import adopt
from tracking.store.resolve import move_aliases, pin, unpin
from tracking.store.verify import verify

from model_store import contents, no_settings_of_the_caller, published, save_bundle, store

__all__ = ["no_settings_of_the_caller", "store"]

NOTHING_YOUNG = Rules(grace=0.0, keep_last=0, leftovers=0.0)


class TestPublish:
    def test_versions_and_aliases_are_wandbs(self, store: Store) -> None:
        assert published(store, 0, aliases=["best"], metadata={"step": 100}) == "act-lift:v0"
        assert published(store, 1, aliases="best") == "act-lift:v1"
        assert published(store, 2) == "act-lift:v2"
        assert store.state("act-lift").aliases == {"latest": 2, "best": 1, "step-100": 0}
        assert [path.name for path in (store.root / "names").iterdir()] == ["act-lift"]
        assert store.names() == ["act-lift"]

    def test_the_same_files_are_the_same_version_which_takes_the_aliases(self, store: Store) -> None:
        published(store, 0, aliases="best")
        published(store, 1)
        assert published(store, 0, aliases="final") == "act-lift:v0"
        assert store.state("act-lift").aliases == {"best": 0, "latest": 0, "final": 0}
        assert len(list((store.root / "names" / "act-lift" / "files").iterdir())) == 2

    def test_the_same_weights_are_on_the_disk_once(self, store: Store, tmp_path: Path) -> None:
        bundle = save_bundle(tmp_path / "a")
        other = save_bundle(tmp_path / "b")
        (other / "config.json").write_text('{"type": "act", "chunk": 5}')
        first = publish(store, bundle, "act-lift", mirror=False).folder / "model.safetensors"
        second = publish(store, other, "act-square", mirror=False).folder / "model.safetensors"
        assert first.samefile(second)
        assert len(contents(store.root)) == 4
        assert first.stat().st_mode & 0o222 == 0

    def test_contents_that_cannot_be_linked_are_copied(
        self, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """GIVEN contents of another user, which Linux lets nobody link THEN the version is whole all the same."""
        published(store, 0)
        real = os.link

        def refusing(source: Any, target: Any, **rest: Any) -> None:
            if "objects" in Path(source).parts:
                raise PermissionError(1, "Operation not permitted")
            real(source, target, **rest)

        monkeypatch.setattr(os, "link", refusing)
        found = publish(store, save_bundle(tmp_path / "again"), "other", mirror=False)
        assert verify(store, ["act-lift", "other"]) == []
        assert found.is_new

    def test_metadata_keeps_its_types_and_loses_its_secrets(self, store: Store) -> None:
        given = {"success_rate": 0.93, "episodes": 50, "is_best": True, "loss": math.inf, "api_key": "abcdefgh" * 5}
        published(store, 0, metadata=given)
        metadata = Store(store.root).state("act-lift").versions[0].metadata
        assert metadata == {**given, "loss": "Infinity", "api_key": "[redacted]"}
        assert [type(metadata[key]) for key in ("success_rate", "episodes", "is_best")] == [float, int, bool]

    def test_lineage_and_the_upload_go_with_the_run(self, store: Store, tmp_path: Path) -> None:
        run_dir = tmp_path / "runs" / "r"
        run_dir.mkdir(parents=True)
        claim_identity(run_dir, "ab12cd34", "act_bc", "p", "lab")
        published(store, 0)
        bundle = save_bundle(tmp_path / "dagger", 7.0)
        done = publish(store, bundle, "act-lift", "best", {"step": 5}, run_dir=run_dir, inputs=["act-lift:v0"])
        assert done.version.run is not None
        assert (done.version.run["id"], done.version.inputs, done.version.target) == (
            "ab12cd34", ("act-lift:v0",), "lab/p"
        )  # fmt: skip
        assert done.intent == run_dir / "intents" / "000-act-lift.json"
        intent = read_intent(done.intent)
        assert (intent.type, intent.aliases) == ("policy", ("best", "step-5"))
        assert sorted(intent.files) == ["README.md", "config.json", "model.safetensors", "processors/pre.json"]
        assert intent.metadata["store"] == {"version": "act-lift:v1", "digest": done.version.digest}
        card = (run_dir / intent.files["README.md"]).read_text()
        assert card.startswith("# act-lift:v1\n") and "Made from: act-lift:v0" in card and "| step | 5 |" in card

    def test_without_a_run_the_upload_waits_in_the_store(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        published(store, 0, mirror=True, target="lab/p")
        (waiting,) = pending_intents(store.root)
        assert all((store.root / file).is_file() for file in read_intent(waiting).files.values())
        assert not any(Path(file).is_absolute() for file in read_intent(waiting).files.values())
        monkeypatch.setenv("WANDB_MODE", "disabled")
        published(store, 1, mirror=True)
        assert len(pending_intents(store.root)) == 1

    def test_what_was_uploaded_is_recorded_with_its_name_there(self, store: Store) -> None:
        published(store, 0, mirror=True, target="lab/p", aliases="best")
        (waiting,) = pending_intents(store.root)
        acknowledge(waiting, {"version": "v5", "artifact": "lab/p/act-lift:v5"})
        adopt(store)
        adopt(store)
        project = store.state("act-lift").projects["lab/p"]
        assert (project.artifacts, project.aliases) == ({0: "lab/p/act-lift:v5"}, {"latest": 0, "best": 0})
        assert len(store.log("act-lift").read()) == 3

    def test_strange_places(self, weird_tmp_path: Path) -> None:
        store = Store(weird_tmp_path / "mo dels")
        published(store, 0)
        assert resolve("act-lift", store).path.is_dir()
        assert verify(store, ["act-lift"]) == []


class TestRefused:
    @pytest.mark.parametrize("name", ["model.pt", "weights.bin", "optimizer.pkl", "last.ckpt"])
    def test_a_pickle_by_its_name(self, store: Store, tmp_path: Path, name: str) -> None:
        bundle = save_bundle(tmp_path / "b")
        (bundle / name).write_bytes(b"x")
        with pytest.raises(UserError, match=rf"{name} is a pickle: .*\n  next: .*save the weights as safetensors"):
            publish(store, bundle, "act-lift")
        assert not store.root.exists()

    @pytest.mark.parametrize("kind", ["plain", "zip"])
    @pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
    def test_a_pickle_by_its_contents(self, store: Store, tmp_path: Path, kind: str, name: str) -> None:
        bundle = save_bundle(tmp_path / "b")
        (bundle / name).unlink(missing_ok=True)
        if kind == "plain":
            (bundle / name).write_bytes(pickle.dumps({"w": 1}))
        else:
            with zipfile.ZipFile(bundle / name, "w") as archive:
                archive.writestr("archive/data.pkl", pickle.dumps(1))
        with pytest.raises(UserError, match=f"{name} is a pickle"):
            publish(store, bundle, "act-lift")

    def test_a_sharded_checkpoint_and_other_files(self, store: Store, tmp_path: Path) -> None:
        bundle = save_bundle(tmp_path / "b")
        (bundle / "notes.txt").write_text("x")
        with pytest.raises(UserError, match=r"notes.txt is neither safetensors, JSON nor a model card"):
            publish(store, bundle, "act-lift")
        (bundle / "mp_rank_00_model_states.pt").write_bytes(b"x")
        with pytest.raises(UserError, match="is a DeepSpeed checkpoint"):
            publish(store, bundle, "act-lift")

    @pytest.mark.parametrize(
        ("name", "change", "message"),
        [
            ("model.safetensors", lambda data: data[:-1], "is not whole: it has"),
            ("model.safetensors", lambda data: data + b"x", "is not whole: it has"),
            ("model.safetensors", lambda data: data[:4], "is not safetensors"),
            ("model.safetensors", lambda data: b"\xff" * 8 + data[8:], "is not safetensors"),
            ("model.safetensors", lambda data: data[:8] + b"!" + data[9:], "is not safetensors: its header"),
            ("config.json", lambda data: data[:-1], "is not JSON"),
        ],
    )
    def test_half_a_file(self, store: Store, tmp_path: Path, name: str, change: Any, message: str) -> None:
        bundle = save_bundle(tmp_path / "b")
        (bundle / name).write_bytes(change((bundle / name).read_bytes()))
        with pytest.raises(UserError, match=f"{name} {message}"):
            publish(store, bundle, "act-lift")

    @pytest.mark.parametrize("alias", ["", "a/b", "a:b", "a,b", "v3", " best"])
    def test_an_alias_that_wandb_does_not_have(self, store: Store, tmp_path: Path, alias: str) -> None:
        with pytest.raises(UserError, match="cannot be an alias"):
            publish(store, save_bundle(tmp_path / "b"), "act-lift", alias)

    def test_a_folder_of_something_else(self, tmp_path: Path) -> None:
        (tmp_path / "models").mkdir()
        (tmp_path / "models" / "mine.py").touch()
        with pytest.raises(UserError, match=r"is no model store: it holds mine.py\n  next: .*GILBRETH_STORE"):
            publish(Store(tmp_path / "models"), save_bundle(tmp_path / "b"), "act-lift")

    def test_a_link_out_of_the_folder(self, store: Store, tmp_path: Path) -> None:
        bundle = save_bundle(tmp_path / "b")
        (tmp_path / "secret.json").write_text("{}")
        (bundle / "link.json").symlink_to(tmp_path / "secret.json")
        with pytest.raises(UserError, match="is a link out of"):
            publish(store, bundle, "act-lift")


class TestAliases:
    def test_they_move_and_go(self, store: Store) -> None:
        published(store, 0, aliases=["best"])
        published(store, 1)
        move_aliases(store, "act-lift", {"best": 1, "prod": 0})
        assert store.state("act-lift").aliases == {"latest": 1, "best": 1, "prod": 0}
        records = len(store.log("act-lift").read())
        move_aliases(store, "act-lift", {"best": 1})
        assert len(store.log("act-lift").read()) == records
        move_aliases(store, "act-lift", {"prod": None})
        assert Store(store.root).state("act-lift").aliases == {"latest": 1, "best": 1}
        with pytest.raises(UserError, match="unknown alias of act-lift 'prod'"):
            move_aliases(store, "act-lift", {"prod": None})
        with pytest.raises(UserError, match="unknown version of act-lift 'v9'"):
            move_aliases(store, "act-lift", {"best": 9})


class TestPrune:
    def test_what_holds_a_version(self, store: Store, tmp_path: Path) -> None:
        for number in range(8):
            published(store, number)
        run_dir = tmp_path / "run"
        run_dir.mkdir()
        claim_identity(run_dir, "ab12cd34", "eval", "p", None)
        move_aliases(store, "act-lift", {"prod": 0})
        record_use(store, resolve("act-lift:v1", store), run_dir)
        pin(store, resolve("act-lift:v2", store), "job 12")
        pin(store, resolve("act-lift:v3", store), "job 13", seconds=0)
        publish(store, save_bundle(tmp_path / "d", 99.0), "dagger-lift", inputs=["act-lift:v4"], mirror=False)
        published(store, 8, mirror=True, target="lab/p")
        published(store, 9)
        done = prune(store, ["act-lift"], NOTHING_YOUNG)
        assert done.versions == [f"act-lift:v{number}" for number in (3, 5, 6, 7)]
        assert done.held == {
            "act-lift:v0": "alias prod",
            "act-lift:v1": "used by eval",
            "act-lift:v2": "pinned: job 12",
            "act-lift:v4": "another model was made from it",
            "act-lift:v8": "its upload waits",
            "act-lift:v9": "alias latest",
        }
        assert done.bytes == 4 * 328
        assert verify(store, store.names()) == []
        with pytest.raises(UserError, match=r"act-lift:v3 was deleted"):
            resolve("act-lift:v3", store)
        assert published(store, 3) == "act-lift:v10"

        unpin(store, resolve("act-lift:v2", store), "job 12")
        (waiting,) = pending_intents(store.root)
        acknowledge(waiting, {"version": "v0", "artifact": "lab/p/act-lift:v0"})
        done = prune(store, ["act-lift"], Rules(grace=0.0, keep_last=0, uses_hold=False))
        assert done.versions == [f"act-lift:v{number}" for number in (1, 2, 4, 8, 9)]

    def test_what_is_young_or_among_the_last_stays(self, store: Store) -> None:
        for number in range(4):
            published(store, number)
        assert prune(store, ["act-lift"], Rules(grace=3600)).versions == []
        assert prune(store, ["act-lift"], Rules(grace=0.0, keep_last=3)).versions == ["act-lift:v0"]
        move_aliases(store, "act-lift", {"best": 1})
        move_aliases(store, "act-lift", {"best": 2})
        # v1 has lost its alias only now: a job that asked for it may be starting.
        held = prune(store, ["act-lift"], Rules(grace=3600, keep_last=0), dry_run=True).held
        assert held["act-lift:v1"] == "younger than the grace period"

    def test_steps_hold_unless_they_shall_not(self, store: Store) -> None:
        for number in range(3):
            published(store, number, metadata={"step": number})
        assert prune(store, ["act-lift"], NOTHING_YOUNG).versions == []
        rules = Rules(grace=0.0, keep_last=0, steps_hold=False)
        assert prune(store, ["act-lift"], rules, dry_run=True).versions == ["act-lift:v0", "act-lift:v1"]
        assert len(store.state("act-lift").versions) == 3
        assert prune(store, ["act-lift"], rules).versions == ["act-lift:v0", "act-lift:v1"]

    def test_contents_that_another_version_has_stay(self, store: Store, tmp_path: Path) -> None:
        published(store, 0)
        published(store, 1)
        other = save_bundle(tmp_path / "o")
        publish(store, other, "other", mirror=False)
        assert prune(store, ["act-lift"], NOTHING_YOUNG).bytes == 0
        assert verify(store, ["other", "act-lift"]) == []

    def test_what_a_killed_publication_left_goes_when_it_is_old(self, store: Store) -> None:
        published(store, 0)
        left = store.incoming()
        (left / "model.safetensors").write_bytes(b"half")
        orphan = store.root / "names" / "act-lift" / "files" / "orphan"
        shutil.copytree(left, orphan)
        prune(store, ["act-lift"], Rules(grace=0.0))
        assert left.exists() and orphan.exists()
        prune(store, ["act-lift"], NOTHING_YOUNG)
        assert not left.exists() and not orphan.exists()


class TestVerify:
    def test_every_fault_names_its_file(self, store: Store) -> None:
        for number in range(3):
            published(store, number)
        said: list[str] = []
        folders = [resolve(f"act-lift:v{number}", store).path for number in range(3)]
        weights = [folder / "model.safetensors" for folder in folders]
        data = weights[0].read_bytes()
        weights[0].chmod(0o644)
        weights[0].write_bytes(data[:-1] + b"!")
        weights[1].chmod(0o644)
        weights[1].write_bytes(data[:-1])
        weights[2].unlink()
        faults = verify(store, ["act-lift"], said.append)
        assert faults == [
            f"act-lift:v0: {weights[0]} does not have the contents that were published (SHA-256 differs)",
            f"act-lift:v1: {weights[1]} has {len(data) - 1} bytes, {len(data)} were published",
            f"act-lift:v2: {weights[2]} is missing",
        ]
        assert said == []

    def test_a_record_that_is_missing_or_broken(self, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("tracking.store.log._GAP_S", 0.05)
        for number in range(3):
            published(store, number)
        record = store.root / "names" / "act-lift" / "log" / "000001.json"
        record.rename(record.with_suffix(".away"))
        with pytest.raises(UserError, match=r"000001.json is missing, and later records are there"):
            Store(store.root).state("act-lift")
        record.write_text("[]")
        (fault,) = verify(Store(store.root), ["act-lift"])
        assert "000001.json is not a record of the model store" in fault

    def test_kinds_of_a_later_version_are_passed_over(self, store: Store) -> None:
        published(store, 0)
        write_json(store.root / "names" / "act-lift" / "log" / "000001.json", {"kind": "something", "time": 0})
        assert published(store, 1) == "act-lift:v1"
        assert json.loads((store.root / "names" / "act-lift" / "log" / "000002.json").read_text())["kind"] == "version"
