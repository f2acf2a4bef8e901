"""The journal: whole lines, rows numbered over segments, and readers that survive whatever a killed writer left."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tracking.errors import UserError
from tracking.journal import JournalWriter, Row, read_journal
from tracking.journal.known import KnownPairs

from support import wait_until


def begin(run_dir: Path) -> JournalWriter:
    return JournalWriter.begin(run_dir, "ab12cd34", read_journal(run_dir))


def rows_of(run_dir: Path) -> list[tuple[int, int]]:
    return [(row.n, row.step) for row in read_journal(run_dir).rows]


def test_rows_come_back_as_they_were_written(weird_tmp_path: Path) -> None:
    writer = begin(weird_tmp_path)
    writer.row(10, {"loss/total": 0.1 + 0.2, "note": 'it\'s "q"\nü', "ok": True, "none": None, "count": 3})
    writer.end("finished", 0)
    writer.close()

    journal = read_journal(weird_tmp_path)

    assert journal.rows[0].data == {
        "loss/total": 0.1 + 0.2,
        "note": 'it\'s "q"\nü',
        "ok": True,
        "none": None,
        "count": 3,
    }
    assert journal.rows[0].step == 10
    assert journal.end is not None
    assert journal.end.state == "finished"
    assert journal.problems == []


def test_not_finite_values_are_kept_in_strict_json(tmp_path: Path) -> None:
    def refuse(constant: str) -> float:
        raise AssertionError(f"{constant} is not JSON")

    writer = begin(tmp_path)
    writer.row(1, {"a": math.nan, "b": math.inf, "c": -math.inf})
    writer.close()

    for line in (tmp_path / "journal-000.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    (row,) = read_journal(tmp_path).rows
    assert math.isnan(float(str(row.data["a"])))
    assert (row.data["b"], row.data["c"]) == (math.inf, -math.inf)


def test_a_segment_continues_the_row_numbers(tmp_path: Path) -> None:
    for first_step in (1, 4):
        writer = begin(tmp_path)
        for step in range(first_step, first_step + 3):
            writer.row(step, {"x": step})
        writer.close()

    journal = read_journal(tmp_path)

    assert [(row.n, row.step) for row in journal.rows] == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6)]
    assert [segment.first_row for segment in journal.segments] == [0, 3]
    assert journal.end is None


@pytest.mark.parametrize(
    "torn", [b"{", b'{"kind":"row","n":2,"st', b'{"kind":"row","n":2,"step":3,"time":1.0,"data":{}}']
)
def test_a_torn_last_line_is_ignored_reported_and_left_alone(tmp_path: Path, torn: bytes) -> None:
    """GIVEN a writer killed within a write WHEN the run is resumed THEN its whole rows stand, the file too."""
    writer = begin(tmp_path)
    writer.row(1, {"x": 1})
    writer.row(2, {"x": 2})
    writer.close()
    path = tmp_path / "journal-000.jsonl"
    path.write_bytes(path.read_bytes() + torn)
    before = path.read_bytes()

    resumed = begin(tmp_path)
    resumed.row(3, {"x": 3})
    resumed.close()

    assert rows_of(tmp_path) == [(0, 1), (1, 2), (2, 3)]
    assert path.read_bytes() == before
    (problem,) = read_journal(tmp_path).problems
    assert "journal-000.jsonl line 4" in problem
    assert f"{len(torn)} bytes" in problem


def test_damage_in_the_middle_costs_one_line(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    for step in (1, 2, 3):
        writer.row(step, {"x": step})
    writer.close()
    path = tmp_path / "journal-000.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1] + b"\0" * 40 + b"\n" + lines[3])

    assert rows_of(tmp_path) == [(0, 1), (2, 3)]
    assert len(read_journal(tmp_path).problems) == 1


def test_the_later_segment_wins_over_a_writer_that_comes_back(tmp_path: Path) -> None:
    """GIVEN a node that was cut off and comes back WHEN it appends THEN its successor's rows stand."""
    zombie = begin(tmp_path)
    zombie.row(1, {"x": 1})
    successor = begin(tmp_path)
    successor.row(2, {"x": 2})
    assert zombie.replaced_by() == successor.path
    assert successor.replaced_by() is None
    zombie.row(2, {"x": -2})
    zombie.end("finished", 0)

    journal = read_journal(tmp_path)

    assert [(row.n, row.data["x"]) for row in journal.rows] == [(0, 1), (1, 2)]
    assert journal.end is None
    assert journal.problems == ["journal-000.jsonl: 1 rows were replaced by segment 1"]


