"""Reads ranges of shards, a few megabytes at a time."""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from math import prod
from pathlib import Path
from types import TracebackType

from tracking.consolidate.dtypes import SIZES, converter, numpy
from tracking.consolidate.unpickle import Stored
from tracking.errors import UserError

CHUNK = 4 * 2**20
# ZeRO 3 reads each parameter from every rank's file; a process may have some 1000 files open.
_OPEN_FILES = 256


class Reader:
    """Open shards and one buffer; close it by `with`."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, int] = OrderedDict()
        self._buffer = memoryview(bytearray(CHUNK))

    def __enter__(self) -> Reader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def chunks(self, tensor: Stored) -> Iterator[memoryview]:
        """A tensor's bytes in the order of its elements; a chunk is overwritten by the next one.

        Raises:
            UserError: The file ends early or cannot be read; the message names it.
        """
        if not tensor.contiguous:
            yield from _strided_chunks(tensor)
            return
        position, end = tensor.offset, tensor.offset + tensor.numel * SIZES[tensor.dtype]
        while position < end:
            view = self._buffer[: min(CHUNK, end - position)]
            self._fill(tensor.path, view, position)
            yield view
            position += len(view)

    def converted(self, tensors: Iterable[Stored], dtype: str) -> Iterator[bytes | memoryview]:
        """The bytes of tensors that lie one behind the other, as another element type."""
        for tensor in tensors:
            convert = converter(tensor.dtype, dtype)
            for chunk in self.chunks(tensor):
                yield convert(chunk)

    def _fill(self, path: Path, view: memoryview, position: int) -> None:
        done = 0
        try:
            file = self._file(path)
            while done < len(view):
                count = os.preadv(file, [view[done:]], position + done)
                if count == 0:
                    raise UserError(f"{path} ends in the middle of a tensor\n  next: take another checkpoint")
                done += count
        except OSError as error:
            raise UserError(f"{path} cannot be read: {error.strerror}\n  next: take another checkpoint") from error

    def _file(self, path: Path) -> int:
        if path not in self._files:
            if len(self._files) >= _OPEN_FILES:
                os.close(self._files.popitem(last=False)[1])
            self._files[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._files.move_to_end(path)
        return self._files[path]


def _strided_chunks(tensor: Stored) -> Iterator[memoryview]:
    """Elements that do not lie in order, as of a transposed view."""
    np = numpy()
    size = SIZES[tensor.dtype]
    span = 1 + sum((length - 1) * stride for length, stride in zip(tensor.shape, tensor.stride, strict=True))
    elements = np.memmap(tensor.path, dtype=f"<u{size}", mode="r", offset=tensor.offset, shape=(span,))
    strides = tuple(stride * size for stride in tensor.stride)
    view = np.lib.stride_tricks.as_strided(elements, tensor.shape, strides, writeable=False)
    step = CHUNK // size
    for first in range(0, prod(tensor.shape), step):
        yield memoryview(view.flat[first : first + step].tobytes())
