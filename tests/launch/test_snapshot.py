"""The tree as it was submitted: its diff with the run, and the copy that a job runs."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from launch import snapshot
from launch.config import ROOT, resolve
from launch.snapshot import FOLDER, code_diff, take_snapshot, tree_of
from launch.spec import make_spec
from launch.submission import submit
from tracking.errors import UserError
from tracking.metadata import git_diff, git_facts

from launch_jobs import PROGRAMS
from support import wait_until

KEY = "hf_" + "x" * 30


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Everything but git's own, with its mode and content."""
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    names = {str(path.relative_to(folder)): path for path in found if ".git" not in path.parts}
    return {
        name: (path.lstat().st_mode, os.fsencode(path.readlink()) if path.is_symlink() else path.read_bytes())
        for name, path in names.items()
    }


def made(folder: Path) -> Path:
    """A small repository with a change, an untracked file and what git ignores."""
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / ".gitignore").write_text("/runs/\n/.venv\n__pycache__/\n")
    (folder / "code.py").write_text("old = 1\n")
    (folder / "run.sh").write_text("echo 1\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "link").symlink_to("code.py")
    (folder / "gone.py").write_text("")
    (folder / "logs").mkdir()
    (folder / "logs" / ".gitkeep").touch()
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "x")
    (folder / "gone.py").unlink()
    (folder / "code.py").write_text("new = 2\n")
    (folder / "it's new.py").write_text("added = 3\n")
    (folder / "runs" / "a").mkdir(parents=True)
    (folder / "runs" / "a" / "bundle").write_text("weights")
    return folder


def test_the_copy_is_the_tree_as_it_was(weird_tmp_path: Path) -> None:
    """GIVEN a tree that is edited after the copy THEN the copy is as it was, with its commit, diff and links."""
    root = made(weird_tmp_path / "tree")
    facts, diff = git_facts(root), git_diff(root)
    copy = take_snapshot(tree_of(root), weird_tmp_path / "run root")
    (root / "code.py").write_text("newer = 4\n")
    git(root, "commit", "-q", "-a", "-m", "y")
    assert (copy / "code.py").read_text() == "new = 2\n"
    assert (copy / "it's new.py").read_text() == "added = 3\n"
    assert (copy / "run.sh").stat().st_mode & 0o111
    assert (copy / "link").readlink() == Path("code.py")
    assert not (copy / "gone.py").exists()
    assert (copy / "runs" / "a" / "bundle").read_text() == "weights"
    assert git_diff(copy) == diff
    assert {**git_facts(copy), "branch": None} == {**facts, "branch": None}


def test_one_tree_has_one_copy(tmp_path: Path) -> None:
    root = made(tmp_path / "tree")
    copies = {take_snapshot(tree_of(root), tmp_path / "runs") for _ in range(3)}
    (root / "code.py").chmod(0o755)
    copies.add(take_snapshot(tree_of(root), tmp_path / "runs"))
    assert len(copies) == 2
    assert set((tmp_path / "runs" / FOLDER).iterdir()) == copies


