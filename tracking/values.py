"""Values as JSON can hold them: metrics in a row, and whole configurations."""

from __future__ import annotations

import dataclasses
import math
from argparse import Namespace
from collections.abc import Mapping
from enum import Enum
from typing import Any

Scalar = float | int | bool | str | None

# JSON has no such numbers and strict readers refuse the bare words, so these three strings stand for them in a row.
NON_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def encode(value: Any) -> Any:
    """Makes a value safe for strict JSON: NaN and the infinities become `"NaN"`, `"Infinity"`, `"-Infinity"`."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def decode(value: Any) -> Any:
    """Undoes `encode`. A text metric that reads exactly like one of the three strings becomes that number."""
    return NON_FINITE.get(value, value) if isinstance(value, str) else value


def scalar(value: Any) -> Scalar:
    """Reads a metric's value: a number, bool, text, None, or anything of one element that has `.item()`.

    Reading a tensor waits for its device.

    Raises:
        TypeError: The value is none of these, or holds several elements.
    """
    if value is None or isinstance(value, float | int | bool | str):
        # A NumPy float64 is a float; its plain form keeps JSON and the journal's readers simple.
        return value if type(value) in (float, int, bool, str, type(None)) else value.item()  # type: ignore[union-attr]
    if hasattr(value, "item"):
        # Counted first: an error of `item()` itself is the device's, and must not read as a metric of the wrong shape.
        count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 1)
        if count != 1:
            raise TypeError(f"a {type(value).__name__} of {count} elements is not a metric")
        read = value.item()
        if isinstance(read, float | int | bool | str):
            return read
    raise TypeError(f"a {type(value).__name__} is not a metric")


def flatten(metrics: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens nested metrics: `{"eval": {"success": 1}}` becomes `{"eval/success": 1}`."""
    flat: dict[str, Any] = {}
    for key, value in metrics.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}/")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def plain(value: Any) -> Any:
    """Turns a configuration into what JSON and YAML can hold.

    Args:
        value: Dataclasses, pydantic models, `argparse.Namespace`, mappings, sequences, paths, enums, NumPy and torch
            scalars, in any nesting.

    Returns:
        The same as dicts with string keys, lists, text, numbers, bools and None. NaN and the infinities become text,
        and anything unknown its `str()`.
    """
    if value is None or type(value) in (str, int, bool, float):
        return encode(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=str) if isinstance(value, set | frozenset) else value
        return [plain(item) for item in items]
    if isinstance(value, Enum):
        return plain(value.value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if hasattr(value, "model_dump"):
        return plain(value.model_dump(mode="json"))
    if isinstance(value, Namespace):
        return plain(vars(value))
    try:
        return encode(scalar(value))
    except TypeError:
        return str(value)
