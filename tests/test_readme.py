"""The loop that README.md prints runs as it is printed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tracking import read_journal

from runs import history_of, offline_folders, rows_of

ROOT = Path(__file__).resolve().parents[1]


def printed_program() -> str:
    section = (ROOT / "README.md").read_text().partition("## Tracking your own loop")[2].partition("\n## ")[0]
    (program,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return str(program)


def run_program(folder: Path) -> str:
    """Runs `train.py` as the README says, without a GPU, a key and W&B's network; returns what it prints."""
    foreign = ("WANDB_", "SLURM_", "SUBMITIT_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)} | {
        "HOME": str(folder),
        # As with .venv activated; another ninja would compile DeepSpeed's extension again.
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "NETRC": str(folder / "none"),
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
        # What the set-up has compiled; DeepSpeed would take half a minute to compile it again.
        "TORCH_EXTENSIONS_DIR": os.environ.get("TORCH_EXTENSIONS_DIR", str(Path(sys.prefix) / "torch_extensions")),
    }
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "train.py"]
    done = subprocess.run(
        command, check=False, cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.train
def test_the_printed_loop_runs_and_goes_on_as_the_same_run(tmp_path: Path) -> None:
    import torch

    (tmp_path / "train.py").write_text(printed_program())
    out = run_program(tmp_path)

    (run_dir,) = (tmp_path / "runs").iterdir()
    journal = read_journal(run_dir)
    run_id = journal.segments[0].run_id
    assert [row.step for row in journal.rows] == list(range(10, 101, 10))
    losses = [float(str(row.data["loss/total"])) for row in journal.rows]
    assert losses[-1] < losses[0]
    assert {"train/lr", "train/grad_norm", "perf/steps_per_sec", "perf/samples_per_sec"} <= set(journal.rows[1].data)
    assert journal.config == {"lr": 1e-3, "batch_size": 16, "steps": 100, "seed": 7}
    assert re.fullmatch(r"mlp_bc_toy_\d{8}_\d{6}_nogit", run_dir.name)
    saved = torch.load(tmp_path / "checkpoints" / "step-100" / "mp_rank_00_model_states.pt", weights_only=False)
    assert (saved["wandb_run_id"], saved["step"]) == (run_id, 100)
    (folder,) = offline_folders(tmp_path)
    assert history_of(folder) == rows_of(run_dir)
    assert "Offline mode. Run 'wandb sync' to upload later.\n  wandb sync ./wandb/offline-run-" in out
    assert "Checkpoints are not uploaded" in out

    run_program(tmp_path)
    resumed = read_journal(run_dir)
    assert [(segment.run_id, segment.resumed_step) for segment in resumed.segments] == [(run_id, None), (run_id, 100)]
    assert resumed.rows == journal.rows
    (folder,) = offline_folders(tmp_path)
    assert history_of(folder) == rows_of(run_dir)
