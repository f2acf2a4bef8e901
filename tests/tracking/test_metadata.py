"""What is known of a process, with and without git and Slurm."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tracking.metadata import get_metadata, git_diff, git_facts, slurm_facts, versions


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    done = subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def test_git_facts(weird_tmp_path: Path) -> None:
    nothing = {"commit": None, "branch": None, "dirty": None, "remote": None}
    assert git_facts(weird_tmp_path) == nothing
    git(weird_tmp_path, "init", "-b", "work")
    assert git_facts(weird_tmp_path) == nothing
    (weird_tmp_path / "file").write_text("one")
    (weird_tmp_path / "sub").mkdir()
    git(weird_tmp_path, "add", "file")
    git(weird_tmp_path, "commit", "-m", "one")
    commit = git(weird_tmp_path, "rev-parse", "HEAD")
    clean = {"commit": commit, "branch": "work", "dirty": False, "remote": None}
    assert git_facts(weird_tmp_path / "sub") == clean
    git(weird_tmp_path, "remote", "add", "origin", "https://me:sesame@example.org/group/code.git")
    remote = "https://example.org/group/code.git"
    assert git_facts(weird_tmp_path) == {**clean, "remote": remote}
    (weird_tmp_path / "file").write_text("two")
    git(weird_tmp_path, "checkout", "--detach")
    assert git_facts(weird_tmp_path) == {"commit": commit, "branch": None, "dirty": True, "remote": remote}


def test_the_diff_has_no_secrets(tmp_path: Path) -> None:
    assert git_diff(tmp_path) is None
    git(tmp_path, "init")
    (tmp_path / "a.py").write_text("x = 1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "one")
    assert git_diff(tmp_path) is None
    (tmp_path / "a.py").write_text('x = 2\napi_key = "0123456789"\n')
    diff = git_diff(tmp_path)
    assert diff is not None
    assert '-x = 1\n+x = 2\n+api_key = "[redacted]"\n' in diff


def test_slurm_facts() -> None:
    assert slurm_facts({}) is None
    facts = slurm_facts(
        {"SLURM_JOB_ID": "12", "SLURM_JOB_NUM_NODES": "2", "SLURM_RESTART_COUNT": "1", "SLURM_JOB_QOS": ""}
    )
    assert facts is not None
    assert (facts["job_id"], facts["num_nodes"], facts["restart_count"], facts["qos"]) == ("12", 2, 1, None)


def test_versions_are_read_without_importing_anything_large() -> None:
    code = (
        "import sys; from tracking.metadata import versions; v = versions(); print(v['torch'], v['cuda'], *sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    torch_version, cuda, *modules = done.stdout.split()
    assert torch_version == versions()["torch"]
    assert cuda[0].isdigit() or cuda == "None"
    assert not {"torch", "wandb", "numpy"} & set(modules)


def test_the_command_line_is_kept_without_its_secrets(tmp_path: Path) -> None:
    code = "from tracking.metadata import get_metadata; print(get_metadata()['command'])"
    done = subprocess.run(
        [sys.executable, "-c", code, "--hf-token", "abc def", "--name", "it's"],
        capture_output=True, text=True, check=True, cwd=tmp_path,
    )  # fmt: skip
    assert "abc def" not in done.stdout
    assert done.stdout.strip().endswith("""--hf-token '[redacted]' --name 'it'"'"'s'""")
    assert get_metadata(tmp_path)["git"]["commit"] is None


@pytest.mark.parametrize(
    ("how", "program"), [(["train.py"], "train.py"), (["-m", "train"], "-m train"), (["-c", "import train"], "None")]
)
def test_the_program_and_its_arguments_are_known(tmp_path: Path, how: list[str], program: str) -> None:
    (tmp_path / "train.py").write_text(
        "from tracking.metadata import get_metadata as m; print(m()['program'], m()['arguments'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, *how, "--lr", "0.1", "--token", "sesame"],
        capture_output=True, text=True, check=True, cwd=tmp_path, env=environment,
    )  # fmt: skip
    assert done.stdout.strip() == f"{program} ['--lr', '0.1', '--token', '[redacted]']"
