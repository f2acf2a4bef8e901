"""Following a journal that is being written, on a disk that shows the writes of other hosts late and out of order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tracking.journal import End, Event, Follower, JournalWriter, Row, Segment, read_journal


def begin(run_dir: Path) -> JournalWriter:
    return JournalWriter.begin(run_dir, "ab12cd34", read_journal(run_dir))


def test_a_follower_reads_each_event_once(tmp_path: Path) -> None:
    follower = Follower(tmp_path)
    assert follower.poll() == []
    writer = begin(tmp_path)
    writer.row(1, {"x": 1})
    assert [type(event) for event in follower.poll()] == [Segment, Row]
    assert follower.poll() == []

    with writer.path.open("ab") as file:
        file.write(b'{"kind":"row","n":1,"step":2,')
        file.flush()
        assert follower.poll() == []
        assert follower.torn() is not None
        file.write(b'"time":5.5,"data":{"x":2}}\n')
    assert follower.poll() == [Row(1, 2, 5.5, {"x": 2})]

    resumed = begin(tmp_path)
    resumed.row(3, {"x": 3})
    resumed.end("crashed", 1)
    events = follower.poll()
    assert [type(event) for event in events] == [Segment, Row, End]
    assert events[1].n == 2  # type: ignore[union-attr]
    assert follower.segment == 1


@pytest.mark.parametrize("limit_bytes", [1, 150, 1000])
def test_a_bounded_look_goes_on_where_the_last_one_stopped(tmp_path: Path, limit_bytes: int) -> None:
    """GIVEN three segments, a replaced row and a torn line THEN looks of any size give what one look gives."""
    for first in (0, 20, 40):
        writer = begin(tmp_path)
        for step in range(first, first + 20):
            writer.row(step, {"x": step})
        if first < 40:
            zombie = writer
            begin(tmp_path).close()
            zombie.row(99, {"x": "replaced"})
            with zombie.path.open("ab") as file:
                file.write(b'{"kind":"row","n":')
    everything = Follower(tmp_path)
    whole = everything.poll()
    assert not everything.more

    bounded = Follower(tmp_path)
    looks: list[list[Event]] = []
    while not looks or bounded.more:
        looks.append(bounded.poll(limit_bytes, patient=True))

    assert [event for look in looks for event in look] == whole
    assert bounded.problems == everything.problems
    longest = max(map(len, (tmp_path / "journal-000.jsonl").read_bytes().splitlines()))
    assert max(map(len, looks)) <= limit_bytes / 60 + 1
    assert len(looks) >= sum(path.stat().st_size for path in tmp_path.iterdir()) / (limit_bytes + longest + 1)


def test_a_patient_look_waits_for_a_file_that_has_not_arrived(tmp_path: Path) -> None:
    """GIVEN a network file system that shows a later file first THEN nothing is passed over, and every row comes."""
    for first in (0, 3, 6):
        writer = begin(tmp_path)
        for step in range(first, first + 3):
            writer.row(step, {"x": step})
    for number in (0, 1):
        (tmp_path / f"journal-00{number}.jsonl").rename(tmp_path / f"late-{number}")
    follower = Follower(tmp_path)

    assert follower.poll(patient=True) == []
    assert follower.gap == "journal-000.jsonl is missing, journal-002.jsonl is there"
    (tmp_path / "late-0").rename(tmp_path / "journal-000.jsonl")
    rows = [event for event in follower.poll(patient=True) if isinstance(event, Row)]
    assert follower.gap == "journal-001.jsonl is missing, journal-002.jsonl is there"
    (tmp_path / "late-1").rename(tmp_path / "journal-001.jsonl")
    rows += [event for event in follower.poll(patient=True) if isinstance(event, Row)]

    assert [row.n for row in rows] == list(range(9))
    assert follower.gap is None
    assert follower.problems == []


@pytest.mark.parametrize("arrived", [0.4, 0.99])
@pytest.mark.parametrize("hole", [True, False])
def test_a_patient_look_waits_for_rows_that_have_not_arrived(tmp_path: Path, hole: bool, arrived: float) -> None:
    """GIVEN a file whose middle or end the network file system does not have yet THEN its rows come first."""
    writer = begin(tmp_path)
    for step in range(9):
        writer.row(step, {"x": step})
    content = writer.path.read_bytes()
    begin(tmp_path).row(9, {"x": 9})
    cut = int(len(content) * arrived)
    writer.path.write_bytes(content[:cut] + b"\0" * 50 * hole + content[cut + 50 :] * hole)
    follower = Follower(tmp_path)

    rows = [event.n for event in follower.poll(patient=True) if isinstance(event, Row)]
    assert rows == list(range(len(rows)))
    assert len(rows) < 9
    assert follower.gap is not None
    writer.path.write_bytes(content)
    rows += [event.n for event in follower.poll(patient=True) if isinstance(event, Row)]

    assert rows == list(range(10))
    assert follower.gap is None
    assert follower.problems == []


def test_what_never_arrives_is_passed_over_once_with_its_reason(tmp_path: Path) -> None:
    for first in (0, 3, 6):
        writer = begin(tmp_path)
        for step in range(first, first + 3):
            writer.row(step, {"x": step})
    (tmp_path / "journal-000.jsonl").unlink()
    begin(tmp_path).close()
    follower = Follower(tmp_path)

    assert follower.poll(patient=True) == []
    assert [event.n for event in follower.poll() if isinstance(event, Row)] == list(range(3, 9))
    assert follower.poll(patient=True) == []
    assert follower.gap is None
    assert follower.problems == ["journal-000.jsonl is missing, journal-001.jsonl is there"]
    assert read_journal(tmp_path).problems == follower.problems


_MEMORY = """
import sys, tracemalloc
from pathlib import Path
from tracking.journal import Follower
tracemalloc.start()
follower, rows = Follower(Path(sys.argv[1])), 0
while rows == 0 or follower.more:
    rows += len(follower.poll(1 << 20))
print(rows, tracemalloc.get_traced_memory()[1])
"""


def test_a_bounded_look_holds_no_more_than_its_bound(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    values = {f"metric/number-{number}": number / 7 for number in range(50)}
    for step in range(6000):
        writer.row(step, values)
    assert writer.path.stat().st_size > 10e6

    done = subprocess.run([sys.executable, "-c", _MEMORY, str(tmp_path)], check=True, capture_output=True, text=True)

    rows, peak = map(int, done.stdout.split())
    assert rows == 6001
    assert peak < 12e6


def test_reading_again_costs_only_what_is_new(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    for step in range(2000):
        writer.row(step, {"x": step})
    follower = Follower(tmp_path)
    assert len(follower.poll()) == 2001
    before = int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0])
    writer.row(2000, {"x": 1})
    assert len(follower.poll()) == 1
    read = int(Path("/proc/self/io").read_text().split("rchar: ")[1].split()[0]) - before
    assert read < 2000
