"""What the consolidator writes, of small shards made by hand; real DeepSpeed's are in test_consolidate_grid."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from tracking.consolidate import consolidate, consolidated_weights
from tracking.consolidate.dtypes import converter
from tracking.consolidate.writing import parse_size

from support import refusal
from zero_shards import same_weights, save_zero_2, some_weights

ROOT = Path(__file__).parents[2]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_zero_2(tmp_path / "checkpoints" / "step-3", some_weights())


@pytest.mark.parametrize("world", range(1, 6))
def test_the_weights_are_those_that_were_saved(tmp_path: Path, world: int):
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), world)
    done = consolidate(checkpoint, tmp_path / "out" / "model.safetensors")
    assert done.files == [tmp_path / "out" / "model.safetensors"]
    assert same_weights(load_file(done.files[0]), some_weights())
    assert same_weights(consolidated_weights(checkpoint), some_weights())
    assert (done.elements, done.bytes) == (125, 500)


def test_the_command_finds_the_checkpoint_that_latest_names(weird_tmp_path: Path):
    save_zero_2(weird_tmp_path / "runs" / "step-3", some_weights())
    save_zero_2(weird_tmp_path / "runs" / "step-4", some_weights(2))
    (weird_tmp_path / "runs" / "latest").write_text("step-3\n")
    for arguments, weights in (([], some_weights()), (["--tag", "step-4"], some_weights(2))):
        out = weird_tmp_path / "out"
        command = [sys.executable, "-m", "tracking.consolidate", weird_tmp_path / "runs", out, *arguments]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.startswith(f"{out / 'model.safetensors'}: ")
        assert same_weights(load_file(out / "model.safetensors"), weights)


def test_a_refusal_is_a_message_and_exit_code_2(tmp_path: Path):
    command = [sys.executable, "-m", "tracking.consolidate", tmp_path / "none", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} does not exist")


# What the states of older versions hold besides; none has paddings of single parameters, which came with 0.19.
@pytest.mark.parametrize(
    "version, states",
    [
        ("0.14.5", {"sparse_tensor_module_names": {"embed"}}),
        ("0.16.9+cu124", {"sparse_tensor_module_names": set(), "random_ltd": None}),
        ("0.17.6", {"data_sampler": None, "random_ltd": None}),
        ("0.18.9", {"checkpoint_parallel_dimensions": {"tp_degree": 1, "pp_degree": 1}}),
    ],
)
def test_the_layouts_of_older_versions_are_read(tmp_path: Path, version: str, states: dict[str, Any]):
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), ds_version=version, **states)
    assert consolidate(checkpoint, tmp_path / "out").notices == []
    assert same_weights(consolidated_weights(checkpoint), some_weights())


@pytest.mark.parametrize("steps", [3, 3.0, torch.tensor(3), torch.tensor(3.0, dtype=torch.float64)])
def test_shards_of_bf16_without_zero_before_0_17_are_read(checkpoint: Path, steps: Any):
    """BF16_Optimizer wrote them: other names, no stage, and optimizers count their steps in several types."""
    for shard in sorted(checkpoint.glob("zero_pp_rank_*")):
        content = torch.load(shard, weights_only=False)
        states = content["optimizer_state_dict"]
        del states["zero_stage"]
        states["base_optimizer_state"]["state"][0]["step"] = steps
        torch.save(content | {"ds_version": "0.16.9"}, checkpoint / f"bf16_{shard.name}")
        shard.unlink()
    assert same_weights(consolidated_weights(checkpoint), some_weights())


@pytest.mark.parametrize("version", ["0.13.5", "0.15.4", "0.20.0", "1.0", "unknown", None, 19])
def test_a_version_that_nobody_compared_is_read_and_said(tmp_path: Path, version: object):
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), ds_version=version)
    [notice] = consolidate(checkpoint, tmp_path / "out").notices
    assert "0.18, 0.19 were compared" in notice
    assert ("an unknown version" if version in {"unknown", None, 19} else f"DeepSpeed {version};") in notice
    assert same_weights(load_file(tmp_path / "out" / "model.safetensors"), some_weights())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_types_are_rounded_as_torch_rounds(tmp_path: Path, dtype: str):
    generator = torch.Generator().manual_seed(1)
    bits = torch.randint(-(2**31), 2**31 - 1, (20_000,), generator=generator).to(torch.int32)
    # Halfway between two values of bf16, and what is special.
    halfway = (torch.arange(0, 2**15 - 200, 7, dtype=torch.int32) << 16) + 0x8000
    odd = torch.tensor([0.0, -0.0, float("inf"), -float("inf"), float("nan"), 65504.0, 65520.0, 1e-8])
    weights = {"a": torch.cat([bits.view(torch.float32), halfway.view(torch.float32), odd])}
    checkpoint = save_zero_2(tmp_path / "step-3", weights)
    consolidate(checkpoint, tmp_path / "out", dtype=dtype)
    found = load_file(tmp_path / "out" / "model.safetensors")["a"]
    expected = weights["a"].to({"bf16": torch.bfloat16, "fp16": torch.float16}[dtype])
    assert found.dtype == expected.dtype
    number = ~expected.isnan()
    assert torch.equal(found.isnan(), ~number)
    assert torch.equal(found[number].view(torch.int16), expected[number].view(torch.int16))


@pytest.mark.parametrize("kind", ["bfloat16", "float16", "float64"])
def test_other_types_are_widened_as_torch_widens(kind: str):
    values = torch.randn(1000, generator=torch.Generator().manual_seed(2)).to(getattr(torch, kind))
    name = {"bfloat16": "BF16", "float16": "F16", "float64": "F64"}[kind]
    widened = converter(name, "F32")(memoryview(values.view(torch.uint8).numpy().data))
    assert bytes(widened) == values.float().numpy().tobytes()


def test_shards_hold_each_tensor_once_and_are_indexed(checkpoint: Path, tmp_path: Path):
    done = consolidate(checkpoint, tmp_path / "out", max_shard_size=200)
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == done.bytes == 500
    shards = {path.name: load_file(path) for path in done.files}
    assert len(shards) == 4
    assert {name: file for file, tensors in shards.items() for name in tensors} == index["weight_map"]
    assert all(sum(tensor.nbytes for tensor in tensors.values()) <= 200 for tensors in shards.values())
    assert same_weights({name: value for tensors in shards.values() for name, value in tensors.items()}, some_weights())


def test_tensors_begin_at_multiples_of_their_element(tmp_path: Path):
    weights = some_weights()
    module = {"flag": torch.tensor([True, False, True]), "count": torch.tensor(7)} | weights
    checkpoint = save_zero_2(tmp_path / "step-3", weights, module=module, buffer_names=["flag", "count"])
    consolidate(checkpoint, tmp_path / "out")
    content = (tmp_path / "out" / "model.safetensors").read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    assert length % 8 == 0
    assert header.pop("__metadata__") == {"format": "pt"}
    sizes = {"F32": 4, "I64": 8, "BOOL": 1}
    assert all(entry["data_offsets"][0] % sizes[entry["dtype"]] == 0 for entry in header.values())
    assert same_weights(load_file(tmp_path / "out" / "model.safetensors"), module)


def test_other_weights_in_the_folder_are_not_mixed_with_these(checkpoint: Path, tmp_path: Path):
    consolidate(checkpoint, tmp_path / "one")
    consolidate(checkpoint, tmp_path / "one", dtype="bf16")  # replaced in one move
    assert "model.safetensors" in refusal(lambda: consolidate(checkpoint, tmp_path / "one", max_shard_size=200))
    consolidate(checkpoint, tmp_path / "many", max_shard_size=200)
    assert "index" in refusal(lambda: consolidate(checkpoint, tmp_path / "many"))
    assert "index" in refusal(lambda: consolidate(checkpoint, tmp_path / "many", max_shard_size=200))
    # What a process left that was killed before the index.
    (tmp_path / "many" / "model.safetensors.index.json").unlink()
    consolidate(checkpoint, tmp_path / "many", max_shard_size=200)
    assert "is one file" in refusal(lambda: consolidate(checkpoint, tmp_path / "x.safetensors", max_shard_size=200))


def test_what_a_killed_process_left_is_removed_and_a_live_ones_is_not(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, alive = (out / f".model.safetensors.0a.{os.uname().nodename}.{pid}.part" for pid in (ended.pid, os.getppid()))
    left.touch()
    alive.touch()
    consolidate(checkpoint, out)
    assert sorted(path.name for path in out.iterdir()) == sorted([alive.name, "model.safetensors"])


@pytest.mark.parametrize("text, size", [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2**31), ("300", 300)])
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-5GB", "5 parsecs"])
def test_a_size_that_is_none_is_refused(text: str):
    assert repr(text) in refusal(lambda: parse_size(text))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.embed.weight


def test_tied_weights_are_written_once_and_load_into_a_tied_model(tmp_path: Path):
    saved = Tied()
    weights = {"embed.weight": saved.embed.weight.detach()}
    names = {"module": dict(saved.state_dict()), "shared_params": {"head.weight": "embed.weight"}}
    done = consolidate(save_zero_2(tmp_path / "step-3", weights, **names), tmp_path / "out")
    assert done.tied == {"head.weight": "embed.weight"}
    with safe_open(done.files[0], "pt") as file:
        assert (file.metadata(), list(file.keys())) == (
            {"format": "pt", "head.weight": "embed.weight"},
            ["embed.weight"],
        )
    model = Tied()
    assert load_model(model, done.files[0]) == (set(), [])
    assert torch.equal(model.head.weight, saved.embed.weight)
    in_memory = consolidated_weights(tmp_path / "step-3")
    assert in_memory["head.weight"] is in_memory["embed.weight"]


def test_empty_parameters_are_not_tied_although_deepspeed_says_so(tmp_path: Path):
    module = some_weights() | {"none": torch.empty(0, 4), "nothing": torch.empty(7, 0)}
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), module=module, shared_params={"nothing": "none"})
    assert same_weights(consolidated_weights(checkpoint), module)
