"""Reading a journal: all of it at once, or what was added since the last look."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
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

    A file is opened anew for each look, so that a network file system hands out what the writer has synced.

    Attributes:
        segment: The number of the file that is read now.
        problems: What `Journal.problems` holds, so far.
    """

    def __init__(self, run_dir: Path) -> None:
        self.segment = 0
        self.problems: list[str] = []
        self._run_dir = run_dir
        self._offset = 0
        self._line = 0
        self._torn = 0
        self._next_row = 0
        self._replaced = 0

    def poll(self) -> list[Event]:
        """Returns the events that were added since the last call, over as many segments as there are.

        Returns:
            Nothing while there is no file yet.

        Raises:
            OSError: A file is there and cannot be read.
            UserError: A file is there that no journal's writer made.
        """
        events: list[Event] = []
        while True:
            # Asked before the file is read: what the next segment's writer has seen of it is then in what is read.
            following = self._following()
            for event in self._read():
                if isinstance(event, Row) and not self._accept(event, following):
                    continue
                events.append(event)
            if following is None:
                return events
            self._leave()

    def _following(self) -> Segment | None:
        try:
            with segment_path(self._run_dir, self.segment + 1).open("rb") as file:
                header = parse(file.readline())
        except FileNotFoundError:
            return None
        except ValueError:
            header = None
        if not isinstance(header, Segment):
            raise UserError(
                f"{segment_path(self._run_dir, self.segment + 1)} does not begin with a segment line: it is no part "
                "of a journal, or its beginning was lost.\n  next: move it out of the run folder"
            )
        return header

    def _accept(self, row: Row, following: Segment | None) -> bool:
        if following is not None and row.n >= following.first_row:
            self._replaced += 1
            return False
        if row.n < self._next_row:
            self.problems.append(f"{self._name()} line {self._line}: row {row.n} is there already")
            return False
        self._next_row = row.n + 1
        return True

    def _read(self) -> Iterator[Event]:
        try:
            with segment_path(self._run_dir, self.segment).open("rb") as file:
                file.seek(self._offset)
                content = file.read()
        except FileNotFoundError:
            return
        whole = content.rfind(b"\n") + 1
        self._offset += whole
        self._torn = len(content) - whole
        for line in content[:whole].split(b"\n")[:-1]:
            self._line += 1
            try:
                event = parse(line)
            except ValueError:
                self.problems.append(f"{self._name()} line {self._line}: not a whole line ({len(line)} bytes), ignored")
                continue
            if event is not None:
                yield event

    def torn(self) -> str | None:
        """A sentence about the last line of the present file, if it has no end (yet)."""
        if not self._torn:
            return None
        return f"{self._name()} line {self._line + 1}: not a whole line ({self._torn} bytes), ignored"

    def _leave(self) -> None:
        if torn := self.torn():
            self.problems.append(torn)
        if self._replaced:
            self.problems.append(f"{self._name()}: {self._replaced} rows were replaced by segment {self.segment + 1}")
        self.segment += 1
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
