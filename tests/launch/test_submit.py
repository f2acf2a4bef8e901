"""The command line, in processes of its own, on a machine without Slurm on the PATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from launch import submit
from launch.config import ROOT

HEAVY = ("torch", "wandb", "lerobot", "deepspeed", "robosuite", "submitit", "numpy")


@pytest.fixture
def without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A PATH that has git and bash and no Slurm, and no profiles of the user; returns an empty folder."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name in ("bash", "env", "git"):
        (commands / name).symlink_to(f"/usr/bin/{name}")
    monkeypatch.setenv("PATH", str(commands))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("SLURM_CONF", raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-key")
    (tmp_path / "work").mkdir()
    return tmp_path / "work"


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.submit", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def tree(folder: Path) -> set[tuple[str, int]]:
    """Files that a submission could make, with their times."""
    found = set()
    for base, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in {".git", ".venv", "__pycache__"} and "cache" not in name]
        found |= {(str(path), path.stat().st_mtime_ns) for name in files if (path := Path(base, name)).exists()}
    return found


def test_a_dry_run_shows_everything_and_touches_nothing(without_slurm: Path) -> None:
    places = (ROOT / "launch", ROOT / "job_templates", without_slurm)
    before = [tree(place) for place in places]
    name = f"dry-run-{os.getpid()}"
    roots = ["--set", f"cluster.run_root={without_slurm}/runs"]
    done = launch("--stage", "bc", "--cluster", "lab", "--dry-run", "--set", f"name={name}", *roots)
    assert [tree(place) for place in places] == before
    assert done.returncode == 0, done.stderr
    assert "\nbc:\n  repo_ids: lift\n" in done.stdout
    assert "\n#SBATCH --partition=a100-80gb\n" in done.stdout
    assert 'finish "$run" "$code"' in done.stdout
    assert f"/logs/{name}/%j_0_log.out" in done.stdout
    assert not (ROOT / "logs" / name).exists()
    assert "s3cret-key" not in done.stdout + done.stderr


def test_a_dry_run_says_what_a_submission_would_be_refused_for(without_slurm: Path) -> None:
    done = launch("--stage", "bc", "--cluster", "local", "--dry-run", "--set", f"cluster.data_root={without_slurm}")
    assert done.returncode == 0
    assert f"error   dataset-missing  dataset 'lift' is not in {without_slurm}" in done.stderr
    assert done.stderr.endswith("preflight: 1 error; a submission would be refused\n")


@pytest.mark.parametrize("arguments", [["--help"], ["--stage", "bc", "--cluster", "lab", "--dry-run"]])
def test_help_and_dry_run_import_nothing_heavy(arguments: list[str]) -> None:
    script = f"""
import sys
from launch.submit import app
try:
    app({arguments!r})
