"""The model store in front of the loopback W&B: what is pushed, pulled and linked, and what is recorded of it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tracking import UserError
from tracking.artifacts import download_checkpoint_from_wandb, list_checkpoints_from_wandb
from tracking.identity import claim_identity
from tracking.intents import pending_intents
from tracking.models.tables import version_facts
from tracking.store import Store, publish, resolve
from tracking.store.lineage import record_use
from tracking.store.pending import may_need_push, needs_push
from tracking.store.push import link, on_wandb, push, want_upload
from tracking.store.reference import Reference
from tracking.store.remote import Unreachable
from tracking.store.resolve import move_aliases
from tracking.store.verify import verify

from model_store import as_reader, only_readable, save_bundle, store
from online_runs import online_environment, tracker_for
from support import free_port
from wandb_server import WandbServer

__all__ = ["online_environment", "store"]

pytestmark = pytest.mark.wandb

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def a_client_of_its_own(online_environment: None) -> Iterator[None]:
    """W&B's client reads its settings once a process."""
    import wandb

    wandb.teardown()
    yield
    wandb.teardown()


def cut_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    wandb.teardown()
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")


def command(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    line = [sys.executable, "-m", "tracking.models", *arguments]
    return subprocess.run(line, env=environment, check=False, capture_output=True, text=True, timeout=120)


def members(server: WandbServer, project: str = "p", name: str = "act-lift") -> list[list[str]]:
    return [sorted(member.aliases) for member in server.collection(server.entity, project, name).memberships]


def home_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "home").rglob("*") if path.is_file())


