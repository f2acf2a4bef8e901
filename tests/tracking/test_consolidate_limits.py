"""What consolidation takes of memory and disk, and how it shows its progress."""

from __future__ import annotations

import itertools
import os
import pty
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tracking.consolidate import consolidate, progress

from support import refusal
from zero_shards import save_zero_2, some_weights

ROOT = Path(__file__).parents[2]

# Says what the process took and imported; ru_maxrss would count the process that it was started from.
WATCHED = """
import re, resource, runpy, sys
limit, sys.argv = int(sys.argv[1]), sys.argv[1:]
if limit:
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
try:
    runpy.run_module("tracking.consolidate", run_name="__main__", alter_sys=True)
finally:
    print(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1], *sorted(sys.modules))
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_zero_2(tmp_path / "checkpoints" / "step-3", some_weights())


def watched(checkpoint: Path, out: Path, *arguments: str, limit: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WATCHED, str(limit), checkpoint, out, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 million elements, one of the tensors with most of them: 250 MB of shards."""
    weights = some_weights() | {"large": torch.arange(15_625_000, dtype=torch.float32).reshape(-1, 1000)}
    return save_zero_2(tmp_path_factory.mktemp("large") / "step-3", weights)


@pytest.mark.parametrize("arguments", [[], ["--dtype", "bf16"], ["--max-shard-size", "30MB"]])
def test_it_takes_little_memory_and_no_torch(large: Path, tmp_path: Path, arguments: list[str]):
    done = watched(large, tmp_path / "out", *arguments, limit=200 * 2**20)
    assert done.returncode == 0, done.stderr
    peak_kb, *modules = done.stdout.splitlines()[-1].split()
    assert int(peak_kb) < 100 * 1000
    assert not {"torch", "deepspeed", "safetensors", "tracking.consolidate.reference"} & set(modules)
    assert ("numpy" in modules) == ("bf16" in arguments)
    files = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
    found = next(tensors["large"] for tensors in files if "large" in tensors)
    expected = torch.arange(15_625_000, dtype=torch.float32).reshape(-1, 1000).to(found.dtype)
    assert torch.equal(found, expected)


def test_a_disk_that_takes_no_more_leaves_nothing(checkpoint: Path, tmp_path: Path):
    done = subprocess.run(
        [sys.executable, "-m", "tracking.consolidate", checkpoint, tmp_path / "out"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600)),
    )
    assert done.returncode == 2
    assert f"{tmp_path / 'out' / 'model.safetensors'} cannot be written" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []


def test_a_folder_that_cannot_be_made_is_refused(checkpoint: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    said = refusal(lambda: consolidate(checkpoint, tmp_path / "file" / "model.safetensors"))
    assert said.startswith(f"{tmp_path / 'file'} cannot be written: File exists")


def test_a_disk_without_room_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = os.statvfs(tmp_path)
    full = os.statvfs_result((*found[:3], 0, 0, *found[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert "0 bytes free, 500 are needed" in refusal(lambda: consolidate(checkpoint, tmp_path / "out"))
    assert list((tmp_path / "out").iterdir()) == []


def test_a_log_gets_lines(checkpoint: Path, tmp_path: Path, monkeypatch, capfd: pytest.CaptureFixture[str]):
    ticks = itertools.count(0, 20)
    monkeypatch.setattr(progress.time, "monotonic", lambda: float(next(ticks)))
    with progress.shown_progress(4 * 10**9) as advance:
        advance(10**9)
        advance(10**9)
    assert capfd.readouterr().err.splitlines() == [
        "consolidating: 1.00 of 4.00 GB, 50 MB/s",
        "consolidating: 2.00 of 4.00 GB, 50 MB/s",
    ]


def test_a_terminal_gets_a_bar(checkpoint: Path, tmp_path: Path):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "tracking.consolidate", checkpoint, tmp_path / "out"]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(command, cwd=ROOT, stderr=theirs, stdout=subprocess.DEVNULL, check=True, env=environment)
    assert b"consolidating" in os.read(ours, 10_000)
    os.close(ours)
    os.close(theirs)