finally:
    print("heavy:", *[name for name in {HEAVY!r} if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"


def test_without_slurm_the_default_is_this_machine(without_slurm: Path) -> None:
    done = launch("--stage", "smoke", "--dry-run")
    assert "\n  name: local\n" in done.stdout
    assert "process(es) on this machine" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "bcc"], "error: unknown stage 'bcc'. Did you mean 'bc'?"),
        (["--stage", "smoke", "--cluster", "labb"], "error: unknown cluster 'labb'. Did you mean 'lab'?"),
        (
            ["--stage", "smoke", "--set", "smoke.stepz=1"],
            "error: unknown key 'smoke.stepz'. Did you mean 'smoke.steps'?",
        ),
        (["--stage", "smoke", "--set", 'name=it\'s a "job"'], "try: it-s-a-job"),
        (["--stage", "smoke", "--cluster", "generic"], "sbatch is not on the PATH here"),
        (["--stage", "bc"], "dataset 'lift' is not in"),
        (["--stage", "bc"], "--stage collect"),
        (["--stage", "eval"], "fix  --set eval.policy=runs/NAME/bundle"),
        (["--stage", "eval", "--set", "eval.policy=none"], "has no config.json, so no policy"),
        (["--stage", "smoke", "--set", "name=a: b: c"], "try: a-b-c"),
        (["--stage", "smoke", "--set", "resources.time=1"], "the job would be told to stop as it starts"),
        (["--stage", "smoke", "--set", "resources.nodes=2"], "'local' is this machine alone"),
        (["--stage", "smoke", "--cluster", "gilbreth", "--set", "resources.gpus_per_node=4"], "'gilbreth' has 2"),
        (
            [
                "--stage",
                "smoke",
                "--cluster",
                "gilbreth",
                "--set",
                "cluster.qos=standby",
                "--set",
                "resources.time=300",
            ],
            "QOS 'standby' of 'gilbreth' allows 04:00:00",
        ),
        (["--stage", "smoke", "--cluster", "generic", "--set", "cluster.run_root=/tmp/x"], "other nodes do not see"),
        (["--stage", "smoke", "--sync-after"], "--sync-after queues a job, and 'local' has no queue"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(arguments: list[str], message: str, without_slurm: Path) -> None:
    roots = ["--set", f"cluster.data_root={without_slurm}/data"]
    if "cluster.run_root=/tmp/x" not in arguments:
        roots += ["--set", f"cluster.run_root={without_slurm}/runs", "--set", "cluster.node_local=[]"]
    name = f"refused-{os.getpid()}"
    done = launch("--set", f"name={name}", *arguments, *roots)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert not [path for path in without_slurm.rglob("*") if path.is_file()]
    assert not (ROOT / "logs" / name).exists()


def test_a_lab_that_is_not_running(without_slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GILBRETH_LAB", str(without_slurm / "lab"))
    done = launch("--stage", "smoke", "--cluster", "lab", "--set", f"cluster.run_root={without_slurm}/runs")
    assert done.returncode == 2
    assert "start it: python -m launch.lab up" in done.stderr
    assert not list(without_slurm.iterdir())


def test_a_run_root_that_cannot_be_written(without_slurm: Path) -> None:
    (without_slurm / "file").write_text("in the way")
    for run_root in (without_slurm / "file" / "runs", Path("/proc/runs")):
        done = launch("--stage", "smoke", "--set", f"cluster.run_root={run_root}")
        assert done.returncode == 2
        assert f"{run_root}" in done.stderr
        assert "cannot" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_run_that_is_there_is_not_written_over(without_slurm: Path) -> None:
    (without_slurm / "mine").mkdir()
    done = launch("--stage", "smoke", "--set", "name=mine", "--set", f"cluster.run_root={without_slurm}")
    assert done.returncode == 2
    assert f"'{without_slurm}/mine' is there already" in done.stderr


def test_the_lab_is_recognised_by_its_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sbatch").write_text("#!/bin/sh\n")
    (tmp_path / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for cluster, profile in (("lab", "lab"), ("gilbreth", "generic")):
        (tmp_path / "slurm.conf").write_text(f"# x\nClusterName={cluster}\n")
        monkeypatch.setenv("SLURM_CONF", str(tmp_path / "slurm.conf"))
        assert submit.default_cluster() == profile
    monkeypatch.setenv("SLURM_CONF", str(tmp_path / "none"))
    assert submit.default_cluster() == "generic"


def test_help_names_every_option() -> None:
    shown = CliRunner().invoke(submit.app, ["--help"]).output
    assert all(option in shown for option in ("--stage", "--cluster", "--dry-run", "--set", "--sync-after", "--wait"))


@pytest.mark.parametrize(
    ("arguments", "cluster"),
    [
        (["--stage", "bc", "--cluster", "mine"], "mine"),
        (["--cluster=mine", "--stage=bc", "--set", "name=x"], "mine"),
        (["--stage", "bc"], "local"),
        (["--stage", "bc", "--help"], None),
        (["--resume-submission", "RUN"], None),
        ([], None),
    ],
)
def test_slurm_is_asked_first_for_the_cluster_that_is_meant(
    arguments: list[str], cluster: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(submit, "ask_ahead", asked.append)
    monkeypatch.setattr(submit, "default_cluster", lambda: "local")
    submit.ask_first(arguments)
    assert asked == ([cluster] if cluster else [])
