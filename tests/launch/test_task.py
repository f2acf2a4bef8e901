from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import ROOT
from launch.task import StageTask

from launch_jobs import PROGRAMS


def run(task: StageTask, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(task))
    script = "import pickle, sys; pickle.load(open(sys.argv[1], 'rb'))(); print('back')"
    return subprocess.run(
        [sys.executable, "-c", script, tmp_path / "task.pkl"],
        env={"PYTHONPATH": f"{ROOT}:{PROGRAMS}", "SLURM_PROCID": "0"},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_program_gets_its_run_folder_and_its_arguments(weird_tmp_path: Path) -> None:
    done = run(StageTask("probe", str(weird_tmp_path), ("go", "a b", "--flag=it's")), weird_tmp_path)
    assert done.stdout == "back\n", done.stderr
    seen = json.loads((weird_tmp_path / "seen-0-0.json").read_text())
    assert seen["argv"] == [f"--run-dir={weird_tmp_path}", "go", "a b", "--flag=it's"]


def test_a_refusal_keeps_its_code_and_leaves_a_mark(tmp_path: Path) -> None:
    done = run(StageTask("probe", str(tmp_path), ("refuse",)), tmp_path)
    assert done.returncode == 2
    assert (tmp_path / "refused").exists()


def test_a_crash_is_no_refusal(tmp_path: Path) -> None:
    done = run(StageTask("probe", str(tmp_path), ("crash",)), tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: as asked" in done.stderr
    assert not (tmp_path / "refused").exists()


def test_a_module_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = run(StageTask("no_such_program", str(tmp_path)), tmp_path)
    assert done.returncode == 1
    assert "No module named no_such_program" in done.stderr


def test_loading_the_pickle_imports_only_the_standard_library(tmp_path: Path) -> None:
    (tmp_path / "task.pkl").write_bytes(pickle.dumps(StageTask("probe", "run")))
    script = """
import pickle, sys
before = set(sys.modules)
pickle.load(open(sys.argv[1], "rb"))
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(*sorted(new - set(sys.stdlib_module_names)))
"""
    command = [sys.executable, "-c", script, tmp_path / "task.pkl"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["launch"]


def test_a_requeue_runs_the_same_again() -> None:
    task = StageTask("probe", "run", ("a",))
    assert task.checkpoint().function == task


def test_it_holds_no_state() -> None:
    with pytest.raises(AttributeError):
        StageTask("probe", "run").step = 3  # type: ignore[misc]
