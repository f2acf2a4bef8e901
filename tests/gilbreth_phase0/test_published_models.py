"""Models on a cluster without internet: trained on one node, found by name on another, on W&B afterwards."""

from __future__ import annotations

import json

import pytest

from gilbreth_phase0.datasets import read_environment
from gilbreth_phase0.evaluate import evaluate_policy, summary
from gilbreth_phase0.policies import load_bundle
from gilbreth_phase0.seeds import REPORT
from launch.lab import Lab
from tracking.files import read_json
from tracking.store import Store, resolve

from support import free_port, wait_until
from sync_runs import identity_of, site, sync
from sync_site import PROJECT, Site
from tiny_dataset import SMALL, make_tiny_dataset
from training_jobs import BcRun, submit, submit_bc

__all__ = ["site"]

pytestmark = [
    pytest.mark.slurm,
    pytest.mark.train,
    pytest.mark.sim,
    pytest.mark.wandb,
    pytest.mark.timeout(600),
]

LOOK = """
import sys, wandb
best = wandb.Api().artifact(sys.argv[1])
answer = {
    "aliases": sorted(best.aliases),
    "metadata": dict(best.metadata),
    "type": best.type,
    "files": sorted(file.name for file in best.files()),
    "logged_by": best.logged_by().id,
    "used_by": [run.id for run in best.used_by()],
}
"""


def node_of(run: BcRun) -> str:
    """Where a job that is over has run."""
    command = ("squeue", "--noheader", "--states=all", f"--jobs={run.job_id}", "--format=%N")
    return run.slurm(*command).strip()


def test_a_model_goes_by_name_from_node_to_node_and_then_to_wandb(
    lab: Lab, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN nodes without a way to W&B THEN `eval` finds what `bc` published, and acts the same; `once` mirrors it."""
    for name, value in site.environment().items():
        if name.startswith("WANDB_"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    make_tiny_dataset(site.folder / "data", "lift")
    settings = [f"bc.policy_settings.{key}={json.dumps(value)}" for key, value in SMALL.items()]
    settings += ["bc.batch_size=8", "bc.eval_episodes=2"]
    few = ["resources.gpus_per_node=0", "resources.tasks_per_node=1"]
    trained = submit_bc(lab, site.folder, site.folder / "data", 6, *settings, *few)
    store = Store(site.folder / "models")
    trained.wait_until_done()
    found = resolve("act-lift:best", store, pull=False)
    assert found.version is not None and (str(found), found.version.step) == ("act-lift:v0", 6)

    # The evaluation has to go elsewhere.
    first = node_of(trained)
    where = ("--nodelist", first, "--exclusive")
    filler = trained.slurm("sbatch", "--parsable", *where, "--output=/dev/null", "--wrap=sleep 300").strip()
    try:
        busy = ("squeue", "--noheader", f"--jobs={filler}", "--format=%T")
        wait_until(lambda: trained.slurm(*busy).strip() == "RUNNING", 60, "the filler", interval=0.2)
        given = {"cluster.run_root": site.root, "eval.policy": "act-lift:best", "eval.episodes": 2}
        evaluated = submit(lab, "eval", given, "eval.num_workers=1", *few)
        evaluated.wait_until_done()
    finally:
        trained.slurm("scancel", filler)
    assert node_of(evaluated) != first
    assert read_json(evaluated.run_dir / "done.json")["policy"] == "act-lift:v0"
    # Rewards follow from every action of every step.
    here = read_json(evaluated.run_dir / "evaluation.json")["trained"]
    policy, environment = load_bundle(trained.run_dir / "bundle"), read_environment(trained.run_dir / "bundle")
    there = summary(evaluate_policy(policy, environment, range(REPORT.start, REPORT.start + 2)))
    assert {**there.as_json(), "starts": "fixed"} == here
    assert [run["name"] for run in store.state("act-lift").uses[0]] == [evaluated.run_dir.name]
    assert store.state("act-lift").pins.get(0, {}) == {}, "the use holds it now"

    assert site.server.requests == []
    done = sync(site, "once")
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    shown = site.client.python(LOOK, f"{site.server.entity}/{PROJECT}/act-lift:best")
    assert shown["aliases"] == ["best", "final", "latest", "step-6"]
    assert {"config.json", "model.safetensors", "environment.json", "README.md"} <= set(shown["files"])
    assert (shown["type"], shown["metadata"]["dataset"], shown["metadata"]["step"]) == ("policy", "lift", 6)
    assert shown["logged_by"] == identity_of(trained.run_dir).run_id
    assert shown["used_by"] == [identity_of(evaluated.run_dir).run_id]
