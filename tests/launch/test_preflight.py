"""What preflight says to a stage, from its profile and the disk alone."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import yaml

from launch.config import ROOT, Config, Inputs, resolve
from launch.preflight import check, facts, findings, rules
from launch.preflight.disk import weights_in
from launch.preflight.finding import Finding, as_text
from launch.preflight.limits import limit_findings, limits_of_profile
from launch.preflight.live import beside_profile
from launch.preflight.request import request_of
from launch.spec import JobSpec, make_spec
from tracking.errors import UserError
from tracking.store import Store, publish

from model_store import save_bundle

NOW = datetime(2025, 1, 2, 3, 4, 5)
SHAPES = {"observation.state": [43], "observation.environment_state": [10], "action": [7]}
PROFILE = {
    "executor": "slurm",
    "partition": "gpu",
    "account": "robots",
    "qos": "standby",
    "gpus_per_node": 2,
    "qos_limits": {"standby": "4:00:00"},
    "qos_rules": {"standby": {"gpus_per_user": 8}, "normal": {}},
    "partitions": {
        "gpu": {"default": True, "max_time": "2-00:00:00", "nodes": 16, "max_nodes": 8, "gpus_per_node": 2,
                "cpus_per_node": 32, "memory_gb": 200, "qos": ["standby", "normal"]},
        "cpu": {"max_time": "1:00:00", "gpus_per_node": 0, "accounts": ["theory"]},
    },
    "accounts": ["robots", "vision"],
    "checked": {"date": "2025-01-02 03:04 +0000"},
    "account_qos": {"robots": ["normal", "standby", "debug"], "vision": ["normal"]},
    "node_local": ["/dev/shm"],
}  # fmt: skip


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def dataset(root: Path, name: str, **shapes: list[int]) -> None:
    features = {key: {"dtype": "float32", "shape": shape} for key, shape in {**SHAPES, **shapes}.items()}
    write_json(root / "data" / name / "meta" / "info.json", {"features": features})


def bundle(root: Path, **shapes: list[int]) -> Path:
    folder = save_bundle(root)
    outputs = {key: {"shape": value} for key, value in {**SHAPES, **shapes}.items() if key == "action"}
    inputs = {key: {"shape": value} for key, value in {**SHAPES, **shapes}.items() if key != "action"}
    write_json(folder / "config.json", {"type": "act", "input_features": inputs, "output_features": outputs})
    return folder


def without_its_rights(*command: str) -> subprocess.CompletedProcess[str]:
    """Runs a command that permissions bind, also where the tests run as root."""
    bound = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"] if os.getuid() == 0 else []
    if bound and (not shutil.which("setpriv") or subprocess.run([*bound, "true"], check=False).returncode):
        pytest.skip("root cannot give up its rights here")
    return subprocess.run([*bound, *command], cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile `site`, a dataset `lift`, a bundle `b` and a key of W&B: all that a submission needs."""
    for name in ("GILBRETH_STORE", "SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS", "WANDB_MODE", "WANDB_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-key")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb"))
    profiles = tmp_path / "config" / "gilbreth" / "clusters"
    profiles.mkdir(parents=True)
    roots = {"run_root": str(tmp_path / "runs"), "data_root": str(tmp_path / "data")}
    (profiles / "site.yaml").write_text(yaml.safe_dump(PROFILE | roots))
    dataset(tmp_path, "lift")
    bundle(tmp_path / "b")
    (tmp_path / "file").write_text("in the way")
    return tmp_path


def job(world: Path, stage: str, *settings: str) -> tuple[Config, JobSpec]:
    config = resolve(stage, "site", [setting.replace("?", str(world)) for setting in settings])
    return config, make_spec(config, NOW, world)


def found(world: Path, stage: str, *settings: str) -> list[Finding]:
    return list(findings(*job(world, stage, *settings)))


