"""Who may import whom: launch and gilbreth_phase0 import tracking, tracking imports neither."""

from __future__ import annotations

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {"launch", "gilbreth_phase0", "tracking"}
ALLOWED = {"launch": {"tracking"}, "gilbreth_phase0": {"tracking"}, "tracking": set()}
HEAVY = {"torch", "lerobot", "robosuite", "wandb", "deepspeed", "datasets", "transformers", "mujoco"}


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports(nodes: Iterator[ast.AST]) -> Iterator[str]:
    """Top-level packages that the nodes import."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module.partition(".")[0]


def at_start_up(tree: ast.Module) -> Iterator[ast.AST]:
    """Statements that run when a module is imported; what stands under TYPE_CHECKING does not."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            continue
        yield node
        waiting += ast.iter_child_nodes(node)


@pytest.mark.parametrize("package", sorted(PACKAGES))
def test_packages_import_only_what_they_may(package: str) -> None:
    for path in modules(package):
        found = set(imports(ast.walk(ast.parse(path.read_text())))) & PACKAGES
        assert found <= {package} | ALLOWED[package], path


def test_launch_starts_without_anything_heavy() -> None:
    for path in modules("launch"):
        heavy = HEAVY if path.name == "executor.py" else HEAVY | {"submitit", "numpy"}
        assert not set(imports(at_start_up(ast.parse(path.read_text())))) & heavy, path


@pytest.mark.parametrize(
    "module", ["tracking", "tracking.consolidate", "launch.submit", "launch.config", "launch.render"]
)
def test_what_a_login_node_imports_is_light(module: str) -> None:
    script = f"import sys, {module}; print(*sorted(set(sys.modules) & {HEAVY!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_job_templates_name_modules_that_there_are() -> None:
    named: set[str] = set()
    for path in (ROOT / "job_templates").iterdir():
        run = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("echo ")]
        named |= set(re.findall(r"-m ([a-z_0-9.]+)", "\n".join(run)))
    assert {"gilbreth_phase0.attempt", "submitit.core._submit"} <= named
    for module in named:
        assert importlib.util.find_spec(module), module
        assert module.partition(".")[0] in {"gilbreth_phase0", "submitit", "tracking"}


def test_this_test_sees_an_import_wherever_it_stands() -> None:
    tree = ast.parse(
        "if TYPE_CHECKING:\n    import wandb\ntry:\n    import torch.nn\nexcept E:\n    pass\n"
        "def f():\n    import numpy\n"
    )
    assert set(imports(at_start_up(tree))) == {"torch"}
    assert set(imports(ast.walk(tree))) == {"torch", "wandb", "numpy"}
