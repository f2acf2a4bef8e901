"""Reading a journal's file from its end: what a run did last, however long it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tracking.journal.lines import Event, parse

_CHUNK_BYTES = 2**14


def backwards(path: Path, limit_bytes: int | None = None) -> Iterator[Event]:
    """Yields the events of one file, the last one first; reads no more of it than is asked for.

    Lines that are not whole, and kinds that a newer version wrote, are passed over.

    Args:
        path: The file of a segment (`tracking.journal.lines.segment_path`).
        limit_bytes: About how much is read at most; None is all, where nobody stops before.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        end = size = file.seek(0, 2)
        chunk, begun, has_end = _CHUNK_BYTES, b"", False
        while end > 0 and (limit_bytes is None or size - end < limit_bytes):
            begin = max(0, end - chunk)
            file.seek(begin)
            content = file.read(end - begin) + begun
            # A line may be longer than the chunk; then more is read at once.
            end, chunk, begun = begin, 2 * chunk, b""
            if not has_end:
                content, newline, _ = content.rpartition(b"\n")
                if not newline:
                    continue
                has_end = True
            lines = content.split(b"\n")
            if begin:
                begun = lines.pop(0)
            for line in reversed(lines):
                try:
                    event = parse(line)
                except ValueError:
                    continue
                if event is not None:
                    yield event
