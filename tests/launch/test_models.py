"""Models by name at submission: which store, what is refused, and what is held for a job that waits."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from launch.config import ROOT, Config, resolve
from launch.models import held_models, store_of
from launch.preflight import findings
from launch.spec import JobSpec, make_spec
from tracking.errors import UserError
from tracking.store import Store, publish
from tracking.store import resolve as find
from tracking.store.push import push
from tracking.store.resolve import move_aliases

from model_store import as_reader, only_readable, save_bundle
from online_runs import online_environment
from support import free_port

__all__ = ["online_environment"]

NOW = datetime(2025, 1, 2, 3, 4, 5)


def evaluation(root: Path, policy: str, *settings: str) -> tuple[Config, JobSpec]:
    config = resolve(
        "eval", "lab", [f"eval.policy={policy}", f"cluster.run_root={json.dumps(str(root / 'runs'))}", *settings]
    )
    return config, make_spec(config, NOW, root)


def faults(root: Path, policy: str, *settings: str) -> list[str]:
    config, spec = evaluation(root, policy, "cluster.node_local=[]", *settings)
    return [f"{one.what}; {one.fix}" for one in findings(config, spec) if one.level == "error"]


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv("GILBRETH_STORE", raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    store = Store(tmp_path / "models")
    publish(store, save_bundle(tmp_path / "b"), "act-lift", "best", mirror=False)
    return store


def test_the_store_is_the_profiles_else_the_shells_else_beside_the_runs(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def root_of(*settings: str) -> Path | None:
        _, spec = evaluation(tmp_path, "act-lift", *settings)
        found = store_of(spec)
        return found.root if found is not None else None

    assert root_of() == tmp_path / "models"
    monkeypatch.setenv("GILBRETH_STORE", "/group/models")
    assert root_of() == Path("/group/models")
    assert root_of("cluster.store_root=theirs") == tmp_path / "theirs"
    smoke = make_spec(resolve("smoke", "lab", []), NOW, tmp_path)
    assert store_of(smoke) is None, "a stage that has to do with no models is not refused for its store"


def test_a_store_that_cannot_be_used_is_refused(store: Store, tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    (fault, *_) = faults(tmp_path, "act-lift", f"cluster.store_root={tmp_path}/thesis")
    assert "is no model store: it holds thesis.tex; choose another: --set cluster.store_root=FOLDER" in fault
    (fault, *_) = faults(tmp_path, "act-lift", f"cluster.store_root={tmp_path}/b/config.json/models")
    assert f"models' cannot be written ({tmp_path}/b/config.json)" in fault
    config, spec = evaluation(tmp_path, "act-lift", "cluster.store_root=/dev/shm/m", "cluster.node_local=[/dev/shm]")
    assert any("is below /dev/shm, which every node has for itself" in one.what for one in findings(config, spec))


def test_a_store_that_may_only_be_read_will_do_for_a_stage_that_only_loads(store: Store, tmp_path: Path) -> None:
    program = """
import sys
from datetime import datetime
from pathlib import Path
from launch.config import resolve
from launch.models import held_models
from launch.preflight import findings
from launch.spec import make_spec

root = Path(sys.argv[1])
for stage, given in (("eval", "eval.policy=act-lift:best"), ("bc", "bc.repo_ids=lift")):
    config = resolve(stage, "lab", [given, f"cluster.store_root='{root}/models'", "cluster.node_local=[]"])
    spec = make_spec(config, datetime(2025, 1, 2), root)
    print(*[f"{one.what}; {one.fix}" for one in findings(config, spec) if "store_root" in one.what])
    if stage == "eval":
        with held_models(config, spec) as held:
            print(held.argv[0])
