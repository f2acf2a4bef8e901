"""Reads the pickle of a shard without running anything of it.

Every global that it may name is replaced by something inert: tensors become places in the file, all else that may stand
in a checkpoint becomes an empty object. A global that is not in the list is refused by name.
"""

from __future__ import annotations

import io
import pickle
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections import OrderedDict
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from tracking.consolidate.archive import Archive
from tracking.consolidate.dtypes import SIZES, STORAGES, TORCH
from tracking.errors import UserError


@dataclass(frozen=True, slots=True)
class Stored:
    """A tensor as it lies in a file.

    Attributes:
        path: The file.
        dtype: Element type, by safetensors' name.
        shape: Its shape.
        stride: Elements between neighbours, by dimension.
        offset: Where its first element begins in the file.
    """

    path: Path
    dtype: str
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @property
    def numel(self) -> int:
        """Elements."""
        return prod(self.shape)

    @property
    def contiguous(self) -> bool:
        """Whether the elements lie one behind the other in the order of the dimensions."""
        expected = 1
        for size, stride in zip(reversed(self.shape), reversed(self.stride), strict=True):
            if size != 1 and stride != expected:
                return self.numel == 0
            expected *= size
        return True

    def part(self, first: int, count: int) -> Stored:
        """Some elements of a tensor that is contiguous, as a flat one."""
        return Stored(self.path, self.dtype, (count,), (1,), self.offset + first * SIZES[self.dtype])


@dataclass(frozen=True, slots=True)
class _Storage:
    archive: Archive
    dtype: str
    begin: int
    size: int


@dataclass(frozen=True, slots=True)
class _Type:
    """A storage class or a dtype."""

    dtype: str


class Opaque:
    """Stands for an object without weights."""

    def __init__(self, *_args: Any, **_named: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...

    def __setitem__(self, key: Any, value: Any) -> None: ...

    def append(self, item: Any) -> None:
        """Forgets what would have been put into it."""

    def extend(self, items: Any) -> None:
        """Forgets what would have been put into it."""


def _tensor(storage: Any, first: Any, shape: Any, stride: Any, *_rest: Any, dtype: str | None = None) -> Stored:
    if not isinstance(storage, _Storage):
        raise TypeError("a tensor without a storage")
    element = dtype or storage.dtype
    if not all(isinstance(number, int) and number >= 0 for number in (first, *shape, *stride)):
        raise TypeError("a tensor with a shape that is none")
    span = 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True)) if prod(shape) else 0
    if (first + span) * SIZES[element] > storage.size:
        raise storage.archive.broken("a tensor in it is larger than its storage")
    offset = storage.begin + first * SIZES[element]
    return Stored(storage.archive.path, element, tuple(shape), tuple(stride), offset)


def _tensor_v3(*arguments: Any) -> Stored:
    storage, first, shape, stride, _grad, _hooks, dtype, *_rest = arguments
    return _tensor(storage, first, shape, stride, dtype=dtype.dtype)


def _same(tensor: Any, *_rest: Any) -> Any:
    return tensor


def _of_type(rebuild: Any, _type: Any, arguments: Any, *_rest: Any) -> Any:
    return rebuild(*arguments)


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_v3,
    "torch._utils._rebuild_parameter": _same,
    "torch._utils._rebuild_parameter_with_state": _same,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "deepspeed.runtime.zero.config.ZeroStageEnum": int,
    "torch.storage.UntypedStorage": _Type("U8"),
    **{f"torch.{name}": _Type(dtype) for name, dtype in (STORAGES | TORCH).items()},
}
# What optimizers, schedulers, configurations and the users' own `client_state` bring along.
_WITHOUT_WEIGHTS = {
    "_codecs": "encode",
    "argparse": "Namespace",
    "builtins": "set frozenset complex bytearray slice range list dict int float str bool tuple",
    "collections": "defaultdict Counter deque",
    "datetime": "datetime date timedelta timezone",
    "deepspeed.runtime.fp16.loss_scaler": "LossScaler DynamicLossScaler LossScaleConfig LossScaleProfile",
    "deepspeed.runtime.zero.offload_config": "OffloadDeviceEnum",
    "deepspeed.utils.tensor_fragment": "fragment_address tensor_fragment",
    "functools": "partial",
    "numpy": "ndarray dtype",
    "numpy._core.multiarray": "_reconstruct scalar",
    "numpy._core.numeric": "_frombuffer",
    "numpy.core.multiarray": "_reconstruct scalar",
    "numpy.core.numeric": "_frombuffer",
    "numpy.random._mt19937": "MT19937",
    "numpy.random._pcg64": "PCG64",
    "numpy.random._pickle": "__generator_ctor __bit_generator_ctor __randomstate_ctor",
    "pathlib": "Path PosixPath PurePosixPath",
    "torch": "Tensor device Generator",
    "torch.nn.parameter": "Parameter Buffer",
    "torch.serialization": "_get_layout",
    "types": "SimpleNamespace",
}
_ALLOWED = _KNOWN | {f"{module}.{name}": Opaque for module, names in _WITHOUT_WEIGHTS.items() for name in names.split()}


class _Unpickler(pickle.Unpickler):
    def __init__(self, archive: Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle()))
        self._archive = archive
        self._storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        # Protocol 2, which torch writes, has Python 2's names.
        module, name = NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        wanted = f"{module}.{name}"
        if wanted not in _ALLOWED:
            raise UserError(
                f"{self._archive.path}: its pickle names {wanted!r}, which no weights need. Nothing of it was run.\n"
                "  next: take another checkpoint. Only if you know who wrote this one and what that is:"
                " --engine deepspeed, which runs it"
            )
        return _ALLOWED[wanted]

    def persistent_load(self, pid: Any) -> _Storage:
        kind, storage_type, key, _location, numel = pid
        if kind != "storage" or not isinstance(storage_type, _Type):
            raise TypeError(f"a persistent id of kind {kind!r}")
        if key not in self._storages:
            size = numel * SIZES[storage_type.dtype]
            begin = self._archive.storage(key, size)
            self._storages[key] = _Storage(self._archive, storage_type.dtype, begin, size)
        return self._storages[key]


def read_shard(path: Path) -> dict[str, Any]:
    """Reads what a shard holds, tensors as places in the file.

    Raises:
        UserError: The file is missing, not whole, names an unknown global or is no shard; the message names it.
    """
    archive = Archive(path)
    try:
        content = _Unpickler(archive).load()
    except _MALFORMED as error:
        raise archive.broken(f"its pickle cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(content, dict):
        raise archive.broken(f"it holds a {type(content).__name__}, no dictionary of states")
    return content


# What a pickle of random bytes raises.
_MALFORMED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    ArithmeticError,
    MemoryError,
    RecursionError,
)