def test_good_stages_are_passed(world: Path) -> None:
    assert found(world, "bc") == []
    assert found(world, "eval", "eval.policy=b") == []
    assert found(world, "eval", "eval.policy=b", "eval.dataset=data/lift") == []
    assert found(world, "eval", "eval.policies=[b, ./b]", "eval.seed=10000000") == []
    assert found(world, "dagger", "dagger.from_checkpoint=b", "dagger.gate=ensemble", "dagger.ensemble=b,./b") == []
    assert found(world, "collect", "cluster.qos=normal") == []
    assert found(world, "smoke") == []
    assert found(world, "bc", "resources.nodes=4", "resources.time=4:00:00", "bc.batch_size=512") == []


CASES: dict[str, tuple[str, list[str], str]] = {
    "gpus-node": ("bc", ["resources.gpus_per_node=4"], "a node of 'site' has 2"),
    "cpus-node": ("bc", ["resources.cpus_per_task=17"], "17 x 2 tasks = 34 cores: a node of partition 'gpu'"),
    "memory-node": ("bc", ["resources.memory_gb=201"], "has 200 GiB for jobs"),
    "nodes-partition": (
        "bc",
        ["resources.nodes=9", "bc.batch_size=18"],
        "a job in partition 'gpu' of 'site' may have 8",
    ),
    "gpus-qos": ("bc", ["resources.nodes=5", "bc.batch_size=20"], "= 10 GPUs: QOS 'standby' of 'site' gives a user 8"),
    "time-qos": ("bc", ["resources.time=4:00:01"], "QOS 'standby' of 'site' allows 04:00:00"),
    "time-partition": ("bc", ["resources.time=3-00:00:00", "cluster.qos=normal"], "'gpu' of 'site' allows 2-00:00:00"),
    "signal-time": ("bc", ["resources.time=1"], "resources.signal_seconds=60, and resources.time=00:01:00"),
    "local-nodes": ("bc", ["cluster.executor=local", "resources.nodes=2"], "'site' is this machine alone"),
    "partition-unknown": ("bc", ["cluster.partition=gpus"], "'site' has no such partition, but cpu, gpu"),
    "account-unknown": ("bc", ["cluster.account=robot"], "not one of your accounts on 'site' (robots, vision)"),
    "account-partition": (
        "collect",
        ["cluster.partition=cpu"],
        "may not use partition 'cpu' of 'site', which is for theory",
    ),
    "qos-account": ("bc", ["cluster.account=vision"], "account 'vision' has only normal on 'site'"),
    "qos-partition": ("bc", ["cluster.qos=debug"], "cannot be used in partition 'gpu' of 'site', which takes normal"),
    "node-local": ("bc", ["cluster.run_root=/dev/shm/runs"], "cluster.run_root '/dev/shm/runs' is below /dev/shm"),
    "not-writable": ("bc", ["cluster.run_root=?/file/runs"], "/file/runs' cannot be written"),
    "folder-taken": ("bc", ["name=data", "cluster.run_root=?"], "/data' is there already, from another run"),
    "store-strangers": ("bc", ["cluster.store_root=?/config"], "is no model store: it holds gilbreth"),
    "disk-space": ("bc", ["bc.policy_settings.dim_feedforward=2000000000000"], "checkpoints of"),
    "dataset-missing": ("bc", ["bc.repo_ids=lfit"], "dataset 'lfit' is not in"),
    "policy-missing": ("eval", ["eval.policy=act-lfit"], "no model is found by that name"),
    "features": (
        "eval",
        ["eval.policy=b", "eval.dataset=data/square"],
        "observation.state is (44,) in the dataset, (43,)",
    ),
    "arguments": ("bc", ["bc.lr=-0.1"], "bc.lr=-0.1: Input should be greater than 0"),
    "batch": ("bc", ["bc.batch_size=33"], "bc.batch_size=33 cannot be shared by 2 ranks (1 nodes x 2)"),
}
"""By rule: a stage, what is set, and a part of what is said."""


