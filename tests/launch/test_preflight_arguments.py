"""The arguments of a stage: the schema accepts what the program accepts, and sizes are the model's."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from launch.config import ROOT, resolve, stages
from launch.preflight.arguments import annotation, argument_findings, faults, known
from launch.preflight.disk import act_parameters
from launch.preflight.finding import Finding
from launch.spec import make_spec

# Values for every argument of every program, as they would stand on its command line.
VALUES = [
    "",
    "0",
    "1",
    "-1",
    "2",
    "3",
    "7",
    "0.5",
    "1.0",
    "1e-3",
    "1e3",
    "nan",
    "true",
    "no",
    "abc",
    "a/b",
    "act",
    "cuda",
]
VALUES += ["auto", "Lift", "{}", " 1", "99999999999999999999"]

ASK_THE_PROGRAMS = """
import importlib, json, sys
from pathlib import Path
from gilbreth_phase0.arguments import parse
from gilbreth_phase0.schemas import text_of
from tracking.errors import UserError

modules, values = json.load(sys.stdin)
verdicts = {}
for module, given in modules.items():
    model = importlib.import_module(module).Arguments
    for name in model.model_fields:
        for value in values:
            try:
                parse(model, {"run_dir": "runs/x", **given, name: value})
                verdicts[f"{module} {name} {value}"] = True
            except UserError:
                verdicts[f"{module} {name} {value}"] = False

from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACT

def count(shapes, **settings):
    kinds = {"observation.state": FeatureType.STATE, "observation.environment_state": FeatureType.ENV}
    features = {key: PolicyFeature(kinds.get(key, FeatureType.VISUAL), tuple(shape))
                for key, shape in shapes.items() if key != "action"}
    actions = {"action": PolicyFeature(FeatureType.ACTION, tuple(shapes["action"]))}
    config = ACTConfig(device="cpu", input_features=features, pretrained_backbone_weights=None,
                       output_features=actions, **settings)
    return sum(parameter.numel() for parameter in ACT(config).parameters())

STATE, ENV, ACTION, IMAGE = {"observation.state": [43]}, {"observation.environment_state": [10]}, {"action": [7]}, {
    "observation.images.front": [3, 84, 84]}
SMALL = {"dim_model": 64, "n_heads": 4, "dim_feedforward": 256, "n_encoder_layers": 1, "n_decoder_layers": 1}
cases = [
    [{**STATE, **ENV, **ACTION}, {**SMALL, "use_vae": False, "chunk_size": 10, "n_action_steps": 5}],
    [{**ENV, **ACTION}, {**SMALL, "chunk_size": 10, "n_action_steps": 5, "pre_norm": True}],
    [{**STATE, **IMAGE, **ACTION}, {**SMALL, "use_vae": False}],
    [{**STATE, **ENV, **ACTION}, {}],
]
print(json.dumps({"verdicts": verdicts, "text": text_of(Path("launch/stages")),
                  "counts": [[shapes, settings, count(shapes, **settings)] for shapes, settings in cases]}))
