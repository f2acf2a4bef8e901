"""The consolidator's files, refusals and limits, on small shards; real DeepSpeed's are in test_consolidate_grid."""

from __future__ import annotations

import itertools
import json
import os
import pickle
import pty
import resource
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, load_model
from torch import nn

from tracking.consolidate import UnprovenLayoutError, consolidate, consolidated_weights, progress
from tracking.consolidate.dtypes import converter
from tracking.consolidate.writing import parse_size
from tracking.errors import UserError
from tracking.files import write_json

from zero_shards import save_zero_2, some_weights

ROOT = Path(__file__).parents[2]
OPTIMIZER_1 = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
SHARDS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", OPTIMIZER_1)

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


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def message(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    return str(caught.value)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_zero_2(tmp_path / "checkpoints" / "step-3", some_weights())


@pytest.mark.parametrize("world", range(1, 6))
def test_the_weights_are_those_that_were_saved(tmp_path: Path, world: int):
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), world)
    done = consolidate(checkpoint, tmp_path / "out" / "model.safetensors")
    assert done.files == [tmp_path / "out" / "model.safetensors"]
    assert same(load_file(done.files[0]), some_weights())
    assert same(consolidated_weights(checkpoint), some_weights())
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
        assert same(load_file(out / "model.safetensors"), weights)


def test_a_refusal_is_a_message_and_exit_code_2(tmp_path: Path):
    command = [sys.executable, "-m", "tracking.consolidate", tmp_path / "none", tmp_path / "out"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"error: {tmp_path / 'none'} does not exist")


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
    assert same({name: value for tensors in shards.values() for name, value in tensors.items()}, some_weights())


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
    assert same(load_file(tmp_path / "out" / "model.safetensors"), module)


def test_other_weights_in_the_folder_are_not_mixed_with_these(checkpoint: Path, tmp_path: Path):
    consolidate(checkpoint, tmp_path / "one")
    consolidate(checkpoint, tmp_path / "one", dtype="bf16")  # replaced in one move
    assert "model.safetensors" in message(lambda: consolidate(checkpoint, tmp_path / "one", max_shard_size=200))
    consolidate(checkpoint, tmp_path / "many", max_shard_size=200)
    assert "index" in message(lambda: consolidate(checkpoint, tmp_path / "many"))
    assert "index" in message(lambda: consolidate(checkpoint, tmp_path / "many", max_shard_size=200))
    # What a process left that was killed before the index.
    (tmp_path / "many" / "model.safetensors.index.json").unlink()
    consolidate(checkpoint, tmp_path / "many", max_shard_size=200)
    assert "is one file" in message(lambda: consolidate(checkpoint, tmp_path / "x.safetensors", max_shard_size=200))


def test_what_a_killed_process_left_is_removed_and_a_live_ones_is_not(checkpoint: Path, tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    ended = subprocess.Popen(["true"])
    ended.wait()
    left, alive = (out / f".model.safetensors.{os.uname().nodename}.{pid}.part" for pid in (ended.pid, os.getppid()))
    left.touch()
    alive.touch()
    consolidate(checkpoint, out)
    assert sorted(path.name for path in out.iterdir()) == sorted([alive.name, "model.safetensors"])


@pytest.mark.parametrize("text, size", [("5GB", 5 * 10**9), ("1.5 MB", 1_500_000), ("2GiB", 2**31), ("300", 300)])
def test_sizes(text: str, size: int):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "GB", "-5GB", "5 parsecs"])
def test_a_size_that_is_none_is_refused(text: str):
    assert repr(text) in message(lambda: parse_size(text))


# ---- what is no whole checkpoint


class Runs:
    """A pickle of it creates a file when it is loaded."""

    def __init__(self, call: Callable[..., object], *arguments: object) -> None:
        self.reduced = (call, arguments)

    def __reduce__(self):
        return self.reduced


def attacks(mark: Path) -> dict[str, Runs]:
    return {
        "posix.system": Runs(os.system, f"touch {mark}"),
        "builtins.eval": Runs(eval, f"open({str(mark)!r}, 'w')"),
        "builtins.exec": Runs(exec, f"open({str(mark)!r}, 'w')"),
        "subprocess.Popen": Runs(subprocess.Popen, ["touch", str(mark)]),
        "builtins.getattr": Runs(getattr, "text", "upper"),
        "shutil.rmtree": Runs(shutil.rmtree, str(mark.parent / "precious")),
        "torch.serialization.load": Runs(torch.load, str(mark)),
    }