@pytest.mark.parametrize(
    ("settings", "rule", "said"),
    [
        (["policy_artifact=null"], "policy-missing", ("dagger.from_checkpoint is not set", "act-lift:best")),
        (["from_checkpoint=./b"], "arguments", ("one policy is corrected, not two", "dagger.from_checkpoint=null")),
        (["policy_artifact=act-lfit"], "policy-missing", ("no model is found by that name", "tracking.models list")),
        (["expert_policy=./nowhere"], "policy-missing", ("dagger.expert_policy='./nowhere'", "dagger.expert_policy=")),
        (["expert=policy"], "arguments", ("expert=policy needs dagger.expert_policy", "expert_policy=act-lift:best")),
        (["expert=recorded", "rounds=1"], "arguments", ("needs dagger.corrections", "dagger.corrections=NAME")),
        (["corrections=run/round-01"], "dataset-missing", ("'round-01' is not in", "--set dagger.corrections=NAME")),
        (["expert=recorded", "corrections=lift"], "arguments", ("rounds=3: corrections that are", "dagger.rounds=1")),
        (["expert=keyboard"], "arguments", ("a job in a queue has no display", "--cluster local")),
        (["gate=ensemble"], "arguments", ("needs dagger.ensemble", "dagger.ensemble=act-lift:v0,act-lift:v1")),
        (["gate=oracel"], "arguments", ("gate='oracel': Input should be 'oracle', 'beta'", "dagger.gate=VALUE")),
        (["rollout_seed=9999990"], "arguments", ("seeds 9999990 to 10000049", "dagger.rollout_seed=5000000")),
        (["eval_seed=99999"], "arguments", ("seeds 99999 to 100048, and those for this are 100000 to", "=100000")),
        (["batch_size=33"], "batch", ("dagger.batch_size=33 cannot be shared by 2 ranks", "dagger.batch_size=34")),
        (["repo_ids=square"], "features", ("observation.state is (44,) in the dataset", "dagger.policy_artifact=NAME")),
        (["save_freq=1", "keep_every=1", "training_steps=100000000000"], "disk-space", ("3000", "keep_every=0")),
    ],
)
def test_what_dagger_would_refuse(
    settings: list[str], rule: str, said: tuple[str, str], world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    dataset(world, "square", **{"observation.state": [44]})
    publish(Store(world / "models"), world / "b", "act-lift", "best", mirror=False)
    assert found(world, "dagger", "dagger.policy_artifact=act-lift:best") == []
    given = [f"dagger.{setting}" for setting in ("policy_artifact=act-lift:best", *settings)]
    errors = [one for one in found(world, "dagger", *given) if one.level == "error"]
    assert [one.rule for one in errors] == [rule], errors
    assert said[0] in errors[0].what and said[1] in errors[0].fix


@pytest.mark.parametrize("rule", CASES)
def test_a_stage_with_the_fault(rule: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, settings, words = CASES[rule]
    dataset(world, "square", **{"observation.state": [44]})
    monkeypatch.setenv("WANDB_MODE", "offline")  # or it would be asked for the model
    said = [finding for finding in found(world, stage, *settings) if finding.rule == rule]
    assert said and words in said[0].what, found(world, stage, *settings)
    assert (said[0].level, said[0].why) == (rules.all_rules()[rule].level, rules.all_rules()[rule].why)
    assert said[0].fix


def test_the_fix_of_a_finding_mends_it(world: Path) -> None:
    """GIVEN a job with faults that a `--set` mends WHEN each fix is followed THEN nothing is found."""
    settings = ["resources.gpus_per_node=4", "resources.time=300", "resources.memory_gb=500", "bc.batch_size=33"]
    settings += ["cluster.partition=gpuu", "cluster.account=robot"]
    seen = 0
    while said := found(world, "bc", *settings):
        fix = said[0].fix.removeprefix("--set ").split()[0].rstrip(";")
        settings = [*settings, fix]
        seen += 1
        assert seen < 10, said
    assert seen >= 6


def test_a_profile_that_nobody_has_checked_only_doubts_a_partition(world: Path) -> None:
    """GIVEN a profile from notes WHEN a partition is not in it THEN that is a warning, and nobody knows its nodes."""
    settings = ["cluster.checked=null", "cluster.partition=h100", "resources.gpus_per_node=8"]
    assert [(one.rule, one.level) for one in found(world, "bc", *settings)] == [("partition-unknown", "warning")]
    config = resolve("bc", "gilbreth", ["cluster.partition=a30", "cluster.qos=standby"])
    limits = limits_of_profile(config.cluster)
    (doubt,) = limit_findings(request_of(make_spec(config, NOW, world)), limits)
    assert (doubt.rule, doubt.level) == ("partition-unknown", "warning")
    # Where Slurm answers, it decides; where it does not, the doubt is said.
    error, silent = rules.PARTITION_UNKNOWN("p", "f"), rules.SLURM_SILENT("s", "f")
    assert list(beside_profile([doubt], [])) == []
    assert list(beside_profile([doubt], [error])) == [error]
    assert list(beside_profile([doubt], [silent])) == [doubt, silent]
    assert list(beside_profile([error], [error])) == []


def test_a_job_that_may_start_in_one_of_several_partitions(world: Path) -> None:
    """GIVEN a list of partitions THEN an unknown name is an error, and what one of them allows is none."""

    def said(partition: str, *settings: str) -> list[tuple[str, str]]:
        return [(one.rule, one.level) for one in found(world, "bc", f"cluster.partition={partition}", *settings)]

    assert said("gpu") == [] and ("account-partition", "error") in said("cpu")
    assert ("account-partition", "warning") in said("gpu,cpu") and "error" not in dict(said("gpu,cpu")).values()
    assert said("gpu,gpus") == [("partition-unknown", "error")]
    assert ("time-partition", "error") in said("gpu,cpu", "resources.time=9-00:00:00", "cluster.qos=normal")


def test_a_folder_whose_name_slurm_would_misread(world: Path) -> None:
    config, spec = job(world, "smoke")
    (said,) = findings(config, replace(spec, log_dir=world / "100%" / "x"))
    assert (said.rule, said.level) == ("log-folder", "error")


def test_the_environment_stands_in_where_the_profile_leaves_a_field_open(
    world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_QOS", "debug")
    assert found(world, "bc") == []
    (said,) = found(world, "bc", "cluster.qos=null")
    assert (said.rule, said.what.partition(" ")[0]) == ("qos-partition", "SBATCH_QOS=debug")


def test_a_stage_that_starts_from_a_policy_and_reads_a_dataset(world: Path) -> None:
    dataset(world, "square", **{"observation.environment_state": [14], "action": [8]})
    store = Store(world / "models")
    publish(store, world / "b", "act-lift", "best", mirror=False)
    config, spec = job(world, "bc", "bc.repo_ids=square")
    config = config.model_copy(
        update={
            "stage": config.stage.model_copy(update={"inputs": Inputs(datasets=("repo_ids",), policies=("start",))}),
            "arguments": {**config.arguments, "start": "act-lift:best"},
        }
    )
    said = [finding for finding in findings(config, spec) if finding.rule == "features"]
    assert len(said) == 1
    assert "environment_state is (14,) in the dataset, (10,) in the policy; action is (8,)" in said[0].what
    # The size is that of the policy it starts from: 64 weights.
    assert [fact for fact in facts(config, spec) if fact.startswith("64 parameters, 5 checkpoints of 1.0 KB")]


def test_checkpoints_that_fit_are_said_and_those_that_do_not_are_refused(world: Path) -> None:
    shown = list(facts(*job(world, "bc")))
    assert shown[0] == "batch 64 = micro-batch 32 x 2 ranks x 1 accumulated"
    assert shown[1].startswith("123,783 parameters, 5 checkpoints of 2.0 MB: 11 MB, ")
    keep = ["bc.training_steps=100000000", "bc.save_freq=1", "bc.keep_every=1"]
    (said,) = found(world, "bc", *keep)
    free = os.statvfs(world).f_bavail * os.statvfs(world).f_frsize
    assert said.rule == "disk-space" and free < 100_000_000 * 123_783 * 16
    assert found(world, "bc", *keep, "bc.keep_every=0") == []


def test_weights_are_counted_by_the_header_alone(tmp_path: Path) -> None:
    assert weights_in(save_bundle(tmp_path / "b", elements=77) / "model.safetensors") == 77
    for name, content in {
        "short": b"\1",
        "endless": struct.pack("<Q", 1 << 60),
        "text": b"\4" + bytes(7) + b"{{{{",
    }.items():
        (tmp_path / name).write_bytes(content)
        assert weights_in(tmp_path / name) is None, name


@pytest.mark.parametrize(
    "case",
    [
        ([], "", {}, True),
        (["tracking.mode=online"], "", {"WANDB_MODE": "offline"}, True),
        ([], "", {"WANDB_MODE": "offline"}, False),
        (["tracking.mode=disabled"], "", {}, False),
        (["cluster.internet=false"], "", {}, False),
        ([], "machine api.wandb.ai login user password k\n", {}, False),
        ([], "machine api.wandb.ai login user password k\n", {"WANDB_BASE_URL": "http://10.0.0.1:8080"}, True),
        ([], "machine 10.0.0.1:8080 login user password k\n", {"WANDB_BASE_URL": "http://10.0.0.1:8080"}, False),
    ],
)
def test_a_key_is_missed_only_where_rows_go_to_wandb(
    world: Path, monkeypatch: pytest.MonkeyPatch, case: tuple[list[str], str, dict[str, str], bool]
) -> None:
    settings, netrc, environment, warns = case
    monkeypatch.delenv("WANDB_API_KEY")
    (world / "netrc").write_text(netrc)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    said = found(world, "bc", *settings)
    assert [(finding.rule, finding.level) for finding in said] == ([("wandb-key", "warning")] if warns else [])


def test_errors_stop_warnings_do_not_and_force_says_what_it_overrides(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("WANDB_API_KEY")
    assert [finding.rule for finding in check(*job(world, "bc"), live=False)] == ["wandb-key"]
    assert "warning wandb-key" in capsys.readouterr().err
    broken = job(world, "bc", "bc.batch_size=33", "resources.time=300")
    with pytest.raises(UserError, match="preflight: 2 errors, 1 warning; nothing was queued"):
        check(*broken, live=False)
    check(*broken, live=False, force=True)
    assert capsys.readouterr().err.endswith("preflight: --force goes on in spite of time-qos, batch\n")


def test_a_finding_keeps_to_the_width_and_leaves_commands_whole(world: Path) -> None:
    text = as_text(found(world, "bc", "bc.repo_ids=lfit")[0], 80)
    assert max(map(len, text.splitlines())) <= 80
    assert text.splitlines()[0].startswith("error   dataset-missing  dataset 'lfit'")
    for part in ("\n        why  ", "\n        fix  ", "--set collect.repo_id=lfit"):
        assert part in text
    assert len(as_text(found(world, "bc", "bc.repo_ids=lfit")[0]).splitlines()) == 3, "unbroken where no one reads it"


@pytest.mark.parametrize(
    ("stage", "settings", "said"),
    [
        ("bc", ["cluster.run_root=?/runs"], "cluster.run_root '?/runs' cannot be written (?)"),
        ("bc", ["cluster.run_root=?", "cluster.data_root=?", "name=x"], "dataset 'lift' is not in ?"),
        ("eval", ["cluster.store_root=?/store", "eval.policy=?/b"], "cluster.store_root '?/store' cannot be written"),
    ],
)
def test_a_folder_that_may_not_be_entered(stage: str, settings: list[str], said: str, world: Path) -> None:
    """GIVEN the folder of a colleague, which is closed, THEN that is found as any other that cannot be written."""
    folder = world / "colleague"
    folder.mkdir(mode=0)
    given = [part for setting in settings for part in ("--set", setting.replace("?", str(folder)))]
    command = [sys.executable, "-m", "launch.submit", "--cluster", "site", "--stage", stage, "--dry-run", *given]
    found = without_its_rights(*command)
    assert said.replace("?", str(folder)) in " ".join(found.stderr.split())
    assert "Traceback" not in found.stderr
