"""What the stage programs accept, as JSON beside the stages: a login node checks arguments without importing them.

    python -m gilbreth_phase0.schemas launch/stages

writes `launch/stages/arguments.json`; a test holds it equal to the programs.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from gilbreth_phase0.gating import metrics
from gilbreth_phase0.policy_kinds import POLICIES, settings_of
from gilbreth_phase0.seeds import FRESH, REPORT, ROLLOUTS, SELECTION
from tracking.files import write_atomic

FILE = "arguments.json"
_LEFT_OUT = {"title", "description", "format", "default"}


def schemas(stages: Path) -> dict[str, Any]:
    """Collects what the programs of all stages accept.

    Args:
        stages: The folder of the stages' YAML.

    Returns:
        `programs`: JSON schema of the arguments by module; `policies`: LeRobot's configuration fields with their
        defaults, by the policy's name; `chunks`: how each calls and divides its chunk of actions; `metrics`: what
        evaluations measure, and which of it may decide what is best; `seeds`: the first and the last one for each
        purpose.
    """
    modules = sorted({yaml.safe_load(path.read_text())["module"] for path in stages.glob("*.yaml")})
    programs = {}
    for module in modules:
        schema = importlib.import_module(module).Arguments.model_json_schema()
        programs[module] = {
            "required": schema.get("required", []),
            "properties": {name: _short(field) for name, field in schema["properties"].items()},
        }
    policies = {policy: _fields(policy) for policy in POLICIES}
    chunks = {
        policy: {
            "field": kind.chunk,
            "starts_in_the_past": kind.starts_in_the_past,
            "halvings": kind.halvings,
            "defaults": settings_of(policy, {}),
        }
        for policy, kind in POLICIES.items()
    }
    seeds = {"selection": SELECTION, "report": REPORT, "rollouts": ROLLOUTS, "fresh": FRESH}
    return {
        "programs": programs,
        "policies": policies,
        "chunks": chunks,
        "metrics": metrics(),
        "seeds": {name: [span[0], span[-1]] for name, span in seeds.items()},
    }


def text_of(stages: Path) -> str:
    """The contents of the file."""
    return json.dumps(schemas(stages), indent=1) + "\n"


def _short(schema: dict[str, Any]) -> dict[str, Any]:
    kept = {key: value for key, value in schema.items() if key not in _LEFT_OUT}
    return kept | ({"anyOf": [_short(part) for part in schema["anyOf"]]} if "anyOf" in schema else {})


def _fields(policy: str) -> dict[str, Any]:
    """Plain fields of LeRobot's configuration; tables and the like are there as null, which takes any value."""
    from lerobot.policies.factory import make_policy_config

    config = make_policy_config(policy, device="cpu", push_to_hub=False)
    values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {name: value if isinstance(value, bool | int | float | str) else None for name, value in values.items()}


def main(stages: Annotated[Path, typer.Argument(help="Folder of the stages' YAML.")]) -> None:
    """Writes what the stage programs accept to arguments.json beside the stages."""
    write_atomic(stages / FILE, text_of(stages))


if __name__ == "__main__":
    typer.run(main)
