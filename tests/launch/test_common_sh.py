"""The shell functions that the batch scripts share, run by bash with commands that stand in for srun and scontrol."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from launch.config import ROOT

COMMON = ROOT / "job_templates" / "common.sh"
SYNC = ROOT / "job_templates" / "sync_runs.sh"


def bash(script: str, tmp_path: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    """Runs a script after common.sh, with the folder `commands` first on the PATH."""
    clean = {
        name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "NCCL_", "CONDA", "WANDB_"))
    }
    clean |= {"PATH": f"{tmp_path / 'commands'}:{clean['PATH']}", **environ}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'. "$0"; {script}', COMMON],
        env=clean,
        capture_output=True,
        text=True,
        check=False,
    )


def put(tmp_path: Path, name: str, body: str) -> None:
    (tmp_path / "commands").mkdir(exist_ok=True)
    path = tmp_path / "commands" / name
    path.write_text(f"#!/bin/bash\n{body}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("verdict", "srun_code", "exit_code", "requeued"),
    [(0, 0, 0, False), (75, 137, 137, True), (75, 0, 0, True), (1, 2, 2, False), (1, 0, 1, False), (99, 1, 1, False)],
)
def test_the_decision_after_srun(verdict: int, srun_code: int, exit_code: int, requeued: bool, tmp_path: Path) -> None:
    put(tmp_path, "decide", f"exit {verdict}")
    put(tmp_path, "scontrol", 'echo "scontrol $*"')
    done = bash(f"PYTHON=decide; finish /runs/x {srun_code}", tmp_path, SLURM_JOB_ID="12")
    assert done.returncode == exit_code
    assert ("scontrol requeue 12" in done.stdout) == requeued


def test_slurm_refuses_to_requeue(tmp_path: Path) -> None:
    put(tmp_path, "decide", "exit 75")
    put(tmp_path, "scontrol", "exit 1")
    done = bash("PYTHON=decide; finish /runs/x 3", tmp_path, SLURM_JOB_ID="12")
    assert done.returncode == 3
    assert "refused to requeue job 12" in done.stderr


def test_one_rank_that_refuses_its_input_is_not_hidden_by_the_others(tmp_path: Path) -> None:
    """GIVEN a rank that ended with 2 WHEN srun returns the 137 of the ranks it killed THEN the decision is about 2.

    The words of the rank, which may stand in a log of its own, stand in the job's too.
    """
    (tmp_path / "refused").write_text("error: rank 3 has no disk\n")
    put(tmp_path, "decide", 'echo "$@"; exit 1')
    done = bash(f"PYTHON=decide; finish '{tmp_path}' 137", tmp_path, SLURM_JOB_ID="12")
    assert done.returncode == 2
    assert done.stdout.startswith("error: rank 3 has no disk\n")
    assert done.stdout.rstrip().endswith("--exit-code 2")
    assert not (tmp_path / "refused").exists()


def test_term_ends_the_job_without_asking(tmp_path: Path) -> None:
    put(tmp_path, "srun", "kill -TERM $PPID; exit 143")
    put(tmp_path, "decide", "echo asked; exit 75")
    put(tmp_path, "scontrol", "echo requeued")
    script = 'PYTHON=decide; code=0; run_tasks "" true || code=$?; finish /runs/x "$code"'
    done = bash(script, tmp_path, SLURM_JOB_ID="12")
    assert done.returncode == 143
    assert "end: TERM" in done.stdout
    assert "asked" not in done.stdout
    assert "requeued" not in done.stdout


def test_term_during_the_decision_ends_the_job_too(tmp_path: Path) -> None:
    put(tmp_path, "decide", "kill -TERM $PPID; exit 75")
    put(tmp_path, "scontrol", "echo requeued")
    done = bash("PYTHON=decide; finish /runs/x 1", tmp_path, SLURM_JOB_ID="12")
    assert done.returncode == 143
    assert "requeued" not in done.stdout


PYTHON = """
if [[ $2 == tracking.sync ]]; then echo "pushed: $*"; %s; fi
exit "$VERDICT"
"""


def run_folder(tmp_path: Path, name: str = "run") -> Path:
    """A run folder that a tracker has begun."""
    (tmp_path / name).mkdir()
    (tmp_path / name / "run.json").write_text("{}")
    return tmp_path / name


@pytest.mark.parametrize(
    ("verdict", "srun_code", "exit_code", "requeues", "pushes"),
    [
        (0, 0, 0, 0, True),
        (0, 1, 0, 0, True),
        (1, 2, 2, 0, True),
        (1, 0, 1, 0, True),
        (99, 1, 1, 0, True),
        (75, 137, 137, 0, False),
        (75, 137, 137, 1, True),
    ],
)
@pytest.mark.parametrize("push", ["exit 0", "exit 3", "exec sleep 100"])
def test_the_run_is_pushed_when_the_job_is_over_for_good(
    *, verdict: int, srun_code: int, exit_code: int, requeues: int, pushes: bool, push: str, tmp_path: Path
) -> None:
    """GIVEN a push that succeeds, fails or hangs THEN the job ends as without it, and what is left to do is said."""
    run = run_folder(tmp_path)
    put(tmp_path, "python-stub", PYTHON % push)
    put(tmp_path, "scontrol", f"exit {requeues}")
    script = f"PYTHON=python-stub; push_seconds=0.3; finish '{run}' {srun_code}"
    done = bash(script, tmp_path, SLURM_JOB_ID="12", VERDICT=str(verdict))
    assert done.returncode == exit_code
    assert (f"pushed: -m tracking.sync run {run} --closing" in done.stdout) == pushes
    assert ("to push this run, on a login node: " in done.stdout) == (pushes and push != "exit 0")


def test_a_job_without_a_run_pushes_nothing(tmp_path: Path) -> None:
    put(tmp_path, "python-stub", PYTHON % "exit 3")
    done = bash(f"PYTHON=python-stub; finish '{tmp_path}' 0", tmp_path, VERDICT="0")
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize(("terminated", "mode", "code"), [("1", "online", 143), ("", "offline", 0)])
def test_after_term_and_where_jobs_are_offline_only_the_command_is_said(
    terminated: str, mode: str, code: int, tmp_path: Path
) -> None:
    run = run_folder(tmp_path)
    put(tmp_path, "python-stub", PYTHON % "exit 0")
    script = f"PYTHON=python-stub; gilbreth_terminated={terminated}; finish '{run}' {code}"
    done = bash(script, tmp_path, VERDICT="0", WANDB_MODE=mode)
    assert done.returncode == code
    assert "pushed" not in done.stdout
    assert f"to push this run, on a login node: cd '{ROOT}' && python-stub -m tracking.sync run '{run}'" in done.stdout


def test_the_command_that_is_said_can_be_pasted(tmp_path: Path) -> None:
    """GIVEN a folder with a quote and a Python in .venv THEN the line goes through a shell as it is."""
    root = tmp_path / "it's a root"
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").write_text('#!/bin/bash\nprintf \'%s|\' "$PWD" "$@"\n')
    (root / ".venv" / "bin" / "python").chmod(0o755)
    run_folder(root, "it's a run")
    script = 'cd "$ROOT"; PYTHON=$PWD/.venv/bin/python; say_how_to_push "it\'s a run"'
    said = bash(script, tmp_path, ROOT=str(root)).stdout
    prefix = "to push this run, on a login node: "
    assert said.startswith(prefix)
    assert "&& .venv/bin/python -m tracking.sync run " in said
    done = subprocess.run(["bash", "-c", said.removeprefix(prefix)], capture_output=True, text=True, check=True)
    assert done.stdout == f"{root}|-m|tracking.sync|run|it's a run|"


def test_usr2_does_not_end_the_batch_shell(tmp_path: Path) -> None:
    put(tmp_path, "srun", "kill -USR2 $PPID; exit 5")
    done = bash('code=0; run_tasks "" true || code=$?; echo "still here $code"', tmp_path)
    assert done.stdout == "still here 5\n"


def test_a_task_starts_with_usr2_ignored(tmp_path: Path) -> None:
    put(tmp_path, "srun", 'while [[ $1 == --* ]]; do shift; done; exec "$@"')
    done = bash("""run_tasks "" bash -c 'kill -USR2 $$; echo alive "$1"' x "a  b" """, tmp_path)
    assert done.stdout == "alive a  b\n"


SHOW = 'python3 -c "import json, os; print(json.dumps(dict(os.environ)))"'


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ("1", {"NCCL_IB_DISABLE": "1", "NCCL_P2P_LEVEL": "NVL", "NCCL_SHM_DISABLE": "0"}),
        ("4", {"NCCL_IB_DISABLE": "0", "NCCL_P2P_LEVEL": None, "NCCL_SHM_DISABLE": None}),
    ],
)
def test_nccl_follows_the_number_of_nodes(nodes: str, expected: dict[str, str | None], tmp_path: Path) -> None:
    done = bash(
        f"set_job_environment; {SHOW}",
        tmp_path,
        SLURM_JOB_NUM_NODES=nodes,
        SLURM_CPUS_PER_TASK="8",
        NCCL_SOCKET_IFNAME="ib0",
        GLOO_SOCKET_IFNAME="ib0",
    )
    seen = json.loads(done.stdout)
    assert {name: seen.get(name) for name in expected} == expected
    assert "NCCL_SOCKET_IFNAME" not in seen
    assert "GLOO_SOCKET_IFNAME" not in seen
    assert seen["OMP_NUM_THREADS"] == "8"
    assert seen["HF_HUB_OFFLINE"] == "1"
    assert seen["CUDA_DEVICE_ORDER"] == "PCI_BUS_ID"


def test_threads_and_renderer_of_the_user_stay(tmp_path: Path) -> None:
    done = bash(
        f"set_job_environment; {SHOW}", tmp_path, OMP_NUM_THREADS="3", MUJOCO_GL="glfw", SLURM_CPUS_PER_TASK="8"
    )
    seen = json.loads(done.stdout)
    assert (seen["OMP_NUM_THREADS"], seen["MUJOCO_GL"]) == ("3", "glfw")


@pytest.mark.parametrize(("answer", "renderer"), [("exit 0", "egl"), ("exit 9", "osmesa")])
def test_the_renderer_follows_the_gpu(answer: str, renderer: str, tmp_path: Path) -> None:
    put(tmp_path, "nvidia-smi", answer)
    assert bash('set_job_environment; echo "$MUJOCO_GL"', tmp_path, MUJOCO_GL="").stdout.strip() == renderer


def test_the_root_is_found_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "job_templates").symlink_to(ROOT / "job_templates")
    done = subprocess.run(
        ["bash", "-c", '. "$0"; pwd -P', tmp_path / "job_templates" / "common.sh"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == str(ROOT)


def test_the_python_that_is_given_wins_and_its_folder_is_on_the_path(tmp_path: Path) -> None:
    put(tmp_path, "python", "")
    done = bash(f'activate_environment \'{tmp_path}/commands/python\'; echo "$PYTHON"; echo "$PATH"', tmp_path)
    python, path = done.stdout.splitlines()
    assert python == f"{tmp_path}/commands/python"
    assert path.startswith(f"{tmp_path}/commands:")


def test_a_python_that_is_not_on_the_node_is_replaced_and_said(tmp_path: Path) -> None:
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/true")
    done = bash(f"cd '{tmp_path}'; activate_environment /none/python; echo \"$PYTHON\"", tmp_path)
    note, python = done.stdout.splitlines()
    assert note == f"note: /none/python is not on this node; using {tmp_path}/.venv/bin/python"
    assert python == f"{tmp_path}/.venv/bin/python"


def test_modules_without_a_module_command(tmp_path: Path) -> None:
    done = bash("unset -f module; load_modules cuda/12; echo loaded", tmp_path)
    assert done.returncode == 2
    assert "has no 'module' command" in done.stderr


def test_modules_are_purged_and_loaded_in_order(tmp_path: Path) -> None:
    done = bash('module() { echo "module $*" "${undefined-}"; }; load_modules external "cuda 12"; echo "$-"', tmp_path)
    assert [line.rstrip() for line in done.stdout.splitlines()[:2]] == ["module purge", "module load external cuda 12"]
    assert "e" in done.stdout.splitlines()[2]
    assert "u" in done.stdout.splitlines()[2]


def test_a_conda_environment_that_is_not_there(tmp_path: Path) -> None:
    done = bash("activate_environment '' nowhere", tmp_path, PATH="/usr/bin:/bin")
    assert done.returncode == 2
    assert "there is no conda here" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "roots"), [([], ["--root=runs"]), (["/a b", "it's"], ["--root=/a b", "--root=it's"])]
)
def test_the_sync_script_pushes_what_is_below_its_arguments(
    arguments: list[str], roots: list[str], tmp_path: Path
) -> None:
    project = tmp_path / "project"
    (project / ".venv" / "bin").mkdir(parents=True)
    (project / "job_templates").mkdir()
    shutil.copy(COMMON, project / "job_templates")
    python = project / ".venv" / "bin" / "python"
    python.write_text('#!/bin/bash\nprintf \'%s\\n\' "$PWD" "$@"\nexit 7\n')
    python.chmod(0o755)
    environ = {**os.environ, "SLURM_SUBMIT_DIR": str(project)}
    done = subprocess.run(["bash", SYNC, *arguments], cwd="/", env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 7
    assert done.stdout.splitlines() == [str(project), "-m", "tracking.sync", "once", *roots]
    assert not [line for line in SYNC.read_text().splitlines() if line.startswith("#SBATCH") and "$" in line]
