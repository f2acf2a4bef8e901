"""YAML as people write it: `1e-3` is a number, `4:00:00` and `on` are text, and a key stands once."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from tracking.errors import UserError

# YAML 1.2's core schema. PyYAML's 1.1 reads 1e-3 as text and 4:00:00 as the number 14400.
_RESOLVERS = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?[0-9]+", list("-+0123456789")),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+0123456789."),
    ),
}


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [str(key.value) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.MarkedYAMLError(problem=f"key {min(twice)!r} stands twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something else than text."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


for _kind, (_pattern, _first) in _RESOLVERS.items():
    for _class in (_Loader, _Dumper):
        _class.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first)


# PyYAML reads 010 as octal.
_Loader.add_constructor("tag:yaml.org,2002:int", lambda _, node: int(node.value))


def parse(text: str, source: str) -> Any:
    """Reads YAML text.

    Args:
        text: One document.
        source: What to call it in an error: a file or a `--set`.

    Raises:
        UserError: It is not YAML, or a key stands twice.
    """
    try:
        # The loader derives from SafeLoader: it constructs plain values only.
        return yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None


def load(path: Path) -> dict[str, Any]:
    """Reads a file that holds a mapping.

    Raises:
        UserError: It cannot be read, is not YAML, or is not a mapping.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {error}") from None
    value = parse(text, str(path))
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {type(value).__name__}, expected `key: value` lines")
    return value


def dump(value: dict[str, Any]) -> str:
    """Writes a mapping as YAML in the order of its keys."""
    return yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def inline(value: Any) -> str:
    """Writes a value as it stands behind a key on one line: `null`, `text`, `[a, b]`, `{a: 1}`."""
    text = yaml.dump(value, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=10**9, default_flow_style=True)
    return text.removesuffix("\n").removesuffix("\n...")


def load_dumped(path: Path) -> dict[str, Any]:
    """Reads what `dump` wrote, by the parser in C where there is one: `dump` quotes what its YAML 1.1 would misread.

    Returns:
        An empty mapping where the file is gone, or is not whole.
    """
    try:
        value = yaml.load(path.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return {}
    return value if isinstance(value, dict) else {}
