"""Files that only one writer can create, and files that are replaced whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tracking.exclusive import create_exclusive
from tracking.files import write_atomic

THREADS = 8


def test_of_many_threads_one_creates_the_file(tmp_path: Path) -> None:
    barrier = threading.Barrier(THREADS)

    def compete(number: int, path: Path) -> bool:
        barrier.wait(10)
        return create_exclusive(path, str(number).encode())

    with ThreadPoolExecutor(THREADS) as pool:
        for turn in range(50):
            path = tmp_path / f"{turn}.json"
            won = list(pool.map(lambda number, path=path: compete(number, path), range(THREADS)))
            assert won.count(True) == 1
            assert path.read_text() == str(won.index(True))
    assert len(list(tmp_path.iterdir())) == 50


def test_threads_replace_a_file_whole(tmp_path: Path) -> None:
    """Each writes its own text many times; with one temporary name for all, some rename finds nothing to rename."""
    path = tmp_path / "state.json"
    texts = [str(number) * 10_000 for number in range(THREADS)]

    def write(text: str) -> None:
        for _ in range(30):
            write_atomic(path, text, durable=False)
            assert path.read_text() in texts

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(write, texts))
    assert [entry.name for entry in tmp_path.iterdir()] == ["state.json"]


@pytest.mark.parametrize("is_ours", [True, False])
def test_nfs_may_say_of_our_own_link_that_it_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_ours: bool
) -> None:
    """GIVEN a server whose first answer was lost WHEN the request is repeated THEN the number of links decides."""
    path, link = tmp_path / "0.json", Path.hardlink_to

    def repeated(self: Path, target: Path) -> None:
        if is_ours:
            link(self, target)
        else:
            self.write_text("theirs")
        link(self, target)

    monkeypatch.setattr(Path, "hardlink_to", repeated)
    assert create_exclusive(path, b"ours") is is_ours
    assert path.read_text() == ("ours" if is_ours else "theirs")
    assert [entry.name for entry in tmp_path.iterdir()] == ["0.json"]