def test_two_processes_that_begin_at_once_get_two_segments(tmp_path: Path) -> None:
    seen_by_both = read_journal(tmp_path)
    first = JournalWriter.begin(tmp_path, "ab12cd34", seen_by_both)
    second = JournalWriter.begin(tmp_path, "ab12cd34", seen_by_both)
    first.row(1, {"x": "first"})
    second.row(1, {"x": "second"})

    assert [segment.segment for segment in read_journal(tmp_path).segments] == [0, 1]
    assert [row.data for row in read_journal(tmp_path).rows] == [{"x": "second"}]


def test_a_file_that_is_no_segment_is_refused(tmp_path: Path) -> None:
    begin(tmp_path).close()
    (tmp_path / "journal-001.jsonl").write_text('{"kind":"row"}\n')
    with pytest.raises(UserError, match="does not begin with a segment line"):
        read_journal(tmp_path)


def test_a_newer_kind_of_line_is_passed_over(tmp_path: Path) -> None:
    writer = begin(tmp_path)
    with writer.path.open("a") as file:
        file.write('{"kind":"from the future","x":1}\n')
    writer.row(1, {"x": 1})
    assert rows_of(tmp_path) == [(0, 1)]
    assert read_journal(tmp_path).problems == []


def test_known_pairs_leave_out_what_was_logged_before() -> None:
    known = KnownPairs([Row(0, 10, 0.0, {"a": 1, "b": 1}), Row(1, 20, 0.0, {"a": 2}), Row(2, 20, 0.0, {"c": 3})])

    assert known.last_step == 20
    assert known.fresh(10, {"a": 5, "b": 5}) == {}
    assert known.fresh(20, {"a": 5, "b": 6, "c": 7}) == {"b": 6}
    assert known.fresh(30, {"a": 1}) == {"a": 1}
    assert known.skipped == 4


_FILL = """
import resource, signal, sys
from pathlib import Path
from tracking.journal import JournalWriter, read_journal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run_dir = Path(sys.argv[1])
writer = JournalWriter.begin(run_dir, "ab12cd34", read_journal(run_dir))
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
for step in range(100):
    writer.row(step, {"x": step, "text": "y" * 50})
assert writer.path.stat().st_size == 4096
print(len(read_journal(run_dir).rows))
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if len(sys.argv) == 2:
    writer.row(100, {"x": 100})
    writer.close()
"""


def run_fill(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", _FILL, *arguments], check=False, capture_output=True, text=True, timeout=60
    )


def test_a_full_disk_loses_no_row_once_there_is_room(tmp_path: Path) -> None:
    """GIVEN a file that cannot grow for a while (the kernel refuses as with a quota) THEN one warning and every row."""
    done = run_fill(str(tmp_path))

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written") == 1
    assert rows_of(tmp_path) == [(n, n) for n in range(101)]
    assert read_journal(tmp_path).problems == []


def test_a_process_that_ends_on_a_full_disk_leaves_whole_rows(tmp_path: Path) -> None:
    done = run_fill(str(tmp_path), "stay full")

    whole = int(done.stdout)
    assert 20 < whole < 60
    assert rows_of(tmp_path) == [(n, n) for n in range(whole)]
    resumed = begin(tmp_path)
    resumed.row(whole, {"x": 0})
    assert rows_of(tmp_path) == [(n, n) for n in range(whole + 1)]


_ENDLESS = """
import sys
from pathlib import Path
from tracking.journal import JournalWriter, read_journal
run_dir = Path(sys.argv[1])
writer = JournalWriter.begin(run_dir, "ab12cd34", read_journal(run_dir))
step = writer.next_row
print("ready", flush=True)
while True:
    writer.row(step, {"x": step, "y": 0.1 * step})
    step += 1
"""


def test_a_killed_writer_leaves_whole_rows_each_once(tmp_path: Path) -> None:
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", _ENDLESS, str(tmp_path)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        newest = max(tmp_path.glob("journal-*"))
        before = newest.stat().st_size
        wait_until(lambda: newest.stat().st_size > before, 10, "a row", interval=0.001)  # noqa: B023
        os.kill(process.pid, signal.SIGKILL)
        process.wait()

    journal = read_journal(tmp_path)
    assert [row.n for row in journal.rows] == list(range(len(journal.rows)))
    assert all(row.data == {"x": row.n, "y": 0.1 * row.n} for row in journal.rows)
    assert journal.problems == []
    assert len(journal.segments) == 4
