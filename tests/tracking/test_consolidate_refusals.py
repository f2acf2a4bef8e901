"""What the consolidator refuses, and that the message names the file: broken, mixed, malicious and unproven shards."""

from __future__ import annotations

import os
import pickle
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tracking.consolidate import UnprovenLayoutError, consolidate, consolidated_weights
from tracking.errors import UserError
from tracking.files import write_json

from support import refusal
from zero_shards import same_weights, save_zero_2, some_weights

OPTIMIZER_1 = "zero_pp_rank_1_mp_rank_00_optim_states.pt"
SHARDS = ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt", OPTIMIZER_1)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_zero_2(tmp_path / "checkpoints" / "step-3", some_weights())


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
    said = refusal(lambda: consolidate(checkpoint, tmp_path / "out"))
    assert str(checkpoint / shard) in said
    assert repr(wanted) in said
    assert "Nothing of it was run" in said
    assert not mark.exists()
    assert precious.exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shard", SHARDS)
def test_a_bare_malicious_pickle_is_refused_and_not_run(checkpoint: Path, tmp_path: Path, shard: str):
    (checkpoint / shard).write_bytes(pickle.dumps(attacks(tmp_path / "ran")["posix.system"]))
    assert str(checkpoint / shard) in refusal(lambda: consolidate(checkpoint, tmp_path / "out"))
    assert str(checkpoint / shard) in refusal(lambda: consolidate(checkpoint / shard, tmp_path / "out"))
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
    assert same_weights(consolidated_weights(checkpoint), some_weights())


@pytest.mark.parametrize("shard", SHARDS)
def test_a_missing_shard_is_named(checkpoint: Path, shard: str):
    (checkpoint / shard).unlink()
    assert f"{checkpoint / shard} is missing" in refusal(lambda: consolidated_weights(checkpoint))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.999])
@pytest.mark.parametrize("shard", SHARDS)
def test_a_truncated_shard_is_named(checkpoint: Path, shard: str, share: float):
    path = checkpoint / shard
    os.truncate(path, int(path.stat().st_size * share))
    assert f"{path} is not a whole shard" in refusal(lambda: consolidated_weights(checkpoint))


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
    said = refusal(lambda: consolidated_weights(checkpoint))
    assert str(checkpoint) in said
    assert "step" in said
    assert shard in said


def test_shards_of_another_number_of_ranks_are_named(checkpoint: Path, tmp_path: Path):
    third = save_zero_2(tmp_path / "other", some_weights(), world=3) / OPTIMIZER_1.replace("_1_", "_2_")
    shutil.copy(third, checkpoint)
    said = refusal(lambda: consolidated_weights(checkpoint))
    assert f"{checkpoint / third.name} is of rank 2, but 2 ranks saved" in said


def test_a_shard_with_too_few_elements_is_named(checkpoint: Path):
    content = torch.load(checkpoint / OPTIMIZER_1, weights_only=False)
    flat = content["optimizer_state_dict"]["single_partition_of_fp32_groups"]
    flat[0] = flat[0][:-1].clone()
    torch.save(content, checkpoint / OPTIMIZER_1)
    said = refusal(lambda: consolidated_weights(checkpoint))
    assert f"{checkpoint / OPTIMIZER_1} holds 60 master weights in group 0" in said


def test_a_shard_that_was_compressed_is_refused(checkpoint: Path):
    path = checkpoint / OPTIMIZER_1
    with zipfile.ZipFile(path) as old:
        content = {entry.filename: old.read(entry) for entry in old.infolist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name, data in content.items():
            new.writestr(name, data)
    assert "compressed" in refusal(lambda: consolidated_weights(checkpoint))


def test_a_file_of_another_size_than_in_the_manifest_is_named(checkpoint: Path):
    files = {name: {"size": (checkpoint / name).stat().st_size, "sha256": ""} for name in SHARDS}
    files[OPTIMIZER_1]["size"] += 1
    manifest = {"step": 3, "world_size": 2, "zero_stage": 2, "run_id": None, "git_commit": None, "files": files}
    write_json(checkpoint / "manifest.json", manifest)
    assert str(checkpoint / OPTIMIZER_1) in refusal(lambda: consolidated_weights(checkpoint))


@pytest.mark.parametrize("latest", [None, "gone", "", "../.."])
def test_latest_that_names_nothing_is_answered_with_the_tags(checkpoint: Path, latest: str | None):
    folder = checkpoint.parent
    if latest is not None:
        (folder / "latest").write_text(latest)
    said = refusal(lambda: consolidated_weights(folder))
    assert str(folder) in said
    assert "step-3" in said


def test_a_runs_folder_is_answered_with_the_command(checkpoint: Path, tmp_path: Path):
    run = tmp_path / "it's a run"
    run.mkdir()
    (run / "checkpoints").symlink_to(checkpoint.parent)
    said = refusal(lambda: consolidated_weights(run))
    assert f"next: python -m tracking.consolidate {shlex.quote(str(run / 'checkpoints'))} OUT" in said


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
        ({}, {"ds_autoep_layers": [{"layer": 0}]}, "MoE"),
        ({}, {"autoep_layers": [{"layer": 0}]}, "MoE"),
    ],
)
def test_states_of_a_layout_that_is_not_proven_are_refused_by_name(tmp_path: Path, config, states, layout):
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), config=config, **states)
    with pytest.raises(UnprovenLayoutError, match=layout):
        consolidated_weights(checkpoint)


def test_what_is_off_in_the_configuration_is_no_such_layout(tmp_path: Path):
    config = {"zero_optimization": {"mics_shard_size": -1, "zero_hpz_partition_size": 1}, "tensor_parallel": {}}
    checkpoint = save_zero_2(tmp_path / "step-3", some_weights(), config=config)
    assert same_weights(consolidated_weights(checkpoint), some_weights())
