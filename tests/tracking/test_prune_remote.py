"""Pruning on W&B, against the loopback server and with W&B's own interface."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tracking.models.__main__ import app
from tracking.models.remote import RemoteRules, choose, delete, prune_mirrored
from tracking.store import Store, publish, resolve
from tracking.store.pending import needs_push
from tracking.store.push import on_wandb, push, want_upload
from tracking.store.resolve import move_aliases, pin

from model_store import save_bundle
from online_runs import online_environment
from wandb_server import WandbServer

__all__ = ["online_environment"]

pytestmark = pytest.mark.wandb

RULES = RemoteRules(keep_last=1, grace=0)


@pytest.fixture(autouse=True)
def five_versions(
    online_environment: None, wandb_server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """v0 (best), v1 (step-1), v2 and v3 without aliases, v4 (latest)."""
    import wandb

    wandb.teardown()
    monkeypatch.chdir(tmp_path)
    store = Store(tmp_path / "models")
    for number in range(5):
        metadata = {"step": 1} if number == 1 else {}
        bundle = save_bundle(tmp_path / f"b{number}", float(number))
        publish(store, bundle, "act-lift", "best" if number == 0 else [], metadata, target="lab/p")
    assert push(store, lambda _: None).failed == []
    yield
    wandb.teardown()


def versions(server: WandbServer) -> list[list[str]]:
    return [sorted(member.aliases) for member in server.collection("lab", "p", "act-lift").memberships]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["prune", "--remote", "--project", "lab/p", *arguments])


def test_only_versions_without_an_alias_go_and_they_are_named_first(wandb_server: WandbServer, tmp_path: Path) -> None:
    tried = run("act-lift", "--keep-last", "2", "--grace", "0", "--dry-run")
    assert tried.stdout.splitlines() == [
        "lab/p/act-lift:v4 stays: alias latest",
        "lab/p/act-lift:v3 stays: among the last 2",
        "lab/p/act-lift:v2 goes",
        "lab/p/act-lift:v1 stays: alias step-1",
        "lab/p/act-lift:v0 stays: alias best",
        "1 version would go",
    ]
    assert not [request for request in wandb_server.requests if "elete" in request.operation]
    assert len(versions(wandb_server)) == 5

    done = run("--keep-last", "1", "--grace", "0")
    assert done.stdout.splitlines()[-1] == "2 versions deleted"
    assert len([request for request in wandb_server.requests if "elete" in request.operation]) == 2
    assert versions(wandb_server) == [["best"], ["step-1"], ["latest"]]
    assert set(Store(tmp_path / "models").state("act-lift").projects["lab/p"].artifacts) == {0, 1, 4}
    assert wandb_server.errors() == []

    assert run("--steps", "--grace", "0").stdout.splitlines()[-1] == "1 version deleted"
    assert versions(wandb_server) == [["best"], ["latest"]]


def test_what_is_young_or_used_stays(wandb_server: WandbServer) -> None:
    import wandb

    assert run("--dry-run").stdout.splitlines()[-1] == "0 versions would go"
    run_ = wandb.init(project="p", entity="lab", name="dagger", id="u", reinit="create_new")
    run_.use_artifact("lab/p/act-lift:v2")
    run_.finish()
    found = {version.name: version.held for version in choose("lab/p", [], RULES)}
    assert found["lab/p/act-lift:v2"] == "used by dagger"
    assert found["lab/p/act-lift:v3"] is None
    assert "lab/p/act-lift:v2 goes" in run("--used", "--grace", "0", "--dry-run").stdout


def test_a_version_that_gets_an_alias_meanwhile_stays(wandb_server: WandbServer, tmp_path: Path) -> None:
    """GIVEN a version that was chosen WHEN it gets an alias before it is deleted THEN the server refuses."""
    chosen = {version.name: version for version in choose("lab/p", ["act-lift"], RULES)}
    store = Store(tmp_path / "models")
    move_aliases(store, "act-lift", {"prod": 2})
    push(store, lambda _: None)
    assert "prod" in (delete(chosen["lab/p/act-lift:v2"], RULES) or "")
    assert delete(chosen["lab/p/act-lift:v3"], RULES) is None
    assert versions(wandb_server) == [["best"], ["step-1"], ["prod"], ["latest"]]


def test_how_many_stay_by_a_configuration(wandb_server: WandbServer, tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("model_management: {keep_last_n: 3}\n")
    assert run("--config", str(config), "--grace", "0").stdout.splitlines()[-1] == "0 versions deleted"
    config.write_text("model_management: {}\n")
    refused = run("--config", str(config))
    assert (refused.exit_code, "has no model_management.keep_last_n" in refused.stderr) == (2, True)
    unknown = run("act-left")
    assert unknown.stderr == "error: lab/p has no model 'act-left' on W&B\n  valid: act-lift\n"
    assert len(versions(wandb_server)) == 5


def test_by_the_rule_that_a_model_carries(wandb_server: WandbServer, tmp_path: Path) -> None:
    """GIVEN `keep_last_n` with the newest version THEN what is behind goes, is named first, and stays in the store."""
    store, said = Store(tmp_path / "models"), list[str]()
    assert prune_mirrored(store, said.append) == [], "no version has such a rule"
    newest = save_bundle(tmp_path / "b5", 5.0)
    publish(store, newest, "act-lift", [], {"step": 2, "keep_last_n": 2}, target="lab/p")
    pin(store, resolve("act-lift:v3", store), "queued job x", seconds=600)
    tried = CliRunner().invoke(app, ["push", "--dry-run", "--store", str(store.root)])
    assert tried.stdout.splitlines() == [
        "act-lift:v5 would be uploaded",
        *(f"lab/p/act-lift:v{number} would go: keep_last_n of act-lift is 2" for number in (2, 1)),
    ]
    assert len(versions(wandb_server)) == 5

    # Of v0 (best), v1 (step-1), v2, v3 (pinned), v4 and v5 (latest, step-2) the last two stay in any case.
    said.clear()
    assert push(store, lambda text: said.append(f"{text} ({len(versions(wandb_server))} there)")).failed == []
    assert said == [
        "act-lift:v5 is lab/p/act-lift:v5 (6 there)",
        "lab/p/act-lift:v2 goes: keep_last_n of act-lift is 2 (6 there)",
        "lab/p/act-lift:v1 goes: keep_last_n of act-lift is 2 (5 there)",
    ]
    assert versions(wandb_server) == [["best"], [], [], ["latest", "step-2"]]
    state = store.state("act-lift")
    assert set(state.versions) == set(range(6))
    assert set(state.projects["lab/p"].artifacts) == {0, 3, 4, 5}
    assert on_wandb(store, resolve("act-lift:v1", store)) is None
    # What was deleted is not uploaded again by itself, and is when it is asked for.
    assert (needs_push(store), push(store, lambda _: None).uploaded) == (False, {})
    want_upload(store, resolve("act-lift:v1", store), "lab/p")
    assert push(store, lambda _: None).uploaded == {"act-lift:v1": "lab/p/act-lift:v6"}
    assert on_wandb(store, resolve("act-lift:v1", store)) == "lab/p/act-lift:v6", "not deleted at once: W&B's newest"


def test_a_deletion_that_was_not_recorded_is_taken_note_of(wandb_server: WandbServer, tmp_path: Path) -> None:
    """GIVEN a version that was deleted by a command that was killed, or on W&B's pages THEN the store learns it."""
    store = Store(tmp_path / "models")
    chosen = {version.name: version for version in choose("lab/p", ["act-lift"], RULES)}
    assert delete(chosen["lab/p/act-lift:v2"], RULES) is None
    assert 2 in store.state("act-lift").projects["lab/p"].artifacts
    publish(store, save_bundle(tmp_path / "b5", 5.0), "act-lift", [], {"keep_last_n": 1}, target="lab/p")
    assert push(store, lambda _: None).failed == []
    assert set(store.state("act-lift").projects["lab/p"].artifacts) == {0, 5}


def test_without_a_network_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    refused = run("--grace", "0")
    assert (refused.exit_code, refused.stderr) == (2, "error: W&B cannot be asked: WANDB_MODE is offline\n")
