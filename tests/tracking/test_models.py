"""`log_checkpoint`: what is uploaded, what waits, and what is refused before anything is put aside."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tracking import ExperimentTracker, UserError
from tracking.consolidate import consolidate
from tracking.intents import changed_file, pending_intents, pinned_files, put_intent, read_intent
from tracking.models import describe, is_large, model_intent, uploads_wanted

from online_runs import online_environment, server_rows, tracker_for
from runs import TAGS
from wandb_server import WandbServer
from zero_shards import save_zero_2, some_weights

__all__ = ["online_environment"]


def save_bundle(folder: Path, weights: bytes = b"weights") -> Path:
    (folder / "processors").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(weights)
    (folder / "processors" / "pre.json").write_text("{}")
    return folder


def intent_of(path: Path, aliases: Any = ()) -> Any:
    return model_intent("act-lift", path, aliases, path.parent, "ab12cd34")


class TestWhatIsDescribed:
    def test_a_folder_with_all_its_files(self, weird_tmp_path: Path) -> None:
        bundle = save_bundle(weird_tmp_path / "step-00000100")
        (bundle / "again.json").symlink_to("processors/pre.json")
        (weird_tmp_path / "latest").symlink_to(bundle.name)
        intent = intent_of(weird_tmp_path / "latest" / ".." / "latest", ["best", "best"])
        assert intent.files == {
            "again.json": "step-00000100/processors/pre.json",
            "model.safetensors": "step-00000100/model.safetensors",
            "processors/pre.json": "step-00000100/processors/pre.json",
        }
        assert (intent.type, intent.aliases, intent.metadata["bytes"]) == ("model", ("best",), 11)

    @pytest.mark.parametrize("name", ["model.pt", "model.safetensors"])
    def test_one_file(self, tmp_path: Path, name: str) -> None:
        (tmp_path / name).write_bytes(b"w")
        intent = intent_of(tmp_path / name)
        assert (intent.files, intent.consolidate) == ({name: name}, None)

    def test_a_linked_folder_is_there_twice(self, tmp_path: Path) -> None:
        bundle = save_bundle(tmp_path / "bundle")
        (bundle / "again").symlink_to("processors")
        assert intent_of(bundle).files["again/pre.json"] == "bundle/processors/pre.json"

    @pytest.mark.parametrize("given", ["tag", "folder with latest", "link"])
    def test_a_checkpoint_becomes_its_weights(self, tmp_path: Path, given: str) -> None:
        weights = some_weights()
        checkpoint = save_zero_2(tmp_path / "checkpoints" / "global_step30", weights)
        (tmp_path / "checkpoints" / "latest").write_text("global_step30")
        (tmp_path / "link").symlink_to(checkpoint)
        path = {"tag": checkpoint, "folder with latest": checkpoint.parent, "link": tmp_path / "link"}[given]
        intent = model_intent("act-lift", path, ["best"], tmp_path, "ab12cd34")
        assert intent.consolidate == "checkpoints/global_step30"
        assert sorted(intent.files) == sorted(path.name for path in checkpoint.iterdir())
        assert intent.metadata["bytes"] == sum(weight.numel() * 4 for weight in weights.values())
        assert intent.aliases == ("best", "step-30", "step30")
        put_intent(tmp_path, intent)
        assert pinned_files(tmp_path) == set(checkpoint.iterdir())

    def test_how_much_it_is(self, tmp_path: Path) -> None:
        intent = intent_of(save_bundle(tmp_path / "bundle"), "best")
        assert (describe(intent), is_large(intent)) == ("2 files, 9 bytes; best", False)
        large = replace(intent, metadata={"bytes": 5_100_000_000}, consolidate="c", aliases=())
        assert (describe(large), is_large(large)) == ("consolidated weights, 5.1 GB; no alias", True)

    def test_a_file_elsewhere_stays_where_it_is(self, tmp_path: Path) -> None:
        (tmp_path / "best.safetensors").write_bytes(b"w")
        intent = model_intent("n", tmp_path / "best.safetensors", "best", tmp_path / "run", "ab12cd34")
        assert intent.files == {"best.safetensors": str(tmp_path / "best.safetensors")}
        assert intent.aliases == ("best",)

    @pytest.mark.parametrize(
        ("name", "aliases", "step"),
        [("step-00000100", [], 100), ("step_7", ["best"], 7), ("act-checkpoint-12.safetensors", [], 12),
         ("global_step30", [], 30), ("model", ["step-40"], 40), ("steps", [], None), ("model", ["best"], None)],
    )  # fmt: skip
    def test_the_step_is_an_alias_where_a_name_tells_it(
        self, tmp_path: Path, name: str, aliases: list[str], step: int | None
    ) -> None:
        intent = intent_of(save_bundle(tmp_path / name), aliases)
        expected = list(dict.fromkeys([*aliases, *([f"step-{step}", f"step{step}"] if step else [])]))
        assert (list(intent.aliases), intent.metadata["step"]) == (expected, step)

    def test_other_contents_are_another_upload(self, tmp_path: Path) -> None:
        bundle = save_bundle(tmp_path / "bundle")
        first = put_intent(tmp_path, intent_of(bundle, "best"))
        assert put_intent(tmp_path, intent_of(bundle, "best")) == first
        (bundle / "model.safetensors").write_bytes(b"other weights")
        assert put_intent(tmp_path, intent_of(bundle, "best")) != first
        assert changed_file(tmp_path, read_intent(first)) == str(bundle / "model.safetensors")


class TestWhatIsRefused:
    @pytest.mark.parametrize("case", ["missing", "empty", "broken link"])
    def test_a_path_without_a_model(self, tmp_path: Path, case: str) -> None:
        path = tmp_path / "model"
        if case == "empty":
            (path / "nothing").mkdir(parents=True)
        elif case == "broken link":
            save_bundle(path)
            (path / "link").symlink_to(path / "gone")
        message = {"missing": "No such file", "empty": "holds no file", "broken link": "a broken link"}[case]
        with pytest.raises(UserError, match=message):
            intent_of(path)

    @pytest.mark.parametrize("target", ["secret", "folder"])
    def test_a_link_out_of_the_folder(self, tmp_path: Path, target: str) -> None:
        bundle = save_bundle(tmp_path / "bundle")
        (tmp_path / "secret").write_text("key")
        (tmp_path / "folder").mkdir()
        (bundle / "processors" / "link").symlink_to(tmp_path / target)
        with pytest.raises(UserError, match=f"is a link out of .*, to {tmp_path / target}"):
            intent_of(bundle)

    @pytest.mark.parametrize("way", ["itself", "its folder", "each other", "deep down"])
    def test_links_in_a_circle(self, tmp_path: Path, way: str) -> None:
        bundle = save_bundle(tmp_path / "bundle")
        (bundle / "a" / "b").mkdir(parents=True)
        match way:
            case "itself":
                (bundle / "a" / "link").symlink_to("link")
            case "its folder":
                (bundle / "link").symlink_to(".")
            case "each other":
                (bundle / "a" / "link").symlink_to("../processors")
                (bundle / "processors" / "link").symlink_to("../a")
            case "deep down":
                (bundle / "a" / "b" / "link").symlink_to("../../a")
        with pytest.raises(UserError, match="is a link that leads in a circle"):
            intent_of(bundle)
        (tmp_path / "link").symlink_to("link")
        with pytest.raises(UserError, match="is a link that leads in a circle"):
            intent_of(tmp_path / "link")

    @pytest.mark.parametrize(
        "shard",
        ["mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt",
         "bf16_zero_pp_rank_1_mp_rank_00_optim_states.pt"],
    )  # fmt: skip
    def test_a_part_of_a_checkpoint(self, tmp_path: Path, shard: str) -> None:
        checkpoint = save_bundle(tmp_path / "step-00000100")
        (checkpoint / shard).write_bytes(b"pickle")
        for path in (checkpoint / shard, tmp_path):
            with pytest.raises(
                UserError, match=r"is a DeepSpeed checkpoint, or a part of one \(.*\n  next: give a policy bundle"
            ):
                intent_of(path)
        with pytest.raises(UserError, match=f"{checkpoint}"):
            intent_of(checkpoint)

    def test_a_checkpoint_that_is_not_whole_is_refused_at_once(self, tmp_path: Path) -> None:
        checkpoint = save_zero_2(tmp_path / "step-00000100", some_weights())
        (checkpoint / "zero_pp_rank_1_mp_rank_00_optim_states.pt").unlink()
        with pytest.raises(UserError, match=r"zero_pp_rank_1_mp_rank_00_optim_states\.pt"):
            intent_of(checkpoint)

    @pytest.mark.parametrize("alias", ["", "a/b", "a:b", "v3"])
    def test_an_alias_that_wandb_does_not_have(self, tmp_path: Path, alias: str) -> None:
        with pytest.raises(UserError, match="cannot be an alias"):
            intent_of(save_bundle(tmp_path / "bundle"), [alias])

    def test_a_variable_that_says_neither_yes_nor_no(self) -> None:
        assert [uploads_wanted({"WANDB_LOG_MODEL": value}) for value in ("", "0", "False", "1", "true")] == [
            False, False, False, True, True
        ]  # fmt: skip
        assert not uploads_wanted({})
        with pytest.raises(UserError, match=r"unknown WANDB_LOG_MODEL 'tru'. Did you mean 'true'"):
            uploads_wanted({"WANDB_LOG_MODEL": "tru"})


def home_bytes(home: Path) -> int:
    return sum(path.stat().st_size for path in home.rglob("*") if path.is_file())


@pytest.mark.wandb
@pytest.mark.usefixtures("online_environment")
class TestOnItsWay:
    def test_nothing_is_uploaded_by_default_and_one_line_says_so(
        self, wandb_server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tracker = tracker_for(tmp_path / "run")
        for _ in range(3):
            tracker.log_checkpoint(tmp_path / "anything", ["best"])
        tracker.finish()
        assert capfd.readouterr().out.count("Checkpoints are not uploaded") == 1
        assert not [path for path in pending_intents(tmp_path / "run") if read_intent(path).type == "model"]
        with pytest.raises(KeyError):
            wandb_server.collection(wandb_server.entity, "vla-lego", "act-lift")

    @pytest.mark.parametrize("asked", ["variable", "force"])
    def test_an_online_run_uploads_it_and_copies_nothing(
        self, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
    ) -> None:
        if asked == "variable":
            monkeypatch.setenv("WANDB_LOG_MODEL", "1")
        weights = os.urandom(3_000_000)
        tracker = tracker_for(tmp_path / "run")
        bundle = save_bundle(tmp_path / "run" / "step-00000100", weights)
        tracker.log_checkpoint(bundle, ["best", "latest"], force=asked == "force")
        tracker.finish()

        artifact = wandb_server.artifact(wandb_server.entity, "vla-lego", "act-lift:step-100")
        assert (artifact.state, artifact.type_name) == ("COMMITTED", "model")
        assert artifact.membership is not None
        assert sorted(artifact.membership.aliases) == ["best", "latest", "step-100", "step100"]
        assert {name: entry["size"] for name, entry in artifact.entries.items()} == {
            "model.safetensors": 3_000_000, "processors/pre.json": 2
        }  # fmt: skip
        assert json.loads(artifact.metadata or "")["step"] == 100
        assert pending_intents(tmp_path / "run") == []
        assert home_bytes(tmp_path / "home") < 1_000_000
        assert wandb_server.errors() == []

    def test_offline_it_waits_pinned_until_an_online_segment_comes(
        self, wandb_server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        first = tracker_for(tmp_path / "run", mode="offline")
        bundle = save_bundle(tmp_path / "run" / "bundle", os.urandom(3_000_000))
        first.log_checkpoint(str(bundle), "final", force=True)
        first.finish()
        assert pinned_files(tmp_path / "run") >= {bundle / "model.safetensors", bundle / "processors" / "pre.json"}
        assert wandb_server.requests == []
        assert home_bytes(tmp_path / "home") < 1_000_000
        out = capfd.readouterr().out
        assert "Model act-lift (2 files, 3.0 MB; final): it waits for the network." in out
        assert f" not uploaded: {tmp_path / 'run' / 'intents'}. Where there is internet:\n  python -m" in out

        tracker_for(tmp_path / "run").finish()
        artifact = wandb_server.artifact(wandb_server.entity, "vla-lego", "act-lift:final")
        assert artifact.state == "COMMITTED"
        assert pending_intents(tmp_path / "run") == []

    @pytest.mark.parametrize("mode", ["online", "offline"])
    def test_a_checkpoint_is_consolidated_by_whoever_uploads_it(
        self, wandb_server: WandbServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], mode: str
    ) -> None:
        """GIVEN a DeepSpeed checkpoint WHEN a run is online THEN W&B has its weights, bit for bit, and no shard."""
        weights = some_weights()
        with tracker_for(tmp_path / "run", mode=mode) as tracker:
            checkpoint = save_zero_2(tmp_path / "run" / "checkpoints" / "step-00000100", weights)
            tracker.log_checkpoint(checkpoint, "final", force=True)
        assert "Model act-lift (consolidated weights, 500 bytes; final, step-100, step100)" in capfd.readouterr().out
        if mode == "offline":
            assert pinned_files(tmp_path / "run") >= set(checkpoint.iterdir())
            assert not list((tmp_path / "run").rglob("*.safetensors"))
            tracker_for(tmp_path / "run").finish()
        artifact = wandb_server.artifact(wandb_server.entity, "vla-lego", "act-lift:final")
        assert (artifact.state, list(artifact.entries)) == ("COMMITTED", ["model.safetensors"])
        # The content is asked for as W&B's own interface asks.
        import wandb

        wandb.teardown()
        found = wandb.Api().artifact(f"{wandb_server.entity}/vla-lego/act-lift:final")
        folder = Path(found.download(root=str(tmp_path / "down"), skip_cache=True))
        there = load_file(folder / "model.safetensors")
        assert there.keys() == weights.keys()
        assert all(torch.equal(there[name], weights[name]) for name in weights)
        assert pending_intents(tmp_path / "run") == []
        assert not list((tmp_path / "run").rglob("*.safetensors"))

    def test_weights_that_cannot_be_written_wait_for_the_next_one(
        self, wandb_server: WandbServer, tmp_path: Path
    ) -> None:
        """GIVEN no room for the weights WHEN a run is online THEN its rows arrive, and the upload waits for another."""
        weights, run_dir = some_weights(), tmp_path / "run"
        with tracker_for(run_dir) as tracker:
            (run_dir / "artifacts").mkdir(exist_ok=True)
            (run_dir / "artifacts" / "consolidated").write_text("in the way")
            tracker.log_checkpoint(save_zero_2(run_dir / "step-00000100", weights), force=True)
            tracker.log_metrics({"x": 1.0}, 1)
        (waiting,) = pending_intents(run_dir)
        assert len(server_rows(wandb_server, tracker.get_run_id())) == 1
        (run_dir / "artifacts" / "consolidated").unlink()

        # What another one had made and not uploaded in time is not made again.
        made = run_dir / "artifacts" / "consolidated" / waiting.stem / "model.safetensors"
        consolidate(run_dir / "step-00000100", made, dtype="bf16")
        size = made.stat().st_size
        tracker_for(run_dir).finish()
        artifact = wandb_server.artifact(wandb_server.entity, "vla-lego", "act-lift:step-100")
        assert {name: entry["size"] for name, entry in artifact.entries.items()} == {"model.safetensors": size}
        assert (pending_intents(run_dir), made.parent.exists()) == ([], False)

    def test_a_checkpoint_that_is_gone_before_its_upload_is_dropped(
        self, wandb_server: WandbServer, tmp_path: Path
    ) -> None:
        with tracker_for(tmp_path / "run", mode="offline") as tracker:
            checkpoint = save_zero_2(tmp_path / "run" / "step-00000100", some_weights())
            tracker.log_checkpoint(checkpoint, force=True)
        next(checkpoint.iterdir()).unlink()
        tracker_for(tmp_path / "run").finish()
        assert pending_intents(tmp_path / "run") == []
        with pytest.raises(KeyError):
            wandb_server.collection(wandb_server.entity, "vla-lego", "act-lift")

    def test_what_was_changed_before_its_upload_is_dropped(self, wandb_server: WandbServer, tmp_path: Path) -> None:
        """GIVEN a file that the next save writes over THEN what waits for it is not uploaded under a false alias."""
        first = tracker_for(tmp_path / "run", mode="offline")
        bundle = save_bundle(tmp_path / "run" / "bundle")
        first.log_checkpoint(bundle, "step-1", force=True)
        (bundle / "model.safetensors").write_bytes(b"weights of step 2")
        first.log_checkpoint(bundle, "step-2", force=True)
        first.finish()
        tracker_for(tmp_path / "run").finish()
        collection = wandb_server.collection(wandb_server.entity, "vla-lego", "act-lift")
        assert [sorted(member.aliases) for member in collection.memberships] == [["latest", "step-2", "step2"]]
        (dropped,) = [
            path for path in (tmp_path / "run" / "intents").glob("*.done.json") if "dropped" in path.read_text()
        ]
        assert "model.safetensors was changed" in json.loads(dropped.read_text())["dropped"]

    def test_a_refusal_leaves_nothing_aside_and_5_gb_are_warned_of(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        with tracker_for(tmp_path / "run", mode="offline") as tracker:
            with pytest.raises(UserError, match="call it after the save"):
                tracker.log_checkpoint(tmp_path / "missing", ["best"], force=True)
            assert not [path for path in pending_intents(tmp_path / "run") if read_intent(path).type == "model"]
            for size in (5_000_000_000, 5_000_000_001):
                with (tmp_path / f"{size}.pt").open("wb") as file:
                    file.truncate(size)
                tracker.log_checkpoint(tmp_path / f"{size}.pt", force=True)
        out, err = capfd.readouterr()
        assert out.count("(1 file, 5.0 GB; no alias): it waits for the network") == 2
        assert err.count("act-lift is larger than 5 GB") == 1


def test_other_ranks_do_not_even_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    tracker = ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run")
    tracker.log_checkpoint(tmp_path / "missing", ["a/b"], force=True)
    assert list(tmp_path.iterdir()) == []