"""
    with only_readable(store.root):
        command = as_reader(sys.executable, "-c", program, tmp_path)
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    free, model, policy, refused = done.stdout.splitlines()
    assert (free, policy) == ("", "--policy=act-lift:v0")
    assert model.startswith("model act-lift:best is act-lift:v0 in ")
    assert f"models' cannot be written ({store.root}); choose another: --set cluster.store_root=FOLDER" in refused
    assert done.stderr == (
        f"note: the model store {store.root} may only be read here: the pin of act-lift:v0 is not recorded there\n"
    )


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("act-lfit", "no model is found by that name: unknown model 'act-lfit'. Did you mean 'act-lift'?"),
        ("act-lift:bset", "Did you mean 'best'?"),
        ("act-lfit", "W&B cannot be asked: WANDB_MODE is offline; next: where there is internet (a login node): "),
        ("act-lift:v7", "act-lift:v7 is a number of the store, so W&B is not asked for it"),
        ("runs/x/bundle", "runs/x/bundle has no config.json, so no policy; a bc run leaves one in runs/NAME/bundle"),
        ("/nowhere", "/nowhere has no config.json, so no policy"),
    ],
)
def test_a_model_that_is_not_there_is_refused(store: Store, tmp_path: Path, policy: str, message: str) -> None:
    (tmp_path / "runs").mkdir()
    (fault,) = faults(tmp_path, policy)
    assert message in fault


def test_what_can_be_loaded_is_not_refused(store: Store, tmp_path: Path) -> None:
    for policy in ("act-lift", "act-lift:v0", str(tmp_path / "b"), "b", "lab/p/act-lift:best"):
        assert faults(tmp_path, policy) == [], policy


def test_a_waiting_job_keeps_the_version_that_it_was_submitted_with(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN a job that waits WHEN the alias moves on THEN the job's version stays, and is the one that it loads."""
    config, spec = evaluation(tmp_path, "act-lift:best")
    with held_models(config, spec) as held:
        publish(store, save_bundle(tmp_path / "c", 1.0), "act-lift", "best", mirror=False)
    assert "--policy=act-lift:v0" in held.argv and len(held.argv) == len(spec.argv)
    assert capsys.readouterr().out == f"model act-lift:best is act-lift:v0 in {store.root}\n"
    pins = store.state("act-lift").pins[0]
    assert list(pins) == [f"queued job {spec.name}"]
    move_aliases(store, "act-lift", {"best": 1})

    with pytest.raises(UserError, match="sbatch refused"), held_models(config, spec) as held:
        assert "--policy=act-lift:v1" in held.argv
        raise UserError("sbatch refused the job")
    assert store.state("act-lift").pins.get(1) == {}


def test_all_policies_that_a_job_names_are_held(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN names in a list and with commas, among folders, THEN each becomes its version, where it stands."""
    publish(store, save_bundle(tmp_path / "c", 1.0), "dagger-lift", "best", mirror=False)
    save_bundle(tmp_path / "a,b")
    config, spec = evaluation(tmp_path, "act-lift", 'eval.policies=["dagger-lift:best,./b", "act-lift", "a,b"]')
    with held_models(config, spec) as held:
        given = [one for one in held.argv if one.startswith("--polic")]
    folder = "--policies=a,b"
    assert given == ["--policy=act-lift:v0", "--policies=dagger-lift:v0,./b", "--policies=act-lift:v0", folder]
    assert capsys.readouterr().out.count("\n") == 2
    assert all(store.state(name).pins[0] for name in ("act-lift", "dagger-lift"))
    config, spec = evaluation(tmp_path, "act-lift", "eval.policies=[act-lfit]", "name=other")
    with pytest.raises(UserError, match="act-lfit"), held_models(config, spec):
        pass
    assert "queued job other" not in store.state("act-lift").pins[0], "what was held before the fault is let go"


def test_a_folder_is_given_to_the_job_as_it_is(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, spec = evaluation(tmp_path, str(tmp_path / "b"))
    with held_models(config, spec) as held:
        assert held is spec
    monkeypatch.setenv("WANDB_MODE", "offline")
    config, spec = evaluation(tmp_path, "lab/p/other:best")
    with pytest.raises(UserError, match="lab/p/other:best is not in the model store"), held_models(config, spec):
        pass


@pytest.mark.wandb
@pytest.mark.usefixtures("online_environment")
@pytest.mark.parametrize("policy", ["lab/p/act-lift:best", "act-lift:best"])
def test_a_model_of_wandb_is_taken_into_the_store_at_submission(
    tmp_path: Path, policy: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN a model that only W&B has WHEN a job is submitted THEN it is in the store, and the job needs no network."""
    import wandb

    wandb.teardown()
    monkeypatch.delenv("GILBRETH_STORE", raising=False)
    far = Store(tmp_path / "far")
    publish(far, save_bundle(tmp_path / "b", 3.0), "act-lift", "best", {"step": 7}, target="lab/p")
    push(far, lambda _: None)
    assert faults(tmp_path, policy, "tracking.project=p") == []
    (fault,) = faults(tmp_path, "act-lift:bset", "tracking.project=p")
    assert "W&B has no lab/p/act-lift:bset" in fault
    assert not (tmp_path / "models").exists(), "looking leaves nothing"
    config, spec = evaluation(tmp_path, policy, "tracking.project=p")
    with held_models(config, spec) as held:
        assert "--policy=act-lift:v0" in held.argv
    assert f"model {policy} is act-lift:v0 in " in capsys.readouterr().out
    store = store_of(spec)
    assert store is not None
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    found = find("act-lift:v0", store)
    assert found.version is not None and (found.version.step, list(store.state("act-lift").pins[0])) == (
        7,
        [f"queued job {spec.name}"],
    )
    wandb.teardown()