def test_a_copy_with_holes_is_filled_before_it_is_used_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN a copy that a scratch disk has purged by age WHEN the tree is submitted again THEN it is whole."""
    root = made(tmp_path / "tree")
    os.utime(root / "run.sh", (1, 1))
    copy = take_snapshot(tree_of(root), tmp_path / "runs")
    assert (copy / "run.sh").stat().st_mtime > 1
    listing, facts = files(copy), git_facts(copy)
    for path in ("code.py", "link", "logs/.gitkeep", ".git/HEAD", ".git/objects/info/alternates", "runs"):
        (copy / path).unlink()
    (copy / "logs").rmdir()
    (copy / "it's new.py").write_text("")
    os.utime(copy / "run.sh", (1, 1))
    assert take_snapshot(tree_of(root), tmp_path / "runs") == copy
    assert capsys.readouterr().out == f"snapshot: 4 files of {copy} had gone and stand again\n"
    assert (files(copy), git_facts(copy), git_diff(copy)) == (listing, facts, git_diff(root))
    assert (copy / "run.sh").stat().st_mtime > 1
    assert take_snapshot(tree_of(root), tmp_path / "runs") == copy
    assert capsys.readouterr().out == ""


def test_what_is_no_file_is_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a submodule, which git lists as a file, THEN the copy is made without it, and that is said."""
    root, other = made(tmp_path / "tree"), made(tmp_path / "other")
    git(root, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(other), "sub")
    copy = take_snapshot(tree_of(root), tmp_path / "runs")
    assert "snapshot: left out sub: neither a file nor a link (a submodule?)\n" in capsys.readouterr().out
    assert not (copy / "sub").exists()
    assert (copy / "code.py").read_text() == "new = 2\n"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a file that goes away while the tree is read THEN it is named, and nothing is left."""
    root = made(tmp_path / "tree")
    listed = snapshot._files

    def then_one_goes(tree: snapshot.Tree) -> tuple[list[str], list[str]]:
        found = listed(tree)
        (root / "run.sh").unlink()
        return found

    monkeypatch.setattr(snapshot, "_files", then_one_goes)
    with pytest.raises(UserError, match=r"--snapshot: cannot copy .*run.sh: No such file or directory"):
        take_snapshot(tree_of(root), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_files_with_secrets_are_in_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = made(tmp_path / "tree")
    for name in (".env", "prod.env", "id_rsa", "server.pem", "aws_credentials.json"):
        (root / name).write_text("hunter2")
    (root / "config.yaml").write_text(f"token: {KEY}\n")
    (root / "tokenizer.json").write_text("{}")
    diff = code_diff(tree_of(root))
    assert diff is not None
    assert "hunter2" not in diff
    assert KEY not in diff
    assert "b/tokenizer.json" in diff
    assert "# left out: .env: its name is that of a file with secrets" in diff
    copy = take_snapshot(tree_of(root), tmp_path / "runs")
    assert "snapshot: left out id_rsa" in capsys.readouterr().out
    assert not {".env", "prod.env", "id_rsa", "server.pem"} & {path.name for path in copy.iterdir()}


def test_the_diff_brings_the_tree_back(tmp_path: Path) -> None:
    root = made(tmp_path / "tree")
    (root / "large.bin").write_bytes(b"\0" * (2**20 + 1))
    diff = code_diff(tree_of(root))
    assert diff is not None
    assert diff.endswith("# left out: large.bin: 1.0 MB\n")
    git(tmp_path, "clone", "-q", str(root), "clone")
    (tmp_path / "code.diff").write_text(diff)
    git(tmp_path / "clone", "apply", str(tmp_path / "code.diff"))
    assert (tmp_path / "clone" / "code.py").read_text() == "new = 2\n"
    assert (tmp_path / "clone" / "it's new.py").read_text() == "added = 3\n"
    assert not (tmp_path / "clone" / "gone.py").exists()


def test_the_project_may_be_a_folder_of_a_larger_tree(tmp_path: Path) -> None:
    root = made(tmp_path / "tree") / "project"
    root.mkdir()
    (root / "new.py").write_text("added = 5\n")
    tree = tree_of(root)
    assert tree.new == ("new.py",)
    diff = code_diff(tree)
    assert diff is not None
    assert "+added = 5" in diff
    assert "added = 3" not in diff
    assert (take_snapshot(tree, tmp_path / "runs") / "new.py").read_text() == "added = 5\n"


def test_a_clean_tree_has_no_diff(tmp_path: Path) -> None:
    root = made(tmp_path / "tree")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "y")
    assert code_diff(tree_of(root)) is None
    assert code_diff(tree_of(tmp_path)) is None
    with pytest.raises(UserError, match="not in a git repository with a commit"):
        take_snapshot(tree_of(tmp_path), tmp_path / "runs")


def test_untracked_files_that_are_too_large_are_refused(tmp_path: Path) -> None:
    root = made(tmp_path / "tree")
    with (root / "data.bin").open("wb") as file:
        file.truncate(2**27)
    with pytest.raises(UserError, match=r"data.bin alone 134 MB; at most 67 MB are copied\n  next: name them in"):
        take_snapshot(tree_of(root), tmp_path / "runs")
    assert not (tmp_path / "runs").exists()


def test_a_job_runs_the_copy(tmp_path: Path) -> None:
    root = made(tmp_path / "tree")
    shutil.copytree(ROOT / "job_templates", root / "job_templates")
    config = resolve("smoke", "local", [f"cluster.run_root={tmp_path}/runs", "resources.time=2"])
    spec = make_spec(config, datetime.now(), root)
    environment = {"PYTHONPATH": f"{PROGRAMS}:{ROOT}"}
    spec = dataclasses.replace(spec, module="probe", argv=("go",), environment=environment)
    submit(config, spec, snapshot=True)
    wait_until((spec.run_dir / "done.json").exists, 60, "the job's end")
    record = json.loads((spec.run_dir / "submission.json").read_text())
    seen = json.loads((spec.run_dir / "seen-0-0.json").read_text())
    assert seen["cwd"] == record["snapshot"]
    assert Path(record["snapshot"]).parent == tmp_path / "runs" / FOLDER
    assert (record["git_dirty"], record["code_diff"]) == (True, "code.diff")
    assert "+added = 3" in (spec.run_dir / "code.diff").read_text()
    assert spec.log_dir.parent == root / "logs"
