"""A journal's file from its end: the same events as from its beginning, whatever the chunks and the last line."""

from __future__ import annotations

import random
from itertools import islice
from pathlib import Path

import pytest

from tracking.journal import tail
from tracking.journal.lines import Row, dump
from tracking.journal.tail import backwards


@pytest.mark.parametrize("chunk", [1, 7, 50, 300, 2**14])
def test_the_same_rows_backwards(chunk: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN files of short and long lines, torn ends and none THEN every whole line comes, the last one first."""
    monkeypatch.setattr(tail, "_CHUNK_BYTES", chunk)
    draw, path = random.Random(chunk), tmp_path / "journal-000.jsonl"
    for _ in range(150):
        count = draw.randint(0, 12)
        texts = ("x" * draw.choice([0, 1, 30, 400]) for _ in range(count))
        lines = [dump("row", n=n, step=n, time=1.0, data={"a": text}) for n, text in enumerate(texts)]
        path.write_bytes(b"".join(lines) + draw.choice([b"", b'{"kind":', b'{"kind":"ro' * 30]))
        assert [event.n for event in backwards(path) if isinstance(event, Row)] == list(reversed(range(count)))


def test_no_more_is_read_than_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a beginning that nobody can read WHEN the last rows are asked for THEN it is not met."""
    path = tmp_path / "journal-000.jsonl"
    rows = [dump("row", n=n, step=n, time=1.0, data={"a": n}) for n in range(1000)]
    path.write_bytes(b"\n" * 2**20 + b"".join(rows))
    assert [event.n for event in islice(backwards(path), 3) if isinstance(event, Row)] == [999, 998, 997]
    monkeypatch.setattr(tail, "_CHUNK_BYTES", 100)
    few = [event for event in backwards(path, limit_bytes=500) if isinstance(event, Row)]
    assert 3 < len(few) < 30
