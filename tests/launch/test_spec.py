from __future__ import annotations

import getpass
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from launch.config import resolve
from launch.places import expand
from launch.snapshot import tree_of
from launch.spec import flags, make_spec
from tracking.errors import UserError

NOW = datetime(2025, 1, 2, 3, 4, 5)


def spec_of(*settings: str, root: Path, stage: str = "bc"):
    return make_spec(resolve(stage, "lab", settings), NOW, root)


def test_flags_are_exactly_what_the_program_parses() -> None:
    arguments = {"batch_size": 8, "lr": 1e-3, "use_vae": False, "eval": True, "root": None, "ids": ["a", "b c"]}
    assert flags({**arguments, "table": {"dim": 64, "on": False}}) == (
        "--batch-size=8",
        "--lr=0.001",
        "--no-use-vae",
        "--eval",
        "--ids=a",
        "--ids=b c",
        '--table={"dim": 64, "on": false}',
    )


def test_names_and_folders_outside_git(tmp_path: Path) -> None:
    spec = spec_of(root=tmp_path)
    assert spec.name == "act_bc_lift_20250102_030405_nogit"
    assert spec.run_dir == tmp_path / "runs" / spec.name
    assert spec.log_dir == tmp_path / "logs" / spec.name
    assert f"--root={tmp_path}/data" in spec.argv
    assert not list(tmp_path.iterdir())


def test_two_runs_of_one_second_have_two_names(tmp_path: Path) -> None:
    (tmp_path / "runs" / "act_bc_lift_20250102_030405_nogit").mkdir(parents=True)
    assert spec_of(root=tmp_path).name == "act_bc_lift_20250102_030406_nogit"
    (tmp_path / "logs" / "act_bc_lift_20250102_030406_nogit").mkdir(parents=True)
    assert spec_of(root=tmp_path).name == "act_bc_lift_20250102_030407_nogit"


def test_a_run_root_that_cannot_be_looked_into_is_left_to_preflight(tmp_path: Path) -> None:
    assert spec_of(f"cluster.run_root={tmp_path / ('x' * 256)}", root=tmp_path).name.startswith("act_bc_lift_20250102_")


def test_the_commit_is_part_of_the_name_and_of_the_record(tmp_path: Path) -> None:
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    tree = tree_of(tmp_path)
    assert tree.commit is not None
    assert (tree.dirty, tree.new) == (False, ())
    assert spec_of(root=tmp_path).name.endswith(f"_{tree.commit[:7]}")
    (tmp_path / "file").write_text("1")
    assert (tree_of(tmp_path).dirty, tree_of(tmp_path).new) == (False, ("file",))
    subprocess.run([*git, "add", "file"], cwd=tmp_path, check=True)
    assert (tree_of(tmp_path).dirty, tree_of(tmp_path).new) == (True, ())


@pytest.mark.parametrize("name", ['it\'s a "job"', "a\nb", "../up", "", "-rf", ".hidden", "a/b", "x" * 300, "$(id)"])
def test_a_name_that_cannot_be_a_folder_is_refused_with_one_that_can(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)run name .* cannot be part of a path.*try: [A-Za-z0-9]"):
        spec_of(f"name={name}", root=tmp_path)


def test_a_dataset_of_any_name_makes_a_run_name_that_is_safe(tmp_path: Path) -> None:
    spec = spec_of('bc.repo_ids=lerobot/it\'s "x"; rm', root=tmp_path)
    assert spec.name == "act_bc_lerobot-it-s-x-rm_20250102_030405_nogit"
    assert '--repo-ids=lerobot/it\'s "x"; rm' in spec.argv


def test_tracking_reaches_the_job(tmp_path: Path) -> None:
    spec = spec_of("tracking.entity=team", "tracking.mode=offline", "tracking.project=p", root=tmp_path)
    store = {"GILBRETH_STORE": str(tmp_path / "models")}
    assert spec.environment == {"WANDB_PROJECT": "p", "WANDB_ENTITY": "team", "WANDB_MODE": "offline", **store}
    assert "--wandb-project=p" in spec.argv


def test_paths_of_profiles_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WHERE", "/scratch/me")
    assert expand("$WHERE/runs", tmp_path, "run_root") == Path("/scratch/me/runs")
    assert expand("runs", tmp_path, "run_root") == tmp_path / "runs"
    monkeypatch.delenv("WHERE")
    monkeypatch.delenv("USER", raising=False)
    assert expand("/scratch/$USER/runs", tmp_path, "run_root") == Path("/scratch", getpass.getuser(), "runs")
    with pytest.raises(UserError, match=r"run_root='\$WHERE/runs': a variable in it is not set"):
        expand("$WHERE/runs", tmp_path, "run_root")


def test_a_specification_can_be_printed(tmp_path: Path) -> None:
    text = repr(spec_of(root=tmp_path))
    assert "act_bc_lift_20250102_030405_nogit" in text
    assert "gpus_per_node=2" in text
