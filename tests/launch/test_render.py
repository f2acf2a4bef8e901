"""What sbatch gets. The scripts in golden/ are compared letter by letter: read them when this fails."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest

from launch.config import ROOT
from launch.render import batch_script, foreign_variables, local_python, sbatch_quote, slurm_time
from launch.spec import JobSpec
from tracking.errors import UserError

from golden_scripts import GOLDEN, assert_golden
from launch_jobs import make_spec

GILBRETH = make_spec(
    cluster={"partition": "a100-80gb", "modules": ["external", "cuda"], "environment": {}},
    resources={"nodes": 4, "exclusive": True, "time": 240, "signal_seconds": 120},
    environment={"WANDB_MODE": "offline"},
)
PLAIN = make_spec(
    cluster={"partition": None, "account": None, "qos": None}, resources={"gpus_per_node": 0, "time": 3000}
)
ODD = make_spec(
    root=Path("/home/o'neil/pro ject"),
    log_dir=Path("/home/o'neil/pro ject/logs/run"),
    run_dir=Path("/scratch/$(id)/new\nline/run"),
    python="/home/o'neil/pro ject/.venv/bin/python",
    cluster={"account": 'it\'s "us"', "modules": ["cuda/12; echo foo"], "conda_env": "my env"},
    environment={"ODD": "it's $HOME `id` \"\\\n"},
)


@pytest.mark.parametrize(
    ("name", "spec", "elements"),
    [("four_nodes", GILBRETH, 0), ("without_gpus", PLAIN, 0), ("array", GILBRETH, 3), ("odd_names", ODD, 0)],
)
def test_golden_script(name: str, spec: JobSpec, elements: int) -> None:
    run_dirs = [f"/scratch/{element}" for element in range(elements)] or [str(spec.run_dir)]
    assert_golden(name, batch_script(spec, run_dirs, array=elements > 0, parallel=2))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.sh")), ids=lambda path: path.stem)
def test_bash_can_read_it(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


RECORDER = """#!/bin/bash
printf '%s\\0' "${0##*/}" "$@" >> "$RECORD"
printf '\\n\\0' >> "$RECORD"
exit "${STUB_CODE:-0}"
"""


@pytest.fixture
def recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts commands that record their arguments in the place of Slurm's; returns where they record."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("srun", "scontrol", "python-stub"):
        (commands / name).write_text(RECORDER)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("RECORD", str(tmp_path / "record"))
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    return tmp_path / "record"


def calls(record: Path) -> list[list[str]]:
    return [call.split("\0")[:-1] for call in record.read_text().split("\n\0") if call]


def odd_spec(folder: Path, **changes: Any):
    """A job that has the folder in every field that reaches shell text."""
    root = folder / "project"
    (root / "logs").mkdir(parents=True)
    (root / "job_templates").symlink_to(ROOT / "job_templates")
    python = folder / "python"
    python.write_text('#!/bin/bash\nexec python-stub "$@"\n')
    python.chmod(0o755)
    values = {"root": root, "run_dir": folder / "run", "log_dir": root / "logs", "python": str(python)}
    return make_spec(**{**values, "environment": {"ODD": str(folder)}, **changes})


def test_no_name_breaks_out_of_the_script(weird_tmp_path: Path, recorded: Path) -> None:
    folder = weird_tmp_path
    if "\n" in str(folder):
        with pytest.raises(UserError, match="holds '%', a backslash or a control character"):
            batch_script(odd_spec(folder), [str(folder / "run")])
        spec = odd_spec(
            folder / "..",
            run_dir=folder / "run",
            environment={"ODD": str(folder)},
            log_dir=folder.parent / "project" / "logs",
        )
        assert "\n" in str(spec.run_dir)
    else:
        spec = odd_spec(folder)
    script = batch_script(spec, [str(spec.run_dir)])
    done = subprocess.run(
        ["bash", "-c", script + "\n"], capture_output=True, text=True, check=False, env={**os.environ, "PRINT": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert "foo" not in done.stdout.replace(str(folder), "")
    assert (spec.log_dir / "7_submitted.pkl").readlink() == Path("task_0.pkl")
    srun, decide = calls(recorded)
    assert srun[0] == "srun"
    assert f"--output={spec.log_dir}/%j_%t_log.out" in srun
    assert srun[-5:] == [spec.python, "-u", "-m", "submitit.core._submit", str(spec.log_dir)]
    assert decide[:4] == ["python-stub", "-m", "gilbreth_phase0.attempt", "decide"]
    assert decide[4:] == ["--run-dir", str(spec.run_dir), "--exit-code", "0"]


@pytest.mark.parametrize(
    ("value", "quoted"),
    [
        ("a100-80gb", "a100-80gb"),
        ("/logs/%j_0_log.out", "/logs/%j_0_log.out"),
        ("my lab", '"my lab"'),
        ("it's", '"it\'s"'),
        ('a"b\\c', '"a\\"b\\\\c"'),
        ("a#b", '"a#b"'),
    ],
)
def test_values_of_sbatch_lines(value: str, quoted: str) -> None:
    assert sbatch_quote(value) == quoted


def test_an_sbatch_line_cannot_hold_a_newline() -> None:
    with pytest.raises(UserError, match="control character"):
        batch_script(make_spec(cluster={"account": "a\n#SBATCH --nodes=99"}), ["/run"])


@pytest.mark.parametrize("folder", ["/logs/100%", "/logs/a\\b", "/logs/a\nb"])
def test_a_log_folder_that_slurm_would_misread_is_refused(folder: str) -> None:
    with pytest.raises(UserError, match="move the project"):
        batch_script(make_spec(log_dir=Path(folder)), ["/run"])


def test_times_are_written_as_slurm_reads_them() -> None:
    assert [slurm_time(minutes) for minutes in (2, 240, 1440, 20160)] == [
        "00:02:00",
        "04:00:00",
        "1-00:00:00",
        "14-00:00:00",
    ]


def test_what_a_new_job_does_not_inherit() -> None:
    foreign = ["SLURM_JOB_ID", "SLURM_CPU_BIND", "SRUN_CPUS_PER_TASK", "SBATCH_TIMELIMIT", "SBATCH_PARTITION"]
    foreign += ["SUBMITIT_EXECUTOR", "MASTER_PORT", "RANK"]
    own = ["SBATCH_ACCOUNT", "SLURM_CONF", "WANDB_API_KEY", "HOME"]
    spec = make_spec(cluster={"account": None})
    assert foreign_variables(dict.fromkeys([*foreign, *own], "x"), spec) == sorted(foreign)
    gpus = {"CUDA_VISIBLE_DEVICES": "0"}
    assert foreign_variables(gpus, spec) == [], "a user's own choice"
    assert foreign_variables({**gpus, "SLURM_JOB_ID": "1"}, spec) == ["CUDA_VISIBLE_DEVICES", "SLURM_JOB_ID"]


def test_the_task_on_this_machine_is_prepared_like_one_in_a_job(weird_tmp_path: Path, recorded: Path) -> None:
    if "\n" in str(weird_tmp_path):
        weird_tmp_path = weird_tmp_path.parent
    python = weird_tmp_path / "python"
    python.write_text(
        '#!/bin/bash\nprintf \'%s\\0\' "$ODD" "$OMP_NUM_THREADS" "$HF_HUB_OFFLINE" "${RANK-none}" "$PWD"\n'
    )
    python.chmod(0o755)
    spec = make_spec(root=ROOT, python=str(python), environment={"ODD": str(weird_tmp_path)})
    command = shlex.split(local_python(spec, {"RANK": "3"}))
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, "RANK": "3"})
    assert done.stdout.split("\0")[:-1] == [str(weird_tmp_path), "4", "1", "none", str(ROOT)]
