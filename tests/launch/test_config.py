from __future__ import annotations

import json
from pathlib import Path

import pytest

from launch import yaml_core
from launch.config import clusters, minutes, resolve, stages, typed
from tracking.errors import UserError
from tracking.gate.rules import Condition, ModelManagement, read_rules


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    folder = tmp_path / "gilbreth" / "clusters"
    folder.mkdir(parents=True)
    return folder


def test_every_stage_resolves_on_every_cluster() -> None:
    for stage in ("collect", "bc", "eval", "smoke"):
        for cluster in ("lab", "local", "gilbreth", "generic"):
            config = resolve(stage, cluster, [])
            assert config.stage.stage == stage
            assert config.cluster.name == cluster


def test_the_later_layer_wins(profiles: Path) -> None:
    (profiles / "mine.yaml").write_text(
        "executor: slurm\nresources: {cpus_per_task: 3, memory_gb: 5}\narguments: {device: cuda, batch_size: 16}\n"
    )
    config = resolve("bc", "mine", ["resources.memory_gb=7", "bc.batch_size=32", "bc.batch_size=48"])
    assert config.resources.nodes == 1  # the stage's
    assert config.resources.cpus_per_task == 3  # the profile's
    assert config.resources.memory_gb == 7  # the command line's
    assert config.arguments["device"] == "cuda"
    assert config.arguments["batch_size"] == 48


def test_the_users_own_profile_wins_over_the_one_that_is_shipped(profiles: Path) -> None:
    (profiles / "gilbreth.yaml").write_text("executor: slurm\naccount: mylab\n")
    assert clusters()["gilbreth"] == profiles / "gilbreth.yaml"
    assert resolve("smoke", "gilbreth", []).cluster.account == "mylab"


@pytest.mark.parametrize(
    ("stage", "cluster", "settings", "message"),
    [
        ("bcc", "lab", [], "unknown stage 'bcc'. Did you mean 'bc'?"),
        ("bc", "gilberth", [], "unknown cluster 'gilberth'. Did you mean 'gilbreth'?"),
        ("bc", "lab", ["bc.bach_size=3"], "unknown key 'bc.bach_size'. Did you mean 'bc.batch_size'?"),
        ("bc", "lab", ["batch_size=3"], "unknown key 'batch_size'. Did you mean 'bc.batch_size'?"),
        ("bc", "lab", ["collect.episodes=3"], "unknown key 'collect.episodes'."),
        ("bc", "lab", ["cluster.name=x"], "unknown key 'cluster.name'."),
        ("bc", "lab", ["resources.nodes.x=1"], "unknown key 'resources.nodes.x'."),
        ("bc", "lab", ["resources.nods=2"], "unknown key 'resources.nods'. Did you mean 'resources.nodes'?"),
        ("bc", "lab", ["cluster.arguments.devise=cpu"], "Did you mean 'cluster.arguments.device'?"),
        ("bc", "lab", ["cluster.resources.tme=5"], "unknown key 'resources.tme'. Did you mean 'resources.time'?"),
        ("bc", "lab", ["batch"], "--set 'batch': expected key=value"),
        ("bc", "lab", ["=3"], "--set '=3': expected key=value"),
        ("bc", "lab", ["bc.batch_size=many"], "bc.batch_size='many': expected a whole number"),
        ("bc", "lab", ["bc.batch_size=true"], "bc.batch_size=True: expected a whole number"),
        ("bc", "lab", ["bc.batch_size=1.5"], "bc.batch_size=1.5: expected a whole number"),
        ("bc", "lab", ["bc.batch_size=null"], "bc.batch_size=None: expected a whole number"),
        ("bc", "lab", ["resources.nodes=0"], "resources.nodes=0: Input should be greater than 0"),
        ("bc", "lab", ["resources.time=soon"], "resources.time='soon': expected minutes"),
        ("bc", "lab", ["resources.tasks_per_node=3"], "one task runs on each GPU"),
        ("bc", "lab", ["tracking.mode=sometimes"], "tracking.mode='sometimes'"),
        ("bc", "lab", ["cluster.environment.WANDB_API_KEY=abc"], "looks like a secret"),
        ("bc", "lab", ["cluster.environment.A-B=abc"], "'A-B' is not the name of a variable"),
        ("bc", "lab", ["bc.lr=: :"], "is not valid YAML"),
        ("bc", "lab", ["model_management.keep_last=3"], "Did you mean 'model_management.keep_last_n'?"),
        ("bc", "lab", ["model_management.keep_last_n.x=3"], "unknown key 'model_management.keep_last_n.x'."),
        ("bc", "lab", ["model_management.keep_last_n=0"], "keep_last_n under model_management is 0"),
        ("bc", "lab", ["model_management.upload_conditions=0.6"], "expected a mapping, as in {min_success_rate: 0.6}"),
        ("bc", "lab", ["model_management.upload_conditions.rate=0.6"], "expected min_METRIC or max_METRIC"),
        ("eval", "lab", ["model_management.keep_last_n=3"], "unknown key 'model_management.keep_last_n'."),
    ],
)
def test_bad_input_is_answered_with_what_would_be_right(
    stage: str, cluster: str, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError) as error:
        resolve(stage, cluster, settings)
    assert message in str(error.value)
    assert error.value.exit_code == 2