@pytest.mark.parametrize("wanted", list(attacks(Path())))
@pytest.mark.parametrize("shard", SHARDS)
def test_a_malicious_shard_is_refused_by_name_and_not_run(checkpoint: Path, tmp_path: Path, shard: str, wanted: str):
    mark, precious = tmp_path / "ran", tmp_path / "precious"
    precious.mkdir()
    content = torch.load(checkpoint / shard, weights_only=False)
    torch.save(content | {"payload": attacks(mark)[wanted]}, checkpoint / shard)
    said = message(lambda: consolidate(checkpoint, tmp_path / "out"))
    assert str(checkpoint / shard) in said
    assert repr(wanted) in said
    assert "Nothing of it was run" in said
    assert not mark.exists()
    assert precious.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", SHARDS)
def test_a_bare_malicious_pickle_is_refused_and_not_run(checkpoint: Path, tmp_path: Path, shard: str):
    (checkpoint / shard).write_bytes(pickle.dumps(attacks(tmp_path / "ran")["posix.system"]))
    assert str(checkpoint / shard) in message(lambda: consolidate(checkpoint, tmp_path / "out"))
    assert str(checkpoint / shard) in message(lambda: consolidate(checkpoint / shard, tmp_path / "out"))
    assert not (tmp_path / "ran").exists()


def test_what_users_put_into_the_client_state_is_no_hindrance(tmp_path: Path):
    import argparse
    import collections
    import datetime

    import numpy as np

    state = {
        "rng": [np.random.get_state(), torch.get_rng_state(), np.random.default_rng(0).bit_generator.state],
        "others": [np.float32(1), np.arange(3), Path("a"), datetime.datetime.now(datetime.UTC), {1}, 1j, range(3)],
        "arguments": argparse.Namespace(lr=0.1),
        "counts": collections.defaultdict(int, a=1),
        "types": [torch.bfloat16, torch.device("cpu"), torch.Size([1])],
    }
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), client=state)
    assert same(consolidated_weights(checkpoint), some_weights())


@pytest.mark.parametrize("shard", SHARDS)
def test_a_missing_shard_is_named(checkpoint: Path, shard: str):
    (checkpoint / shard).unlink()
    assert f"{checkpoint / shard} is missing" in message(lambda: consolidated_weights(checkpoint))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("shard", SHARDS)
def test_a_truncated_shard_is_named(checkpoint: Path, shard: str, share: float):
    path = checkpoint / shard
    os.truncate(path, int(path.stat().st_size * share))
    assert f"{path} is not a whole shard" in message(lambda: consolidated_weights(checkpoint))


@pytest.mark.parametrize("position", range(0, 4000, 97))
def test_flipped_bytes_never_end_in_anything_but_a_message_or_a_model(checkpoint: Path, position: int):
    path = checkpoint / OPTIMIZER_1
    content = bytearray(path.read_bytes())
    for at in range(position % len(content), len(content), 1013):
        content[at] ^= 0xFF
    path.write_bytes(content)
    try:
        consolidated_weights(checkpoint)
    except UserError as error:
        assert str(checkpoint) in str(error)


@pytest.mark.parametrize("shard", SHARDS)
def test_a_shard_of_another_step_is_named(checkpoint: Path, tmp_path: Path, shard: str):
    other = {name: value + 1 for name, value in some_weights().items()}
    later = save_zero_2(tmp_path / "step-4", other, step=4)
    shutil.copy(later / shard, checkpoint / shard)
    said = message(lambda: consolidated_weights(checkpoint))
    assert str(checkpoint) in said
    assert "step" in said
    assert shard in said


def test_shards_of_another_number_of_ranks_are_named(checkpoint: Path, tmp_path: Path):
    third = save_zero_2(tmp_path / "other", some_weights(), world=3) / OPTIMIZER_1.replace("_1_", "_2_")
    shutil.copy(third, checkpoint)
    said = message(lambda: consolidated_weights(checkpoint))
    assert f"{checkpoint / third.name} is of rank 2, but 2 ranks saved" in said


