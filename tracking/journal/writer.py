"""Writing one segment of a journal."""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tracking.exclusive import create_exclusive
from tracking.journal.lines import State, dump, segment_path
from tracking.journal.reader import Journal
from tracking.labels import NO_LABELS, Labels
from tracking.values import encode

# What is kept in memory while the disk is full; about 250,000 rows of ten metrics.
_MAX_PENDING_BYTES = 64 * 2**20


class JournalWriter:
    """Appends to one segment; each line reaches the kernel in one write, so that a SIGKILL leaves whole lines.

    A full disk or an exceeded quota never reaches the caller: what could not be written is kept and goes out before
    the next line, in one warning's time.

    Attributes:
        path: The file.
        segment: Its number.
        next_row: The number that the next row gets.
    """

    def __init__(self, path: Path, segment: int, next_row: int) -> None:
        self.path = path
        self.segment = segment
        self.next_row = next_row
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._pending = b""
        self._dropped_rows = 0
        self._lock = threading.Lock()

    @classmethod
    def begin(
        cls,
        run_dir: Path,
        run_id: str,
        journal: Journal,
        *,
        job: dict[str, Any] | None = None,
        resumed_step: int | None = None,
        labels: Labels = NO_LABELS,
    ) -> JournalWriter:
        """Begins the next segment of a run.

        Args:
            run_dir: The run folder.
            run_id: The W&B run that the segment belongs to.
            journal: What stands in the folder now.
            job: The Slurm job.
            resumed_step: The training step that this segment continues from.
            labels: W&B tags, group, job type and notes.

        Returns:
            A writer whose file exists and holds its first line.

        Raises:
            OSError: The folder cannot be written.
        """
        segment, first_row = journal.next_segment, journal.next_row
        while True:
            header = dump(
                "segment",
                segment=segment,
                first_row=first_row,
                run_id=run_id,
                time=time.time(),
                host=socket.gethostname(),
                job=job,
                resumed_step=resumed_step,
                **asdict(labels),
            )
            path = segment_path(run_dir, segment)
            if create_exclusive(path, header):
                return cls(path, segment, first_row)
            # Another process began this one meanwhile; the later one wins, as everywhere.
            segment += 1

    def row(self, step: int, data: Mapping[str, Any]) -> None:
        """Appends a row.

        Args:
            step: The training step.
            data: Metric names and values.
        """
        encoded = {key: encode(value) for key, value in data.items()}
        with self._lock:
            if len(self._pending) > _MAX_PENDING_BYTES:
                self._dropped_rows += 1
                return
            self._write(dump("row", n=self.next_row, step=step, time=time.time(), data=encoded))
            self.next_row += 1

    def config(self, config: Mapping[str, Any]) -> None:
        """Appends a configuration, which is merged over the earlier ones."""
        with self._lock:
            self._write(dump("config", config=config))

    def metadata(self, metadata: Mapping[str, Any]) -> None:
        """Appends what is known of this process."""
        with self._lock:
            self._write(dump("metadata", metadata=metadata))

    def end(self, state: State, exit_code: int) -> None:
        """Appends how the segment ended."""
        with self._lock:
            self._write(dump("end", state=state, exit_code=exit_code, time=time.time()))

    def flush(self) -> None:
        """Makes every line durable; says on stderr where the disk refuses."""
        with self._lock:
            self._write(b"")
            try:
                os.fsync(self._descriptor)
            except OSError as error:
                print(f"[ExperimentTracker] {self.path} could not be synced: {error.strerror}", file=sys.stderr)

    def close(self) -> bool:
        """Makes every line durable and closes the file; says on stderr what could not be written.

        Returns:
            Whether every line is in the file.
        """
        self.flush()
        os.close(self._descriptor)
        if self._pending or self._dropped_rows:
            print(
                f"[ExperimentTracker] {self.path}: {len(self._pending)} bytes could not be written and "
                f"{self._dropped_rows} rows were dropped before that. Free space there before the run is resumed.",
                file=sys.stderr,
            )
        return not (self._pending or self._dropped_rows)

    def replaced_by(self) -> Path | None:
        """The file of a later segment, when another process has taken the run over."""
        later = segment_path(self.path.parent, self.segment + 1)
        return later if later.exists() else None

    def _write(self, line: bytes) -> None:
        had_pending = bool(self._pending)
        rest = self._pending + line if had_pending else line
        while rest:
            try:
                rest = rest[os.write(self._descriptor, rest) :]
            except OSError as error:
                if not had_pending:
                    print(
                        f"[ExperimentTracker] {self.path} cannot be written: {error.strerror}. Training goes on; rows "
                        "are kept in memory and written when there is room.",
                        file=sys.stderr,
                    )
                break
        self._pending = rest
