"""The sync daemon and a model store: versions, aliases, metadata and lineage reach W&B behind the runs."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from tracking.store import Store, publish, resolve
from tracking.store.lineage import record_use
from tracking.store.pending import may_need_push, needs_push
from tracking.store.resolve import move_aliases
from tracking.sync.daemon import read_daemons
from tracking.sync.pushed import read_push_state
from tracking.sync.scan import Scanner

from model_store import save_bundle
from support import wait_until
from sync_runs import identity_of, site, sync, write_run
from sync_site import PROJECT, Site

__all__ = ["site"]

pytestmark = pytest.mark.wandb

EVERYTHING = "Everything is on the server already.\n"
LOOK = """
import json, sys, wandb
api = wandb.Api()
found = []
for artifact in api.artifacts("policy", sys.argv[1]):
    by = artifact.logged_by()
    found.append({
        "name": artifact.name,
        "aliases": sorted(artifact.aliases),
        "success_rate": artifact.metadata.get("success_rate"),
        "store": artifact.metadata["store"]["version"],
        "by": by.id if by else None,
        "used_by": [run.id for run in artifact.used_by()],
    })
answer = sorted(found, key=lambda one: one["store"])
"""


def on_wandb(site: Site, name: str = "act-lift") -> list[dict[str, object]]:
    """The versions of a model as the public API shows them, in the order of the store's numbers."""
    answer: list[dict[str, object]] = site.client.python(LOOK, f"{site.server.entity}/{PROJECT}/{name}")
    return answer


@pytest.fixture
def store(site: Site) -> Store:
    return Store(site.folder / "models")


def make_lineage(site: Site, store: Store, tmp_path: Path) -> tuple[str, str]:
    """Two versions that runs made, the first of which another run used, and the ids of maker and user."""
    runs = [write_run(site.root / name, 3) for name in ("bc", "dagger", "eval")]
    for number, run_dir in enumerate(runs[:2]):
        bundle = save_bundle(tmp_path / str(number), float(number))
        publish(store, bundle, "act-lift", "best", {"step": number, "success_rate": 0.5}, run_dir=run_dir)
    record_use(store, resolve("act-lift:v0", store), runs[2])
    return identity_of(runs[0]).run_id, identity_of(runs[2]).run_id


def test_once_brings_the_store_to_wandb_behind_the_runs(site: Site, store: Store, tmp_path: Path) -> None:
    """GIVEN runs and a store written without a network WHEN `once` runs with its defaults THEN W&B has all of it."""
    maker, user = make_lineage(site, store, tmp_path)
    publish(store, save_bundle(tmp_path / "own", 9.0), "other", target=PROJECT)

    done = sync(site, "once")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert done.stdout.endswith("4 on the server\n")
    first, second = on_wandb(site)
    assert (first["store"], second["store"]) == ("act-lift:v0", "act-lift:v1")
    assert (first["aliases"], second["aliases"]) == (["step-0"], ["best", "latest", "step-1"])
    assert (first["success_rate"], first["by"], first["used_by"]) == (0.5, maker, [user])
    assert second["used_by"] == []
    assert [found["store"] for found in on_wandb(site, "other")] == ["other:v0"]
    assert sync(site, "once").stdout == EVERYTHING

    move_aliases(store, "act-lift", {"best": 0, "prod": 0})
    assert sync(site, "once").stdout.endswith("1 on the server\n")
    assert [found["aliases"] for found in on_wandb(site)] == [["best", "prod", "step-0"], ["latest", "step-1"]]


def test_a_fault_is_recorded_shown_and_tried_again(site: Site, store: Store, tmp_path: Path) -> None:
    publish(store, save_bundle(tmp_path / "b"), "act-lift", target=PROJECT)
    scanner = Scanner([store.root])
    assert scanner.due() == [store.root]
    with site.server.faults.during("CreateArtifact", "http", status=400):
        done = sync(site, "once")
    assert done.returncode == 1
    assert "error: " in done.stderr and "act-lift:v0" in done.stderr
    state = read_push_state(store.root)
    assert state is not None and state.failures == 1 and state.next_try is not None
    assert (scanner.due(), scanner.due(again=True)) == ([], [store.root])

    status = sync(site, "status")
    assert "models, waiting" in status.stdout and "next try in" in status.stdout
    assert sync(site, "once").returncode == 0
    (line,) = json.loads(sync(site, "status", "--json").stdout)["runs"]
    assert (line["path"], line["rows"], line["on_server"], line["waiting"]) == (str(store.root), 1, 1, 0)
    assert (line["state"], line["error"]) == ("models", None)
    assert (scanner.due(), scanner.due(again=True)) == ([], [])


def test_the_daemon_follows_a_store_that_is_made_after_its_start(site: Site, store: Store, tmp_path: Path) -> None:
    site.root.mkdir(exist_ok=True)
    daemon = site.start([sys.executable, "-m", "tracking.sync", "daemon", "--interval=1"], "daemon.log")
    wait_until(lambda: read_daemons(site.root), 30, "the daemon to look", interval=0.2)
    assert not store.root.exists()
    _, user = make_lineage(site, store, tmp_path)
    wait_until(lambda: not may_need_push(store) and not needs_push(store), 90, "the lineage", interval=0.2)
    assert [found["used_by"] for found in on_wandb(site)] == [[user], []]
    move_aliases(store, "act-lift", {"stable": 0})
    wait_until(lambda: not needs_push(store), 60, f"the alias: {site.said()}", interval=0.2)
    assert on_wandb(site)[0]["aliases"] == ["stable", "step-0"]
    assert f"{store.root} is there now, and looked after too" in site.said()
    assert [state.pid for state in read_daemons(store.root)] == [daemon.pid]
    assert site.stop(daemon) == 0
    assert [state.ended for state in read_daemons(store.root)] == ["a signal"]


def test_a_root_that_is_named_may_be_made_later_and_made_again(site: Site, store: Store) -> None:
    site.root.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tracking.sync", "daemon", "--interval=0.2"]
    refused = sync(site, "daemon", "--root=models")
    assert (refused.returncode, refused.stderr.splitlines()[0]) == (2, "error: --root models: there is no such folder")
    daemon = site.start([*command, "--root=runs", "--root=models"], "daemon.log")
    wait_until(lambda: read_daemons(site.root), 30, "the daemon to look")
    assert site.said() == f"{store.root} is not there yet; it is looked after once it is\n"
    store.root.mkdir()
    wait_until(lambda: read_daemons(store.root), 30, "the daemon to see it")
    shutil.rmtree(store.root)
    store.make()
    wait_until(lambda: read_daemons(store.root), 30, "the daemon to see it again")
    assert site.stop(daemon) == 0