def test_a_shard_with_too_few_elements_is_named(checkpoint: Path):
    content = torch.load(checkpoint / OPTIMIZER_1, weights_only=False)
    flat = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    flat[0] = flat[0][:-1].clone()
    torch.save(content, checkpoint / OPTIMIZER_1)
    said = message(lambda: consolidated_weights(checkpoint))
    assert f"{checkpoint / OPTIMIZER_1} holds 60 master weights in group 0" in said


def test_a_shard_that_was_compressed_is_refused(checkpoint: Path):
    path = checkpoint / OPTIMIZER_1
    with zipfile.ZipFile(path) as old:
        content = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in content.items():
            new.writestr(name, data)
    assert "compressed" in message(lambda: consolidated_weights(checkpoint))


def test_a_file_of_another_size_than_in_the_manifest_is_named(checkpoint: Path):
    files = {name: {"size": (checkpoint / name).stat().st_size, "sha256": ""} for name in SHARDS}
    files[OPTIMIZER_1]["size"] += 1
    manifest = {"step": 3, "world_size": 2, "zero_stage": 2, "run_id": None, "git_commit": None, "files": files}
    write_json(checkpoint / "manifest.json", manifest)
    assert str(checkpoint / OPTIMIZER_1) in message(lambda: consolidated_weights(checkpoint))


@pytest.mark.parametrize("latest", [None, "gone", "", "../.."])
def test_latest_that_names_nothing_is_answered_with_the_tags(checkpoint: Path, latest: str | None):
    folder = checkpoint.parent
    if latest is not None:
        (folder / "latest").write_text(latest)
    said = message(lambda: consolidated_weights(folder))
    assert str(folder) in said
    assert "step-3" in said


@pytest.mark.parametrize(
    "file, layout",
    [
        ("mp_rank_01_model_states.pt", "tensor or pipeline parallelism"),
        ("layer_00-model_00-model_states.pt", "pipeline parallelism"),
        ("layer_0_expert_1_mp_rank_00_model_states.pt", "MoE"),
        ("expp_rank_0_mp_rank_00_optim_states.pt", "MoE"),
        ("zero/embed/fp32.pt", "universal"),
    ],
)
def test_files_of_a_layout_that_is_not_proven_are_refused_by_name(checkpoint: Path, file: str, layout: str):
    (checkpoint / file).parent.mkdir(parents=True, exist_ok=True)
    (checkpoint / file).touch()
    with pytest.raises(UnprovenLayoutError, match=layout):
        consolidated_weights(checkpoint)


@pytest.mark.parametrize(
    "config, states, layout",
    [
        ({"zero_optimization": {"mics_shard_size": 2}}, {}, "MiCS"),
        ({"zero_optimization": {"zero_hpz_partition_size": 2}}, {}, "hpZ"),
        ({"zero_optimization": {"zenflow": {"topk_ratio": 0.1}}}, {}, "ZenFlow"),
        ({"tensor_parallel": {"autotp_size": 2}}, {}, "tensor parallelism"),
        ({}, {"checkpoint_parallel_dimensions": {"tp_degree": 2, "pp_degree": 1}}, "tensor parallelism"),
        ({}, {"mp_world_size": 2}, "model parallelism"),
        ({}, {"num_experts": [4]}, "MoE"),
    ],
)
def test_states_of_a_layout_that_is_not_proven_are_refused_by_name(tmp_path: Path, config, states, layout):
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), config=config, **states)
    with pytest.raises(UnprovenLayoutError, match=layout):
        consolidated_weights(checkpoint)


def test_what_is_off_in_the_configuration_is_no_such_layout(tmp_path: Path):
    config = {"zero_optimization": {"mics_shard_size": -1, "zero_hpz_partition_size": 1}, "tensor_parallel": {}}
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), config=config)
    assert same(consolidated_weights(checkpoint), some_weights())


# ---- tied weights


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
    assert same(consolidated_weights(checkpoint), module)


# ---- what it takes


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


def test_a_disk_without_room_is_refused_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    found = os.statvfs(tmp_path)
    full = os.statvfs_result((*found[:3], 0, 0, *found[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda path: full)
    assert "0 bytes free, 500 are needed" in message(lambda: consolidate(checkpoint, tmp_path / "out"))
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
