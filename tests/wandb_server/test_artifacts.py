"""Artifacts of the real client: versions, aliases, links, lineage, download and deletion."""

from __future__ import annotations

import pytest

from wandb_server import WandbClient, WandbServer

pytestmark = pytest.mark.wandb

LOG = """
import pathlib, wandb

def make(weights, **given):
    folder = pathlib.Path("bundle")
    folder.mkdir(exist_ok=True)
    (folder / "weights.bin").write_text(weights)
    (folder / "config.json").write_text("{}")
    artifact = wandb.Artifact("act-lift", "model", **given)
    artifact.add_dir(str(folder))
    return artifact

run = wandb.init(project="p", id="maker")
versions = []
for weights, aliases in [("first", ["best", "step-1"]), ("second", ["best"]), ("second", ["final"])]:
    logged = run.log_artifact(make(weights, metadata={"weights": weights}), aliases=aliases).wait()
    versions.append(logged.version)
"""


def test_versions_aliases_and_lineage(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    """GIVEN three logs of two contents THEN there are two versions, each alias once, and both runs are known."""
    answer = wandb_client.python(
        LOG
        + """
run.finish()
user = wandb.init(project="p", id="user")
used = user.use_artifact("act-lift:best")
folder = used.download()
user.finish()
api = wandb.Api()
best = api.artifact("lab/p/act-lift:best")
answer = {
    "versions": versions,
    "used": [used.version, sorted(used.aliases), pathlib.Path(folder, "weights.bin").read_text()],
    "first": [api.artifact("lab/p/act-lift:v0").aliases, api.artifact("lab/p/act-lift:step-1").version],
    "best": [best.name, best.type, best.state, best.size, best.metadata, best.ttl is None],
    "files": sorted(file.name for file in best.files()),
    "by": [best.logged_by().id, [found.id for found in best.used_by()]],
    "logged": [found.name for found in api.run("lab/p/maker").logged_artifacts()],
    "taken": [found.name for found in api.run("lab/p/user").used_artifacts()],
    "list": [found.version for found in api.artifacts("model", "lab/p/act-lift")],
    "types": [found.name for found in api.artifact_types("lab/p")],
    "collections": [found.name for found in api.artifact_collections("lab/p", "model")],
    "exists": [api.artifact_exists("lab/p/act-lift:v1"), api.artifact_exists("lab/p/act-lift:v7")],
}
"""
    )
    assert answer == {
        "versions": ["v0", "v1", "v1"],
        "used": ["v1", ["best", "final", "latest"], "second"],
        "first": [["step-1"], "v0"],
        "best": ["act-lift:best", "model", "COMMITTED", 8, {"weights": "second"}, True],
        "files": ["config.json", "weights.bin"],
        "by": ["maker", ["user"]],
        "logged": ["act-lift:v0", "act-lift:v1"],
        "taken": ["act-lift:v1"],
        "list": ["v1", "v0"],
        "types": ["model"],
        "collections": ["act-lift"],
        "exists": [True, False],
    }
    artifact = wandb_server.artifact("lab", "p", "act-lift:best")
    assert (artifact.name, set(artifact.aliases), artifact.commits) == ("act-lift:v1", {"latest", "best", "final"}, 1)
    # config.json is the same in both versions and is uploaded once: the files are three, the manifests two.
    assert len(wandb_server.store.blobs.keys("content/")) == 3
    assert wandb_server.errors() == []


def test_aliases_and_metadata_are_edited_and_versions_deleted(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    answer = wandb_client.python(
        LOG
        + """
run.finish()
first = wandb.Api().artifact("lab/p/act-lift:v0")
first.aliases.append("gold")
first.aliases.remove("step-1")
first.metadata["note"] = 2
first.description = "the first"
first.save()
first = wandb.Api().artifact("lab/p/act-lift:gold")
answer = {"edited": [first.aliases, first.metadata, first.description]}
try:
    first.delete()
except wandb.errors.CommError as error:
    answer["refused"] = str(error)
first.delete(delete_aliases=True)
answer["left"] = [found.version for found in wandb.Api().artifacts("model", "lab/p/act-lift")]
answer["gone"] = wandb.Api().artifact_exists("lab/p/act-lift:gold")
run = wandb.init(project="p", id="later")
answer["next"] = run.log_artifact(make("third")).wait().version
run.finish()
"""
    )
    assert "gold" in answer.pop("refused")
    assert answer == {
        "edited": [["gold"], {"weights": "first", "note": 2}, "the first"],
        "left": ["v1"],
        "gone": False,
        "next": "v2",
    }
    assert {found.state for found in wandb_server.store.artifacts.values()} == {"COMMITTED", "DELETED"}


def test_links_to_a_portfolio_and_a_registry(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    answer = wandb_client.python(
        LOG
        + """
run.link_artifact(logged, "lab/p/shelf")
run.link_artifact(logged, "wandb-registry-model/lift", aliases=["production"])
run.finish()
api = wandb.Api()
linked = api.artifact("lab-org/wandb-registry-model/lift:production")
answer = {
    "link": [linked.qualified_name, linked.source_qualified_name, linked.is_link, sorted(linked.aliases)],
    "weights": pathlib.Path(linked.download(), "weights.bin").read_text(),
    "from": sorted(found.qualified_name for found in api.artifact("lab/p/act-lift:v1").linked_artifacts),
}
linked.unlink()
answer["unlinked"] = api.artifact_exists("lab-org/wandb-registry-model/lift:production")
answer["source"] = api.artifact_exists("lab/p/act-lift:v1")
"""
    )
    assert answer == {
        "link": ["lab-org/wandb-registry-model/lift:production", "lab/p/act-lift:v1", True, ["latest", "production"]],
        "weights": "second",
        "from": ["lab-org/wandb-registry-model/lift:v0", "lab/p/shelf:v0"],
        "unlinked": False,
        "source": True,
    }
    assert wandb_server.collection("lab", "p", "shelf").kind == "ArtifactPortfolio"


def test_an_artifact_is_added_to_a_finished_run_and_leaves_it_as_it_was(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    wandb_client.python(
        """
        import wandb
        with wandb.init(project="p", id="r", config={"lr": 0.1}) as run:
            for step in range(10):
                run.log({"loss": step})
        open("w.bin", "w").write("weights")
        with wandb.init(project="p", id="r", resume="must") as run:
            artifact = wandb.Artifact("late", "model")
            artifact.add_file("w.bin", policy="immutable", skip_cache=True)
            run.log_artifact(artifact, aliases=["best"]).wait()
        """
    )
    run = wandb_server.run("lab", "p", "r")
    assert (run.state, run.config, run.summary["loss"], len(run.history)) == ("finished", {"lr": 0.1}, 9, 10)
    assert [found.name for found in run.logged] == ["late:v0"]
    assert wandb_server.artifact("lab", "p", "late:best").created_by is run
