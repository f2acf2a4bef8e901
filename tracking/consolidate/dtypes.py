"""Element types, and how bytes of one become bytes of another without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tracking.errors import unknown

if TYPE_CHECKING:
    import numpy as np
    import torch

# Bytes an element, by safetensors' names.
SIZES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U64": 8,
    "U32": 4,
    "U16": 2,
    "U8": 1,
    "BOOL": 1,
}
FLOATS = ("F64", "F32", "F16", "BF16")

# Storage classes and dtypes as torch pickles them.
STORAGES = {
    "DoubleStorage": "F64",
    "FloatStorage": "F32",
    "HalfStorage": "F16",
    "BFloat16Storage": "BF16",
    "LongStorage": "I64",
    "IntStorage": "I32",
    "ShortStorage": "I16",
    "CharStorage": "I8",
    "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}
TORCH = {
    "float64": "F64",
    "float32": "F32",
    "float16": "F16",
    "bfloat16": "BF16",
    "int64": "I64",
    "int32": "I32",
    "int16": "I16",
    "int8": "I8",
    "uint64": "U64",
    "uint32": "U32",
    "uint16": "U16",
    "uint8": "U8",
    "bool": "BOOL",
}

_OUTPUT = {"fp32": "F32", "float32": "F32", "bf16": "BF16", "bfloat16": "BF16", "fp16": "F16", "float16": "F16"}

Convert = Callable[[memoryview], "bytes | memoryview"]


def output_dtype(name: str) -> str:
    """The element type that the user asked for.

    Raises:
        UserError: It is not one that weights can be written in.
    """
    if name not in _OUTPUT:
        raise unknown("dtype", name, _OUTPUT)
    return _OUTPUT[name]


def torch_dtype(name: str) -> torch.dtype:
    """Torch's element type of safetensors' name."""
    import torch

    found: torch.dtype = getattr(torch, next(theirs for theirs, ours in TORCH.items() if ours == name))
    return found


def converter(source: str, target: str) -> Convert:
    """A function that turns bytes of one element type into bytes of another.

    Rounding is to nearest, ties to even, as torch rounds; where the types are equal the bytes are passed on.
    """
    if source == target:
        return lambda view: view

    def convert(view: memoryview) -> bytes:
        return _narrowed(_floats(view, source), target).tobytes()

    return convert


def numpy() -> Any:
    """NumPy, with one thread: a BLAS that reserves memory for every core would not fit into a memory limit."""
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    import numpy as np

    return np


def _floats(view: memoryview, source: str) -> np.ndarray[Any, Any]:
    np = numpy()
    if source == "BF16":
        return (np.frombuffer(view, "<u2").astype("<u4") << 16).view("<f4")  # type: ignore[no-any-return]
    return np.frombuffer(view, {"F16": "<f2", "F32": "<f4", "F64": "<f8"}[source])  # type: ignore[no-any-return]


def _narrowed(values: np.ndarray[Any, Any], target: str) -> np.ndarray[Any, Any]:
    np = numpy()
    with np.errstate(over="ignore"):
        if target != "BF16":
            return values.astype("<f4" if target == "F32" else "<f2")
        bits = values.astype("<f4").view("<u4")
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    # The carry would turn a NaN into an infinity.
    return np.where(np.isnan(values), 0x7FC0, rounded).astype("<u2")  # type: ignore[no-any-return]