def test_what_was_published_offline_is_on_wandb_after_a_push(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    """GIVEN versions and alias moves without a network WHEN there is one THEN W&B has all of it, under its numbers."""
    other = save_bundle(tmp_path / "other", 7.0)
    publish(store, other, "act-lift", mirror=False)
    for number in range(2):
        bundle = save_bundle(tmp_path / str(number), float(number), elements=500_000)
        publish(store, bundle, "act-lift", "best", {"step": 100 * (number + 1), "success_rate": 0.5}, target="lab/p")
    move_aliases(store, "act-lift", {"best": 1, "prod": 2})
    assert wandb_server.requests == []

    done = push(store, lambda _: None)
    assert (done.uploaded, done.failed) == (
        {"act-lift:v1": "lab/p/act-lift:v0", "act-lift:v2": "lab/p/act-lift:v1"}, []
    )  # fmt: skip
    assert members(wandb_server) == [["best", "step-100"], ["latest", "prod", "step-200"]]
    artifact = wandb_server.artifact("lab", "p", "act-lift:best")
    assert artifact.type_name == "policy"
    assert sorted(artifact.entries) == ["README.md", "config.json", "model.safetensors", "processors/pre.json"]
    metadata = json.loads(artifact.metadata or "")
    assert (metadata["step"], metadata["success_rate"], metadata["store"]["version"]) == (100, 0.5, "act-lift:v1")
    assert store.state("act-lift").projects["lab/p"].artifacts == {1: "lab/p/act-lift:v0", 2: "lab/p/act-lift:v1"}
    assert pending_intents(store.root) == []
    assert home_bytes(tmp_path) < 1_000_000

    asked = len(wandb_server.requests)
    assert push(store).uploaded == {}
    assert not [request for request in wandb_server.requests[asked:] if request.operation == "CreateArtifact"]
    move_aliases(store, "act-lift", {"best": 2, "prod": None})
    assert push(store).aliases == 1
    assert members(wandb_server) == [["step-100"], ["best", "latest", "step-200"]]


def test_a_version_of_a_run_is_uploaded_by_the_runs_child(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    """GIVEN a run that publishes and a run that uses it THEN W&B shows both, and the store knows W&B's name."""
    tracker = tracker_for(tmp_path / "bc", name="bc")
    publish(store, save_bundle(tmp_path / "b"), "act-lift", "best", run_dir=tmp_path / "bc")
    found = resolve("act-lift:best", store)
    maker = tracker.get_run_id()
    tracker.finish()
    assert push(store).elsewhere == []

    import wandb

    run_dir = tmp_path / "dagger"
    user = tracker_for(run_dir, name="dagger", mode="offline")
    record_use(store, found, run_dir)
    record_use(store, found, run_dir)
    user.finish()
    assert push(store).uses == 0, "the run that used it is not there yet"
    artifact = wandb.Api().artifact("lab/vla-lego/act-lift:best")
    assert artifact.logged_by().id == maker
    assert list(artifact.used_by()) == []
    assert [run["id"] for run in store.state("act-lift").uses[0]] == [user.get_run_id()]


def test_a_version_comes_from_wandb_once_and_gets_the_stores_number(
    wandb_server: WandbServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = Store(tmp_path / "far")
    for number in range(3):
        bundle = save_bundle(tmp_path / str(number), float(number))
        publish(far, bundle, "act-lift", "best" if number == 1 else (), {"step": number}, target="lab/p")
    push(far, lambda _: None)
    publish(store, save_bundle(tmp_path / "own", 9.0), "act-lift", mirror=False)

    found = resolve("lab/p/act-lift:best", store)
    assert str(found) == "act-lift:v1"
    assert found.version is not None and found.version.digest == far.state("act-lift").versions[1].digest
    assert found.version.metadata["step"] == 1 and found.version.run is not None
    assert not (found.path / "README.md").exists()
    state = store.state("act-lift")
    assert state.aliases == {"latest": 0, "best": 1, "step-1": 1}
    assert state.projects["lab/p"].artifacts == {1: "lab/p/act-lift:v1"}
    assert verify(store, ["act-lift"]) == []
    assert home_bytes(tmp_path) < 100_000

    downloads = [request for request in wandb_server.requests if request.operation == "download"]
    assert str(resolve("p/act-lift:v1", store)) == "act-lift:v1"
    assert [request for request in wandb_server.requests if request.operation == "download"] == downloads
    assert str(resolve("lab/p/act-lift-best:latest", store)) == "act-lift:v1"
    with pytest.raises(UserError, match=r"W&B has no lab/p/act-lift:nope"):
        resolve("lab/p/act-lift:nope", store)
    # Nothing of it goes back, and without a network it is still found.
    assert (push(store).uploaded, push(store).aliases) == ({}, 0)
    cut_the_network(monkeypatch)
    again = resolve("lab/p/act-lift:best", store)
    assert str(again) == "act-lift:v1" and again.note is not None and "as W&B had it at" in again.note


def test_a_name_that_the_store_does_not_have_comes_from_wandb_also_in_the_old_forms(
    wandb_server: WandbServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN versions that only W&B has WHEN they are asked for as users have it written down THEN they are found."""
    import wandb

    far = Store(tmp_path / "far")
    for step, aliases in ((5000, []), (10000, ["best"]), (20000, ["best"]), (30000, ["final"])):
        publish(far, save_bundle(tmp_path / str(step), step), "act-lift", aliases, {"step": step}, target="lab/p")
    push(far, lambda _: None)
    with wandb.init(project="p", entity="lab", dir=tmp_path) as run:
        # As an upload was called before the step stood in an alias.
        theirs = wandb.Artifact("act-old-best-step-7", "policy", metadata={"step": 7})
        theirs.add_dir(str(tmp_path / "5000"))
        run.log_artifact(theirs).wait()
    monkeypatch.setenv("WANDB_PROJECT", "p")
    names = {
        "act-lift": 30000, "act-lift:best": 20000, "act-lift-best:latest": 20000, "act-lift-final": 30000,
        "act-lift-best-step-10000:latest": 10000, "act-lift-checkpoint-step-5000": 5000,
        "act-old-best-step-7:latest": 7,
    }  # fmt: skip
    for number, (name, step) in enumerate(names.items()):
        for prefix in ("", "lab/p/"):
            at = Store(tmp_path / f"{number}{bool(prefix)}")
            found = resolve(prefix + name, at)
            assert found.version is not None and found.version.metadata["step"] == step, name
            assert prefix or "was not in the model store: taken from W&B, p/" in (found.note or "")
            # From now on the store has it.
            assert prefix or str(resolve(name, at, pull=False)) == str(found)

    with monkeypatch.context() as context:
        context.setenv("WANDB_MODE", "offline")
        again = resolve("lab/p/act-lift-best-step-10000:latest", Store(tmp_path / "4True"))
        assert again.version is not None and again.version.step == 10000
    downloads = wandb_server.requests.copy()
    with pytest.raises(UserError, match=r"W&B's v1 is p/act-lift:v1"):
        resolve("act-lift:v1", store)
    assert wandb_server.requests == downloads and not store.exists
    with pytest.raises(
        UserError, match=r"there is no model store in [\s\S]*looked for in .*; W&B has no lab/p/act-left:lat"
    ):
        resolve("act-left", store)
    monkeypatch.setenv("GILBRETH_STORE", str(store.root))
    assert (download_checkpoint_from_wandb("act-lift:best") / "config.json").is_file()


def test_what_does_not_answer_is_waited_for_as_long_as_the_probe_waits(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hole:
        monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{hole.getsockname()[1]}")
        monkeypatch.setattr("tracking.store.remote._PROBE_S", 1.0)
        began = time.monotonic()
        with pytest.raises(UserError, match=r"did not answer within 1 s\n  next: where there is internet"):
            resolve("act-lift:best", store)
        assert time.monotonic() - began < 5


def test_a_store_that_may_only_be_read(wandb_server: WandbServer, store: Store, tmp_path: Path) -> None:
    """GIVEN a folder of others THEN its models are found and used, W&B's too, and what is not there is refused."""
    publish(store, save_bundle(tmp_path / "b"), "act-lift", "best", target="lab/p")
    push(store, lambda _: None)
    publish(store, save_bundle(tmp_path / "c", 1.0), "act-lift", target="lab/p")
    far = Store(tmp_path / "far")
    publish(far, save_bundle(tmp_path / "d", 2.0), "act-square", target="lab/p")
    push(far, lambda _: None)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    claim_identity(run_dir, "ab12cd34", "eval", "p", "lab")
    program = """
import sys
from pathlib import Path
from tracking import UserError
from tracking.store import open_store, resolve
from tracking.store.lineage import record_use
from tracking.store.resolve import pin

store = open_store()
found = resolve("act-lift:best", store)
pin(store, found, "a job", seconds=60)
record_use(store, found, Path(sys.argv[1]))
print(found, resolve("lab/p/act-lift:best", store), (found.path / "config.json").read_text())
try:
    resolve("act-square", store, project="lab/p")
except UserError as error:
    print(error)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "GILBRETH_STORE": str(store.root)}
    with only_readable(store.root):
        command = as_reader(sys.executable, "-c", program, run_dir)
        done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=120)
    lines = done.stdout.splitlines()
    assert lines[0] == 'act-lift:v0 act-lift:v0 {"type": "act"}'
    assert "lab/p/act-square:v0 is not in the model store" in lines[-2] and "may only be read here" in lines[-2]
    assert lines[-1] == "  next: name a store of yours with --store FOLDER or GILBRETH_STORE=FOLDER"
    said = f"note: the model store {store.root} may only be read here: the pin of act-lift:v0 is not recorded there\n"
    assert done.stderr == said
    assert [path.name for path in (run_dir / "inputs").iterdir()] == ["act-lift-v0.json"]


@pytest.mark.parametrize("name", ["model.pt", "weights.bin"])
def test_a_pickle_on_wandb_is_not_even_fetched(
    wandb_server: WandbServer, store: Store, tmp_path: Path, name: str
) -> None:
    import wandb

    (tmp_path / name).write_bytes(b"x")
    with wandb.init(project="p", entity="lab", dir=tmp_path) as run:
        artifact = wandb.Artifact("theirs", "model")
        artifact.add_file(str(tmp_path / name))
        run.log_artifact(artifact).wait()
    asked = len(wandb_server.requests)
    with pytest.raises(UserError, match=rf"pull: {name} is a pickle: whoever loads it runs what its maker put in"):
        resolve("lab/p/theirs:latest", store)
    assert store.names() == []
    assert not any((store.root / "incoming").iterdir()) if (store.root / "incoming").exists() else True
    assert not [found for found in wandb_server.requests[asked:] if found.operation == "upload"]


def test_what_is_deleted_on_wandb_is_not_said_to_be_there_and_goes_up_again_when_asked_for(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    """GIVEN `keep_last_n` WHEN the mirror has uploaded THEN older ones without an alias go, with a line each."""
    for number in range(4):
        bundle = save_bundle(tmp_path / str(number), float(number))
        publish(store, bundle, "act-lift", ["prod"] if number == 1 else [], {"keep_last_n": 1}, target="lab/p")
    said: list[str] = []
    assert push(store, said.append).failed == []
    assert [line for line in said if "keep_last_n" in line] == [
        f"lab/p/act-lift:v{number} goes: keep_last_n of act-lift is 1" for number in (2, 0)
    ]
    assert members(wandb_server) == [["prod"], ["latest"]]
    assert sorted(store.state("act-lift").versions) == [0, 1, 2, 3], "nothing goes from the store"
    found = resolve("act-lift:v0", store)
    assert on_wandb(store, found) is None
    assert version_facts(store, found)["wandb"] is None
    with pytest.raises(UserError, match=r"act-lift:v0 is not on W&B yet\n  next: python -m tracking.models push"):
        link(store, Reference("act-lift", "v0"), "wandb-registry-model/lift", [])
    assert not needs_push(store) and not may_need_push(store)
    assert push(store, said.append).uploaded == {}
    want_upload(store, found, "lab/p")
    assert push(store, said.append).uploaded == {"act-lift:v0": "lab/p/act-lift:v4"}
    assert on_wandb(store, found) == "lab/p/act-lift:v4"
    want_upload(store, found, "lab/other")
    assert push(store, said.append).uploaded == {"act-lift:v0": "lab/other/act-lift:v0"}


def test_a_link_into_a_registry_and_a_server_that_has_none(
    wandb_server: WandbServer, store: Store, tmp_path: Path
) -> None:
    publish(store, save_bundle(tmp_path / "b"), "act-lift", "best", mirror=False)
    with pytest.raises(UserError, match=r"act-lift:v0 is not on W&B yet\n  next: python -m tracking.models push"):
        link(store, Reference("act-lift", "best"), "wandb-registry-model/lift", ["prod"])
    want_upload(store, resolve("act-lift:best", store), "p")
    push(store, lambda _: None)
    linked = link(store, Reference("act-lift", "best"), "wandb-registry-model/lift", ["prod"])
    assert linked == "lab-org/wandb-registry-model/lift:v0"
    assert str(resolve("lab-org/wandb-registry-model/lift:prod", store)) == "act-lift:v0"
    with (
        wandb_server.faults.during("LinkArtifact", "http", status=404),
        pytest.raises(UserError, match=r"cannot be linked to [\s\S]*needs a server that has registries[\s\S]*next: "),
    ):
        link(store, Reference("act-lift", "best"), "wandb-registry-model/lift", ["prod"])


def test_without_a_network_it_is_said_and_nothing_is_lost(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(store, save_bundle(tmp_path / "b"), "act-lift", target="lab/p")
    cut_the_network(monkeypatch)
    with pytest.raises(Unreachable, match="Connection refused"):
        push(store)
    with pytest.raises(UserError, match=r"W&B cannot be asked: .*\n  next: where there is internet"):
        resolve("lab/p/act-lift:best", Store(tmp_path / "other"))
    monkeypatch.setenv("WANDB_MODE", "offline")
    with pytest.raises(Unreachable, match="WANDB_MODE is offline"):
        push(store)
    assert len(pending_intents(store.root)) == 1


def test_an_upload_that_is_refused_waits(wandb_server: WandbServer, store: Store, tmp_path: Path) -> None:
    publish(store, save_bundle(tmp_path / "b"), "act-lift", target="lab/p")
    with wandb_server.faults.during("CommitArtifact", "http", status=400):
        done = push(store, lambda _: None)
    assert (done.uploaded, len(done.failed), len(pending_intents(store.root))) == ({}, 1, 1)
    assert push(store, lambda _: None).uploaded == {"act-lift:v0": "lab/p/act-lift:v0"}


def test_the_command_line(wandb_server: WandbServer, store: Store, tmp_path: Path) -> None:
    bundle, root = save_bundle(tmp_path / "b"), str(store.root)
    done = command("publish", str(bundle), "act-lift", "--alias", "best", "--project", "lab/p", "--store", root)
    assert (done.returncode, done.stdout.splitlines()[0]) == (0, "act-lift:v0 (latest, best)")
    assert "its upload waits; where there is internet: python -m tracking.models push" in done.stdout
    done = command("push", "--store", root)
    assert done.stdout.splitlines() == [
        "act-lift:v0 is lab/p/act-lift:v0", "1 uploaded, 0 with other aliases, 0 failed"
    ]  # fmt: skip
    done = command("pull", "lab/p/act-lift:best", GILBRETH_STORE=str(tmp_path / "other"))
    assert done.stdout.startswith("lab/p/act-lift:best is act-lift:v0 (latest, best)\n")
    done = command("link", "act-lift:best", "wandb-registry-model/lift", "--alias", "prod", "--store", root)
    assert done.stdout == "lab-org/wandb-registry-model/lift:v0\n"
    done = command("list", "act-lift", "--store", root)
    assert "v0  latest, best" in done.stdout and done.stdout.rstrip().endswith("v0")
    done = command("push", "--store", root, WANDB_MODE="offline")
    assert (done.returncode, done.stderr) == (2, "error: W&B cannot be asked: WANDB_MODE is offline\n")


class TestOlderInterface:
    def test_download_and_list(
        self, wandb_server: WandbServer, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
    ) -> None:
        bundle = save_bundle(tmp_path / "b", 3.0)
        publish(store, bundle, "act-lift", "best", {"success_rate": 0.9}, target="lab/p", description="d")
        push(store, lambda _: None)
        monkeypatch.chdir(tmp_path / "home")
        monkeypatch.setenv("WANDB_PROJECT", "p")
        monkeypatch.setenv("GILBRETH_ARTIFACT_CACHE", str(tmp_path / "cache"))
        found = download_checkpoint_from_wandb("act-lift-best:latest")
        assert found.is_relative_to(tmp_path / "cache")
        weights = (tmp_path / "b" / "model.safetensors").read_bytes()
        assert (found / "model.safetensors").read_bytes() == weights
        copied = download_checkpoint_from_wandb("lab/p/act-lift:v0", tmp_path / "here")
        assert (copied / "model.safetensors").read_bytes() == weights
        (copied / "model.safetensors").write_bytes(b"")
        (listed,) = list_checkpoints_from_wandb()
        assert (listed["name"], listed["version"], listed["metadata"]["success_rate"]) == ("act-lift:v0", "v0", 0.9)
        assert (sorted(listed["aliases"]), listed["description"]) == (["best", "latest"], "d")
        monkeypatch.setenv("WANDB_MODE", "offline")
        monkeypatch.setenv("GILBRETH_STORE", str(store.root))
        (listed,) = list_checkpoints_from_wandb()
        assert (listed["name"], listed["metadata"]) == ("act-lift:v0", {"success_rate": 0.9})
        assert "these are the model store's" in capsys.readouterr().err
