"""Runs of the real client, online: what arrives, resuming, endings, and reading back through `wandb.Api`."""

from __future__ import annotations

import json
import math

import pytest

from support import wait_until
from wandb_server import WandbClient, WandbServer

pytestmark = pytest.mark.wandb


def test_an_online_run_arrives_whole(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    """GIVEN a run that uses what a tracker uses WHEN it ends THEN all of it is on the server, each row once."""
    url = wandb_client.python(
        """
        import numpy, wandb
        run = wandb.init(project="p", id="r", name="shown", config={"lr": 0.1}, tags=["a"], notes="why", group="g",
                         job_type="bc")
        run.define_metric("train/step")
        run.define_metric("*", step_metric="train/step")
        for step in range(40):
            run.log({"train/step": step * 10, "loss": float("nan") if step == 3 else 1.0 / (step + 1)}, step=step)
        image = wandb.Image(numpy.zeros((4, 4, 3), dtype=numpy.uint8))
        run.log({"image": image, "table": wandb.Table(["x"], [[1]]), "hist": wandb.Histogram([1, 2, 2])}, step=40)
        run.config.update({"batch": 64})
        run.summary["best"] = 0.5
        run.tags = (*run.tags, "b")
        run.alert("low", "disk is low")
        print("a line on the console")
        open("note.txt", "w").write("kept")
        run.save("note.txt", policy="now")
        run.finish(exit_code=0)
        answer = run.url
        """
    )
    run = wandb_server.run("lab", "p", "r")
    assert url == f"{wandb_server.url}/lab/p/runs/r"
    assert (run.state, run.exit_code) == ("finished", 0)
    assert run.config == {"lr": 0.1, "batch": 64}
    assert run.tags == ["a", "b"]
    assert {key: run.values[key] for key in ("displayName", "notes", "groupName", "jobType")} == {
        "displayName": "shown",
        "notes": "why",
        "groupName": "g",
        "jobType": "bc",
    }
    assert [row["_step"] for row in run.history] == list(range(41))
    assert [row["train/step"] for row in run.history[:40]] == [step * 10 for step in range(40)]
    assert math.isnan(run.history[3]["loss"])
    assert run.history[40]["image"]["_type"] == "image-file"
    assert run.history_file.gaps() == []
    assert sum(upload.count for upload in run.history_file.uploads) == 41
    assert run.summary["best"] == 0.5
    assert len(run.raw_config["_wandb"]["value"]["m"]) >= 2
    assert any(line.endswith("a line on the console") for line in run.output)
    assert run.alerts[0]["title"] == "low"
    files = wandb_server.files(run)
    assert files["note.txt"] == b"kept"
    assert json.loads(files["wandb-metadata.json"])["host"]
    assert run.history[40]["image"]["path"] in files
    assert wandb_server.errors() == []


def test_how_runs_end_and_what_shows_meanwhile(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    while_running = wandb_client.python(
        """
        import wandb
        answer = []
        for name, code in [("good", 0), ("bad", 3), ("preempted", 143), ("again", 143), ("again", 0)]:
            run = wandb.init(project="p", id=name, resume="allow")
            answer.append(wandb.Api().run(f"lab/p/{name}").state)
            run.log({"a": 1})
            if code == 143:
                run.mark_preempting()
            run.finish(exit_code=code)
        """
    )
    assert while_running == ["running"] * 5
    ends = {run.name: (run.state, run.exit_code) for run in wandb_server.runs("lab", "p")}
    assert ends == {
        "good": ("finished", 0),
        "bad": ("failed", 3),
        "preempted": ("preempted", 143),
        "again": ("finished", 0),
    }


def test_a_run_that_is_being_preempted_shows_it(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    """GIVEN a run that was killed while it was preempted WHEN it is resumed THEN it runs again."""
    process = wandb_client.start_python(
        """
        import signal, wandb
        run = wandb.init(project="p", id="r", resume="allow")
        run.mark_preempting()
        signal.pause()
        """
    )
    wait_until(lambda: [run.state for run in wandb_server.runs("lab", "p")] == ["preempting"], 60, "preempting")
    wandb_client.kill(process)
    state = wandb_client.python(
        """
        import wandb
        with wandb.init(project="p", id="r", resume="allow"):
            answer = wandb.Api().run("lab/p/r").state
        """
    )
    assert (state, wandb_server.run("lab", "p", "r").state) == ("running", "finished")


def test_a_killed_run_shows_as_running_and_then_as_crashed(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    process = wandb_client.start_python("import signal, wandb; wandb.init(project='p', id='r'); signal.pause()")
    wait_until(lambda: wandb_server.count("file_stream"), 60, "the first sign of life")
    wandb_client.kill(process)
    run = wandb_server.run("lab", "p", "r")
    assert run.state == "running"
    run.crash_after = 0.0
    assert run.state == "crashed"


def test_resume_allow_must_never(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    """GIVEN a run of ten rows WHEN it is resumed THEN rows go on behind them, and refused ways leave it alone."""
    answer = wandb_client.python(
        """
        import wandb
        from wandb.errors import UsageError

        def log(steps, resume):
            run = wandb.init(project="p", id="r", resume=resume, config={"resume": resume})
            first = run.step
            for step in steps:
                run.log({"train/step": step}, step=step)
            run.summary["count"] = len(steps)
            run.finish()
            return [run.resumed, first]

        answer = {"allow-new": log(range(10), "allow"), "allow": log(range(5, 15), "allow")}
        answer["must"] = log(range(15, 20), "must")
        answer["refused"] = []
        for name, resume in [("r", "never"), ("unknown", "must")]:
            try:
                wandb.init(project="p", id=name, resume=resume)
            except UsageError as error:
                answer["refused"].append(resume)
        """
    )
    assert answer == {
        "allow-new": [False, 0],
        "allow": [True, 10],
        "must": [True, 15],
        "refused": ["never", "must"],
    }
    run = wandb_server.run("lab", "p", "r")
    # Rows 5-9 of the second segment are dropped by the client: the server is past them.
    assert [row["train/step"] for row in run.history] == list(range(20))
    assert [(upload.offset, upload.overwritten) for upload in run.history_file.uploads][-1] == (15, 0)
    assert run.config == {"resume": "must"}
    assert [run.name for run in wandb_server.runs("lab", "p")] == ["r"]


def test_online_without_resume_the_same_id_puts_its_rows_behind_and_counts_again(
    wandb_server: WandbServer, wandb_client: WandbClient
) -> None:
    """The client takes the line to go on at from the answer to its first upsert, but not the step."""
    wandb_client.python(
        """
        import wandb
        for begin, end in [(0, 10), (100, 104)]:
            run = wandb.init(project="p", id="r")
            for value in range(begin, end):
                run.log({"a": value})
            run.finish()
        """
    )
    run = wandb_server.run("lab", "p", "r")
    assert [row["a"] for row in run.history] == [*range(10), *range(100, 104)]
    assert [row["_step"] for row in run.history] == [*range(10), *range(4)]
    assert sum(upload.overwritten for upload in run.history_file.uploads) == 0


def test_the_api_reads_runs_back(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    answer = wandb_client.python(
        """
        import wandb
        for name, lr in [("one", 0.1), ("two", 0.2)]:
            with wandb.init(project="p", id=name, config={"lr": lr}, tags=[name], notes="n") as run:
                for step in range(1200):
                    run.log({"loss": step / 2, **({"rare": 1} if step % 100 == 0 else {})})
        api = wandb.Api()
        run = api.run("lab/p/one")
        answer = {
            "state": run.state, "config": run.config, "loss": run.summary["loss"], "tags": run.tags,
            "last": run.lastHistoryStep,
            "scan": [row["_step"] for row in run.scan_history()] == list(range(1200)),
            "part": [row["_step"] for row in run.scan_history(min_step=10, max_step=13)],
            "rare": len(list(run.scan_history(keys=["rare"]))),
            "beta": len(list(run.beta_scan_history())),
            "sampled": len(run.history(pandas=False)),
            "keys": len(run.history(keys=["loss"], samples=5000, pandas=False)),
            "files": sorted(file.name for file in run.files()),
            "host": bool(run.metadata["host"]),
            "all": [found.id for found in api.runs("lab/p")],
            "latest": [found.id for found in api.runs("lab/p", order="-created_at")],
            "by config": [found.id for found in api.runs("lab/p", filters={"config.lr": 0.2, "state": "finished"})],
            "pages": [found.id for found in api.runs("lab/p", per_page=1)],
            "count": len(api.runs("lab/p")),
            "viewer": api.viewer.username, "projects": [project.name for project in api.projects("lab")],
        }
        """
    )
    assert answer == {
        "state": "finished",
        "config": {"lr": 0.1},
        "loss": 599.5,
        "tags": ["one"],
        "last": 1199,
        "scan": True,
        "part": [10, 11, 12],
        "rare": 12,
        "beta": 1200,
        "sampled": 500,
        "keys": 1200,
        "files": ["config.yaml", "requirements.txt", "wandb-metadata.json", "wandb-summary.json"],
        "host": True,
        "all": ["one", "two"],
        "latest": ["two", "one"],
        "by config": ["two"],
        "pages": ["one", "two"],
        "count": 2,
        "viewer": "loopback",
        "projects": ["p"],
    }
    assert wandb_server.errors() == []


def test_the_api_changes_and_deletes_runs(wandb_server: WandbServer, wandb_client: WandbClient) -> None:
    answer = wandb_client.python(
        """
        import wandb
        wandb.init(project="p", id="r", config={"lr": 0.1}).finish()
        run = wandb.Api().run("lab/p/r")
        run.tags.append("late")
        run.config["note"] = "later"
        run.summary["score"] = 5
        run.notes = "changed"
        run.update()
        open("extra.txt", "w").write("more")
        run.upload_file("extra.txt")
        run = wandb.Api().run("lab/p/r")
        answer = [run.state, run.tags, run.config, run.summary["score"], run.notes]
        answer.append(open(run.file("extra.txt").download("loaded").name).read())
        run.file("extra.txt").delete()
        answer.append("extra.txt" in [file.name for file in wandb.Api().run("lab/p/r").files()])
        """
    )
    assert answer == ["finished", ["late"], {"lr": 0.1, "note": "later"}, 5, "changed", "more", False]
    wandb_client.python("import wandb; wandb.Api().run('lab/p/r').delete()")
    assert wandb_server.runs("lab", "p") == []


def test_a_client_of_an_old_self_hosted_server_works(wandb_client: WandbClient) -> None:
    """GIVEN a server without any modern feature THEN the client falls back to the old questions."""
    with WandbServer(features=()) as server:
        old = WandbClient(server, wandb_client.folder)
        answer = old.python(
            """
            import wandb
            run = wandb.init(project="p", id="r")
            run.log({"a": 1})
            artifact = wandb.Artifact("files", "data")
            with artifact.new_file("x.txt") as file:
                file.write("x")
            run.log_artifact(artifact).wait()
            run.finish()
            found = wandb.Api().artifact("lab/p/files:latest")
            answer = [found.version, [file.name for file in found.files()], open(found.download() + "/x.txt").read()]
            """
        )
        assert answer == ["v0", ["x.txt"], "x"]
        assert server.count("ArtifactByName") == 1
        assert server.errors() == []