def test_an_unknown_key_in_a_profile_is_refused(profiles: Path) -> None:
    (profiles / "mine.yaml").write_text("executor: slurm\npartitoin: gpu\n")
    with pytest.raises(UserError, match=r"unknown key 'cluster\.partitoin'\. Did you mean 'cluster\.partition'"):
        resolve("bc", "mine", [])


def test_a_profile_that_is_no_mapping_is_named(profiles: Path) -> None:
    (profiles / "mine.yaml").write_text("- executor\n")
    with pytest.raises(UserError, match=r"mine\.yaml holds list, expected `key: value` lines"):
        resolve("bc", "mine", [])


@pytest.mark.parametrize(
    ("value", "expected"), [(90, 90), ("1:30:00", 90), ("0:00:30", 1), ("2-00:00:00", 2880), ("14-00:00:00", 20160)]
)
def test_times(value: int | str, expected: int) -> None:
    assert minutes(value) == expected


def test_values_take_the_type_of_the_default() -> None:
    assert typed("a.lr", 1, 1e-3) == 1.0
    assert isinstance(typed("a.lr", 1, 1e-3), float)
    assert typed("a.ids", "lift", ["x"]) == ["lift"]
    assert typed("a.any", [1], None) == [1]
    with pytest.raises(UserError, match="expected true or false"):
        typed("a.flag", 1, False)


def test_settings_reach_tables_and_text() -> None:
    config = resolve(
        "bc",
        "lab",
        [
            "bc.policy_settings.dim_model=32",
            "bc.repo_ids=123",
            "cluster.environment.A=x=y",
            "resources.time=0:02:00",
            "cluster.environment.B=1",
        ],
    )
    assert config.arguments["policy_settings"]["dim_model"] == 32
    assert config.arguments["policy_settings"]["use_vae"] is False
    assert config.arguments["repo_ids"] == "123"
    assert config.cluster.environment == {"A": "x=y", "B": "1"}
    assert config.resources.time == 2


def test_what_is_uploaded_stands_in_the_saved_configuration(tmp_path: Path) -> None:
    """GIVEN rules of the stage and of the command line THEN the program reads them from the file that is saved."""
    settings = ["model_management.upload_conditions.min_success_rate=0.6", "model_management.keep_last_n=3"]
    settings += ["model_management.upload_conditions.mean_length={max: 120}"]
    config = resolve("bc", "lab", settings)
    (tmp_path / "config.yaml").write_text(config.dump("a-run"))
    rules = read_rules(tmp_path / "config.yaml")
    assert (rules.keep_last_n, rules.upload_periodic_every) == (3, 5000)
    assert rules.upload_conditions == (
        Condition(metric="success_rate", min=0.6),
        Condition(metric="mean_length", max=120),
    )
    assert read_rules(yaml_core.parse(resolve("bc", "lab", []).dump("b"), "b")) == ModelManagement()
    assert "model_management" not in resolve("eval", "lab", []).dump("c")


def test_the_saved_configuration_gives_the_same_job_again(profiles: Path) -> None:
    config = resolve("bc", "lab", ["bc.batch_size=32", "resources.nodes=2", "cluster.environment.ODD=a 'b'"])
    saved = yaml_core.parse(config.dump("a-run"), "config.yaml")
    assert list(saved)[:6] == ["stage", "module", "name", "model", "objective", "dataset"]
    assert (saved["name"], saved["model"], saved["dataset"]) == ("a-run", "act", "lift")
    cluster = {key: value for key, value in saved["cluster"].items() if key != "name"}
    (profiles / "lab.yaml").write_text(yaml_core.dump(cluster))
    settings = [
        f"{section}.{key}={value if isinstance(value, str) else json.dumps(value)}"
        for section in ("bc", "resources", "model_management")
        for key, value in saved[section].items()
    ]
    assert resolve("bc", "lab", settings).dump("a-run") == config.dump("a-run")


def test_stage_files_are_named_after_their_stage() -> None:
    for name, path in stages().items():
        assert yaml_core.load(path)["stage"] == name