"""


@pytest.fixture(scope="module")
def programs() -> dict[str, Any]:
    """What the programs themselves say; one process, because they import much."""
    modules = {resolve(stage, "local", []).stage.module: {} for stage in stages()}
    modules["gilbreth_phase0.train_policy"] = modules["gilbreth_phase0.train_dagger"] = {"repo_ids": "lift"}
    modules["gilbreth_phase0.evaluate"] = {"policy": "act-lift"}
    done = subprocess.run(
        [sys.executable, "-c", ASK_THE_PROGRAMS],
        cwd=ROOT,
        input=json.dumps([modules, VALUES]),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def test_the_schema_is_that_of_the_programs(programs: dict[str, Any]) -> None:
    text = (ROOT / "launch" / "stages" / "arguments.json").read_text()
    assert text == programs["text"], "run: make schemas"


def test_the_schema_accepts_what_the_programs_accept(programs: dict[str, Any]) -> None:
    """GIVEN every argument with values of all kinds WHEN both judge THEN they agree, and both say each often."""
    verdicts = programs["verdicts"]
    assert 100 < sum(verdicts.values()) < len(verdicts) - 100
    for case, accepted in verdicts.items():
        module, name, value = case.split(" ", 2)
        assert (not list(faults(module, {name: value}))) == accepted, case


def test_an_argument_that_must_be_given() -> None:
    assert list(faults("gilbreth_phase0.train_policy", {"repo_ids": None})) == [("repo_ids", "expected a value")]
    assert list(faults("gilbreth_phase0.train_policy", {"repo_ids": "lift"})) == []


def test_every_part_of_the_schema_is_understood() -> None:
    for program in known()["programs"].values():
        for schema in program["properties"].values():
            annotation(schema)


def test_the_parameters_of_act_are_counted_as_they_are(programs: dict[str, Any]) -> None:
    for shapes, settings, count in programs["counts"]:
        values = {**known()["policies"]["act"], **settings}
        assert act_parameters(values, {key: tuple(shape) for key, shape in shapes.items()}) == count, settings


def said(root: Path, *settings: str) -> list[Finding]:
    config = resolve("bc", "local", list(settings))
    return list(argument_findings(config, make_spec(config, datetime(2025, 1, 2), root)))


@pytest.mark.parametrize(
    ("setting", "what", "fix"),
    [
        ("bc.best_rule=pared", "bc.best_rule='pared': Input should be 'paired' or 'naive'", "--set bc.best_rule=VALUE"),
        (
            "model_management.best_model_metric=sucess_rate",
            "unknown model_management.best_model_metric 'sucess_rate'. Did you mean 'success_rate'?",
            "name another; valid: reward_per_step, success_rate",
        ),
        (
            "model_management.upload_conditions.min_reward=1",
            "unknown metric in model_management.upload_conditions 'reward'.",
            "name another; valid: ",
        ),
    ],
)
def test_what_is_best_is_told_by_what_is_measured(tmp_path: Path, setting: str, what: str, fix: str) -> None:
    (finding,) = said(tmp_path, setting)
    assert (finding.rule, finding.level) == ("arguments", "error")
    assert finding.what.startswith(what) and finding.fix.startswith(fix)
    good = ["bc.best_rule=naive", "model_management.best_model_metric=eval/reward_per_step"]
    good += ["model_management.upload_conditions.min_success_rate=0.6"]
    assert said(tmp_path, *good) == []


def test_settings_of_the_policy_that_lerobot_does_not_have(tmp_path: Path) -> None:
    assert said(tmp_path, "bc.policy_settings.dim_model=128", "bc.policy_settings.dropout=0") == []
    (finding,) = said(tmp_path, "bc.policy_settings.dim_modl=128")
    assert "Did you mean 'bc.policy_settings.dim_model'?" in finding.what
    (finding,) = said(tmp_path, "bc.policy_settings.use_vae=maybe")
    assert finding.what == "bc.policy_settings.use_vae='maybe': expected true or false, as the stage's default True"
    (finding,) = said(tmp_path, "bc.eval_freq=100", "bc.eval_episodes=0")
    assert finding.what == "bc.eval_freq=100: there is nothing to evaluate with bc.eval_episodes=0"
    (finding,) = said(tmp_path, "bc.n_action_steps=11")
    assert finding.what == "bc.n_action_steps=11: a chunk has 10 actions (bc.action_chunk_size)"


def test_the_chunks_of_diffusion(tmp_path: Path) -> None:
    diffusion = ["bc.policy=diffusion", "bc.policy_settings={down_dims: [32, 64]}"]
    assert said(tmp_path, *diffusion, "bc.n_action_steps=15") == []
    (finding,) = said(tmp_path, *diffusion, "bc.n_action_steps=16")
    assert finding.what.endswith("a chunk has 15 actions (bc.action_chunk_size), behind 1 of the past (bc.n_obs_steps)")
    (finding,) = said(tmp_path, *diffusion, "bc.action_chunk_size=10")
    assert finding.what == "bc.action_chunk_size=10: a chunk is halved 2 times (down_dims)"
    assert finding.fix == "--set bc.action_chunk_size=12"
