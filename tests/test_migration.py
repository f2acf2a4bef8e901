"""docs/migration.md: what stands on the right is there, with the arguments that stand there."""

from __future__ import annotations

import importlib
import inspect
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from launch.config import resolve
from tracking.store.reference import Reference, old_form, parse

ROOT = Path(__file__).resolve().parents[1]


def rows(section: str) -> list[tuple[str, str]]:
    """What a section's table has on the left and on the right."""
    text = (ROOT / "docs" / "migration.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    found = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return [(left, right.strip("`")) for left, right in found[1:]]


def named(dotted: str) -> Any:
    """A module, or something in one."""
    module, attributes = dotted, []
    while True:
        try:
            found = importlib.import_module(module)
            break
        except ModuleNotFoundError:
            module, _, attribute = module.rpartition(".")
            attributes.insert(0, attribute)
    for attribute in attributes:
        found = getattr(found, attribute)
    return found


@pytest.mark.parametrize(("today", "here"), rows("Modules and programs"))
def test_modules_and_programs(today: str, here: str) -> None:
    if not here.startswith("python -m "):
        assert inspect.ismodule(named(here))
        return
    import typer

    module, *arguments = shlex.split(here)[2:]
    # Parses the flags and runs nothing; what a program requires beside them is not the table's to say.
    command = typer.main.get_command(named(f"{module}.app"))
    for parameter in command.params:
        parameter.required = False
    given = command.make_context(module, [*arguments]).params
    if module == "launch.submit":
        (setting,) = given["settings"]
        key, _, value = setting.partition("=")
        assert resolve(given["stage"], "local", [setting]).arguments[key.partition(".")[2]] == value
    else:
        flag, value = arguments
        assert given[flag.strip("-").replace("-", "_")] == value


@pytest.mark.parametrize(("today", "here"), rows("Functions"))
def test_functions(today: str, here: str) -> None:
    name, _, arguments = here.rstrip(")").partition("(")
    expected = [argument for argument in arguments.split(", ") if argument]
    parameters = list(inspect.signature(named(name)).parameters.values())
    assert [parameter.name for parameter in parameters[: len(expected)]] == expected
    assert all(parameter.default is not inspect.Parameter.empty for parameter in parameters[len(expected) :])
    assert re.findall(r"`(\w+)`", today) in ([name.rpartition(".")[2]], [])


@pytest.mark.parametrize(("today", "here"), rows("Artifacts"))
def test_artifacts(today: str, here: str) -> None:
    wanted = parse(today.strip("`"))
    assert isinstance(wanted, Reference)
    old = old_form(wanted)
    assert old is not None and str(old.reference) == here


def test_every_table_is_read() -> None:
    assert [len(rows(section)) for section in ("Modules and programs", "Functions", "Artifacts")] == [8, 14, 4]
