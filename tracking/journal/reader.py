"""Reading a journal: all of it at once, or what was added since the last look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tracking.errors import UserError
from tracking.journal.lines import Config, End, Event, Metadata, Row, Segment, parse, segment_path


@dataclass(frozen=True)
class Journal:
    """The merged view of all segments of a run.

    Attributes:
        segments: The first lines of the files, in order.
        rows: The rows of the whole run in order of their number, each once.
        config: The configurations, later ones merged over earlier ones.
        metadata: One a segment that wrote it.
        end: How the last segment ended, or None while it runs or when it was killed.
        problems: Lines that were not whole and rows that a later segment replaced, one sentence each.
    """

    segments: list[Segment] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    config: dict[str, Any] = field(default_factory=dict)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    end: End | None = None
    problems: list[str] = field(default_factory=list)

    @property
    def next_row(self) -> int:
        """The number that the next row gets."""
        after_rows = self.rows[-1].n + 1 if self.rows else 0
        return max(after_rows, self.segments[-1].first_row if self.segments else 0)

    @property
    def next_segment(self) -> int:
        """The number that the next segment gets."""
        return self.segments[-1].segment + 1 if self.segments else 0


class Follower:
    """Reads a journal that is still being written: each `poll` returns what was added and reads nothing twice.

    A file is opened anew for each look, so that a network file system hands out what the writer has synced. What
    another host wrote may still arrive there out of order: a later file before an earlier one, the pages of a file with
    holes between them. A patient look stops at such a gap.

    Attributes:
        segment: The number of the file that is read now.
        problems: What `Journal.problems` holds, so far.
        gap: A sentence about what the last look, a patient one, stopped at; None where nothing was missing.
        more: Whether the last look stopped at its bound.
        bytes_read: How much was read, over all files.
    """

    def __init__(self, run_dir: Path) -> None:
        self.segment = 0
        self.problems: list[str] = []
        self.gap: str | None = None
        self.more = False
        self.bytes_read = 0
        self._run_dir = run_dir
        self._offset = 0
        self._line = 0
        self._torn = 0
        self._next_row = 0
        self._replaced = 0

    def poll(self, limit_bytes: int | None = None, *, patient: bool = False) -> list[Event]:
        """Returns the events that were added since the last call, over as many segments as there are.

        Args:
            limit_bytes: About how much is read at most, in whole lines; the next call goes on from there. `more` says
                whether the bound was met.
            patient: Stop before a missing file, before a line that is not whole, and before a segment whose first
                number is beyond the rows that are there. Else these are passed over for good, with a problem each.

        Returns:
            Nothing while there is no file yet.

        Raises:
            OSError: A file is there and cannot be read.
            UserError: A file is there that no journal's writer made.
        """
        events: list[Event] = []
        self.gap, self.more = None, False
        left = limit_bytes
        while True:
            # Asked before the file is read: what the next segment's writer has seen of it is then in what is read.
            following = self._following()
            content = self._content(left)
            for event in self._events(content or b"", patient):
                if isinstance(event, Row) and not self._accept(event, following):
                    continue
                events.append(event)
            if self.gap is not None:
                return events
            if left is not None and content is not None:
                # What ends without a newline was read to the end of the file.
                self.more = len(content) >= left and content.endswith(b"\n")
                left = max(1, left - len(content))
            if self.more or following is None:
                return events
            missing = self._missing(following, has_file=content is not None)
            if patient and missing:
                self.gap = missing[0]
                return events
            self._leave(following, missing)

    def torn(self) -> str | None:
        """A sentence about the last line of the present file, if it has no end (yet)."""
        if not self._torn:
            return None
        return f"{self._name()} line {self._line + 1}: not a whole line ({self._torn} bytes), ignored"

    def _following(self) -> Segment | None:
        """The first line of the next file that is there; the one in between may not have arrived."""
        for number in (self.segment + 1, *self._later_numbers()):
            path = segment_path(self._run_dir, number)
            try:
                with path.open("rb") as file:
                    header = parse(file.readline())
            except FileNotFoundError:
                continue
            except ValueError:
                header = None
            if not isinstance(header, Segment):
                raise UserError(
                    f"{path} does not begin with a segment line: it is no part of a journal, or its beginning was "
                    "lost.\n  next: move it out of the run folder"
                )
            return header
        return None

    def _later_numbers(self) -> Iterator[int]:
        # A generator, so that the folder is listed only where the next file is not found by its name.
        try:
            names = [path.name for path in self._run_dir.iterdir()]
        except FileNotFoundError:
            return
        texts = (name[len("journal-") : -len(".jsonl")] for name in names if fnmatch(name, "journal-*.jsonl"))
        yield from sorted(int(text) for text in texts if text.isdigit() and int(text) > self.segment + 1)

    def _accept(self, row: Row, following: Segment | None) -> bool:
        if following is not None and row.n >= following.first_row:
            self._replaced += 1
            return False
        if row.n < self._next_row:
            self.problems.append(f"{self._name()} line {self._line}: row {row.n} is there already")
            return False
        self._next_row = row.n + 1
        return True

    def _content(self, left: int | None) -> bytes | None:
        """What the present file holds behind the last look, up to the end of a line; None where there is no file."""
        try:
            with segment_path(self._run_dir, self.segment).open("rb") as file:
                file.seek(self._offset)
                content = file.read(-1 if left is None else left)
                # The bound fell within a line.
                return content + file.readline() if left is not None and len(content) == left else content
        except FileNotFoundError:
            return None

    def _events(self, content: bytes, patient: bool) -> Iterator[Event]:
        whole = content.rfind(b"\n") + 1
        self._torn = len(content) - whole
        for line in content[:whole].split(b"\n")[:-1]:
            try:
                event = parse(line)
            except ValueError:
                damage = f"{self._name()} line {self._line + 1}: not a whole line ({len(line)} bytes)"
                if patient:
                    self.gap = damage
                    return
                self.problems.append(f"{damage}, ignored")
                event = None
            self._offset += len(line) + 1
            self.bytes_read += len(line) + 1
            self._line += 1
            if event is not None:
                yield event

    def _missing(self, following: Segment, *, has_file: bool) -> list[str]:
        """What should be there before the following segment and is not, one sentence each."""
        later = segment_path(self._run_dir, following.segment).name
        first = self.segment + 1 if has_file else self.segment
        absent = [segment_path(self._run_dir, number).name for number in range(first, following.segment)]
        missing = [f"{name} is missing, {later} is there" for name in absent]
        if not absent and following.first_row > self._next_row:
            rows = f"rows {self._next_row} to {following.first_row - 1}"
            missing.append(f"{self._name()}: {rows} are missing before {later}")
        return missing

    def _leave(self, following: Segment, missing: list[str]) -> None:
        if torn := self.torn():
            self.problems.append(torn)
        self.problems += missing
        if self._replaced:
            self.problems.append(f"{self._name()}: {self._replaced} rows were replaced by segment {following.segment}")
        self.segment = following.segment
        self._next_row = max(self._next_row, following.first_row)
        self._offset = self._line = self._replaced = self._torn = 0

    def _name(self) -> str:
        return segment_path(self._run_dir, self.segment).name


def read_journal(run_dir: Path) -> Journal:
    """Reads all segments of a run and merges them.

    Args:
        run_dir: The run folder; it may hold no journal, which gives an empty one.

    Returns:
        The merged view.

    Raises:
        OSError: A file cannot be read.
        UserError: A file is there that no journal's writer made.
    """
    follower = Follower(run_dir)
    journal = Journal()
    end = None
    for event in follower.poll():
        match event:
            case Row():
                journal.rows.append(event)
            case Segment():
                journal.segments.append(event)
                end = None
            case Config():
                journal.config.update(event.config)
            case Metadata():
                journal.metadata.append(event.metadata)
            case End():
                end = event
    torn = follower.torn()
    return Journal(
        segments=journal.segments,
        rows=journal.rows,
        config=journal.config,
        metadata=journal.metadata,
        end=end,
        problems=[*follower.problems, *([torn] if torn else [])],
    )
