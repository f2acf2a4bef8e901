"""`python -m tracking.models` without a network."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tracking.intents import pending_intents
from tracking.models.__main__ import app
from tracking.store import Store, publish

from model_store import save_bundle

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = ["list", "show", "publish", "pull", "push", "alias", "best", "link", "prune", "verify"]


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("WANDB_")] + ["GILBRETH_STORE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    for number in range(3):
        save_bundle(tmp_path / f"b{number}", float(number))


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def test_a_models_life(tmp_path: Path) -> None:
    done = run("publish", "b0", "act-lift", "--alias", "best", "--set", "success_rate=0.93", "--set", "step=10000")
    store = Store(tmp_path / "models")
    folder = store.folder("act-lift", store.state("act-lift").versions[0])
    assert done.stdout.splitlines() == [
        "act-lift:v0 (latest, best, step-10000)",
        str(folder),
        "its upload waits; where there is internet: python -m tracking.models push",
    ]
    assert run("publish", "b1", "act-lift", "--from", "act-lift:best", "--local").stdout.startswith("act-lift:v1 ")
    assert run("publish", "b2", "act-lift", "--local").exit_code == 0
    assert "act-lift:v0 (latest, best, final, step-10000): the same files were there" in (
        run("publish", "b0", "act-lift", "--alias", "final", "--local").stdout
    )
    assert run("alias", "act-lift:v2", "prod", "stable").stdout == "act-lift:v2: prod, stable\n"
    assert run("alias", "act-lift:v2", "prod", "--remove").stdout == "act-lift:v2: stable\n"

    shown = run("show", "act-lift-best-step-10000:latest", "--json")
    assert json.loads(shown.stdout)["metadata"] == {"success_rate": 0.93, "step": 10000}
    assert shown.stderr == "note: act-lift-best-step-10000:latest is an old name for act-lift:v0\n"
    assert [facts["version"] for facts in json.loads(run("list", "--json").stdout)] == ["v0", "v1", "v2"]
    assert run("verify").stdout.splitlines() == [f"act-lift:v{number}: 3 files as published" for number in range(3)]

    assert run("prune", "--grace", "0", "--keep-last", "0", "--dry-run").stdout.splitlines() == [
        "act-lift:v1 would go",
        "act-lift:v0 stays: alias latest, best, final, step-10000",
        "act-lift:v2 stays: alias stable",
        "1 version would go",
    ]
    assert "act-lift:v1 is deleted" in run("prune", "act-lift", "--grace", "0", "--keep-last", "0").stdout
    assert sorted(Store(store.root).state("act-lift").versions) == [0, 2]
    assert len(pending_intents(store.root)) == 1


def test_what_a_model_was_made_from_is_shown_back_to_the_demonstrations(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    bc = {"step": 600, "dataset": "lift", "dataset_episodes": 30, "dataset_frames": 1212, "success_rate": 0.41}
    publish(store, tmp_path / "b0", "act-lift", metadata=bc, mirror=False)
    dagger = {"step": 1200, "dataset": "lift", "round": 2, "expert_frames": 152, "interventions": 12}
    dagger |= {"datasets": ["lift", "it's/round-01"], "datasets_episodes": [30, 6], "datasets_frames": [1212, 99]}
    dagger |= {"dagger_filter": "corrections", "initial_policy": "act-lift:v0"}
    publish(store, tmp_path / "b1", "dagger-lift", "best", dagger, inputs=["act-lift:v0", "gone:v7"], mirror=False)
    shown = run("show", "dagger-lift:best").stdout.splitlines()
    assert shown[-7:-1] == [
        "dagger-lift:v0: step 1,200, round 2, 152 frames of the expert in 12 takeovers",
        "├── dataset lift: 30 episodes, 1,212 frames",
        "├── dataset it's/round-01: 6 episodes, 99 frames",
        "├── act-lift:v0: step 600, success 41 %",
        "│   └── dataset lift: 30 demonstrations, 1,212 frames",
        "└── gone:v7: not in this store",
    ]
    told = json.loads(run("show", "dagger-lift", "--json").stdout)["lineage"]
    assert [(one["kind"], one["name"]) for one in told["origins"][2]["origins"]] == [("dataset", "lift")]
    by_hand = {"datasets": "x", "dataset": 3, "initial_policy": "../it's here", "step": "7", "round": None}
    publish(store, tmp_path / "b2", "other", metadata=by_hand, inputs=["/a folder", "a:b:v3"], mirror=False)
    lines = run("show", "other").stdout.splitlines()[-5:-1]
    assert lines == [
        "other:v0",
        *(
            f"{mark}── {name}: not in this store"
            for mark, name in zip("├├└", ["/a folder", "a:b:v3", "../it's here"], strict=True)
        ),
    ]


def test_a_name_of_the_old_forms_is_published_as_what_it_means() -> None:
    old = run("publish", "b1", "act-lift-best-step-12000", "--alias", "prod", "--local")
    assert old.stderr == "note: act-lift-best-step-12000 is an old name for act-lift with best, step-12000\n"
    assert old.stdout.startswith("act-lift:v0 (latest, best, prod, step-12000)\n")


def test_an_alias_is_taken_only_from_the_version_that_has_it(tmp_path: Path) -> None:
    for number in range(2):
        run("publish", f"b{number}", "act-lift", "--local")
    run("alias", "act-lift:v1", "prod")
    aliases = {"latest": 1, "prod": 1}
    for model, alias, message in (
        (
            "act-lift:v0",
            "prod",
            "act-lift:v0 does not have 'prod': it is at act-lift:v1\n  next: python -m tracking.mod",
        ),
        ("act-lift:v1", "latest", "'latest' cannot be taken away: 'act-lift' alone stands for the version that has it"),
        ("act-lift:v1", "pro", "unknown alias of act-lift 'pro'. Did you mean 'prod'?"),
    ):
        refused = run("alias", model, alias, "--remove")
        assert refused.exit_code == 2 and message in refused.stderr
        assert Store(tmp_path / "models").state("act-lift").aliases == aliases
    assert run("alias", "act-lift:prod", "prod", "--remove").stdout == "act-lift:v1: latest\n"


def test_a_disk_that_takes_no_more_is_said_with_the_file(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tracking.models", "publish", "b0", "act-lift", "--local"],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300)),
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'models' / 'incoming'}") and "Traceback" not in done.stderr
    assert "/model.safetensors: File too large\n  next: make room" in done.stderr
    assert Store(tmp_path / "models").names() == []


def save_evaluation(path: Path, successes: int, first: int = 0) -> str:
    episodes = [{"seed": first + n, "success": n < successes, "reward": float(n), "length": 9} for n in range(20)]
    path.write_text(json.dumps({"trained": {"episodes": episodes}}))
    return str(path)


def test_best_moves_to_what_is_better(tmp_path: Path) -> None:
    """GIVEN three versions THEN `best` starts from nothing, and leaves a version only for one better beyond chance."""
    for number in range(3):
        run("publish", f"b{number}", "act-lift", "--local")
    old, new = (save_evaluation(tmp_path / f"{n}.json", n) for n in (8, 12))
    store = Store(tmp_path / "models")

    def now() -> int | None:
        return store.state("act-lift").aliases.get("best")

    assert run("best", "act-lift:v0", "--evaluation", old, "--dry-run").stdout == (
        "act-lift:v0 is the best: it is the first\n"
    )
    assert now() is None
    assert run("best", "act-lift:v0", "--evaluation", old).exit_code == 0
    looks = run("best", "act-lift:v1", "--evaluation", new, "--against", old)
    assert (looks.exit_code, now()) == (1, 0)
    assert looks.stdout.splitlines() == [
        "act-lift:v1 is not the best: better on 4 and worse on 0 of 20 seeds (p = 0.0625), which may be chance",
        "to confirm it, evaluate both on fresh seeds and give --fresh ITS_FILE THE_BEST_ONES_FILE",
    ]
    fresh = [save_evaluation(tmp_path / f"f{n}.json", n, first=20) for n in (17, 9)]
    assert run("best", "act-lift:v1", "--evaluation", new, "--against", old, "--fresh", *fresh).exit_code == 0
    assert now() == 1
    assert run("best", "act-lift:v2", "--evaluation", old, "--against", new, "--best-rule", "naive").exit_code == 1
    naive = run("best", "act-lift:v2", "--evaluation", new, "--against", old, "--best-rule", "naive")
    assert naive.stdout == "act-lift:v2 is the best: 0.6 against 0.4 on average (naive)\n"
    assert now() == 2
    assert run("best", "act-lift:best", "--evaluation", new).stdout == "act-lift:v2 is best already\n"
    for arguments, message in (
        ([], "act-lift:v2 is best now\n  next: --against"),
        (["--against", old, "--best-rule", "luck"], "unknown best rule 'luck'"),
        (["--against", str(tmp_path / "b0")], "evaluation.json does not exist"),
        (["--against", old, "--metric", "succes"], "'succes'. Did you mean 'success'"),
    ):
        refused = run("best", "act-lift:v0", "--evaluation", new, *arguments)
        assert refused.exit_code == 2 and message in refused.stderr


def test_tables_fit_into_eighty_columns() -> None:
    name = "act-lerobot-" + "very-" * 12 + "long-name"
    for number in range(3):
        aliases = [f"--alias=a-long-alias-{number}-{other}" for other in range(6)]
        run("publish", f"b{number}", name, *aliases, "--set", f"step={number}000000", "--set", f"note={'word ' * 40}")
    for arguments in (["list"], ["list", name], ["show", name]):
        lines = run(*arguments).stdout.splitlines()
        if arguments[0] == "show":
            assert Path(lines.pop()).is_dir(), "whole, to be copied"
        assert max(map(len, lines)) <= 80, arguments
    assert "v2" in run("list", name).stdout and "a-long-alias-2-5" in run("list", name).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list"], "there is no model store in"),
        (["publish", "nowhere", "act-lift"], "nowhere: No such file or directory"),
        (["publish", "b0", "act lift"], "model name 'act lift' cannot be part of a path"),
        (["publish", "b0", "act-lift", "--alias", "v3"], "'v3' cannot be an alias"),
        (["publish", "b0", "act-lift", "--set", "step"], "--set 'step': expected KEY=VALUE"),
        (["publish", "b0", "act-lift", "--run", "b1"], "b1 holds no run"),
        (["publish", "b0", "act-lift", "--project", "a/b/c"], "'a/b/c' is no W&B project: expected ENTITY/PROJECT"),
        (["show", "a:b:c"], "'a:b:c' names no model"),
        (["pull", "act-lift:best"], "'act-lift:best' names no version on W&B"),
        (["alias", "./b0", "best"], "./b0 is no version of the store"),
        (["link", "./b0", "wandb-registry-model/x"], "./b0 is a path"),
    ],
)
def test_what_is_refused(arguments: list[str], message: str) -> None:
    done = run(*arguments)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ") and message in done.stderr
    assert "Traceback" not in done.stderr


def test_verify_fails_where_a_file_differs(tmp_path: Path) -> None:
    run("publish", "b0", "act-lift", "--local")
    store = Store(tmp_path / "models")
    config = store.folder("act-lift", store.state("act-lift").versions[0]) / "config.json"
    config.chmod(0o644)
    config.write_text("{}")
    done = run("verify")
    assert done.exit_code == 1
    assert f"error: act-lift:v0: {config} has 2 bytes" in done.stdout


def test_every_command_says_what_it_does() -> None:
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.exit_code == 0 and f"{command} [OPTIONS]" in done.stdout


def test_a_login_node_answers_at_once(tmp_path: Path) -> None:
    heavy = {"torch", "wandb", "numpy", "lerobot", "pydantic"}
    code = f"import sys, tracking.store, tracking.models.__main__; print(*set(sys.modules) & {heavy!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""
