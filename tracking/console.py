"""The console of a training process, kept in the run folder: `RUN/output.log`."""

from __future__ import annotations

import atexit
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from tracking.redact import is_secret_name, redact_text

LOG_NAME = "output.log"

_MAX_BYTES = 64 * 2**20
# Longer ones are no lines; they are written in pieces.
_MAX_LINE = 64 * 1024


class Console:
    """Copies what the process writes to `sys.stdout` and `sys.stderr` into a file, line by line, until it is stopped.

    Only the streams' `write` is replaced, so that a stream stays the object that others hold, with its encoding, its
    descriptor and its answer to `isatty`. Of a line that is drawn again and again, as progress bars are, the last
    state is kept. Secrets are replaced as `tracking.redact` has it. Nothing here raises into the program: when the file
    cannot be written or has grown to 64 MiB, that is said once and the copying ends. What a forked process or a library
    below Python writes is not copied.
    """

    def __init__(self, path: Path, heading: str) -> None:
        """Begins to copy.

        Args:
            path: The file, to which is appended.
            heading: The first line, which says whose lines follow.
        """
        self._path = path
        self._pid = os.getpid()
        # A signal handler may print while a line is being written.
        self._lock = threading.RLock()
        self._secrets = _Secrets()
        self._taps: list[_Tap] = []
        self._descriptor = -1
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            self._size = os.fstat(self._descriptor).st_size
            torn = self._size > 0 and os.pread(self._descriptor, 1, self._size - 1) != b"\n"
        except OSError as error:
            self._give_up(error)
            return
        self._write(("\n" if torn else "") + heading + "\n")
        for stream in {id(stream): stream for stream in (sys.stdout, sys.stderr)}.values():
            with suppress(AttributeError, TypeError):  # there is none, or it is no object of Python's
                self._taps.append(_Tap(stream, self._take))
        atexit.register(self.stop)

    def stop(self, error: BaseException | None = None) -> None:
        """Gives the streams back and closes the file; a second call does nothing.

        Args:
            error: What ends the program; its traceback is written, because Python prints it only after this.
        """
        atexit.unregister(self.stop)
        if os.getpid() != self._pid:
            return
        with self._lock:
            for tap in self._taps:
                tap.remove()
                if tap.line:
                    self._write(_last_state(tap.line) + "\n")
            self._taps.clear()
            if error is not None:
                self._write("".join(traceback.format_exception(error)))
            self._close()

    def _take(self, tap: _Tap, text: str) -> None:
        """Copies what a stream was given: whole lines now, the rest when its end comes."""
        if self._descriptor < 0 or os.getpid() != self._pid:
            return
        with self._lock:
            whole, newline, rest = (tap.line + text).rpartition("\n")
            if "\r" in rest[:-1]:
                rest = rest[rest.rindex("\r", 0, -1) :]
            tap.line = rest if len(rest) <= _MAX_LINE else ""
            if newline:
                self._write("\n".join(map(_last_state, whole.split("\n"))) + "\n")
            if not tap.line and rest:
                self._write(rest)

    def _write(self, text: str) -> None:
        if self._descriptor < 0:
            return
        data = redact_text(text, self._secrets.now()).encode(errors="backslashreplace")
        if self._size + len(data) > _MAX_BYTES:
            data = f"[the log has {_MAX_BYTES >> 20} MiB; later lines are not kept]\n".encode()
            self._size = _MAX_BYTES
        try:
            self._size += len(data)
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            self._give_up(error)
        if self._size > _MAX_BYTES:
            self._close()

    def _give_up(self, error: OSError) -> None:
        self._close()
        said = f"{self._path} cannot be written: {error.strerror}. The console is no longer copied there."
        with suppress(OSError, ValueError, AttributeError):  # there is no stderr any more
            print(f"[ExperimentTracker] {said}", file=sys.stderr, flush=True)

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def heading(segment: int, job: Mapping[str, Any] | None) -> str:
    """The first line of a segment: which one, of which job, where and when."""
    where = f"job {job['job_id']} " if job else ""
    restart = f"(restart {job['restart_count']}) " if job and job.get("restart_count") else ""
    moment = time.strftime("%Y-%m-%d %H:%M:%S %Z")
    return f"--- segment {segment}, {where}{restart}on {socket.gethostname()}, {moment} ---"


class _Tap:
    """A stream whose `write` also gives the text to somebody else.

    Attributes:
        line: What was taken of a line without its end.
    """

    def __init__(self, stream: TextIO, take: Callable[[_Tap, str], None]) -> None:
        self.line = ""
        self._stream = stream
        self._take: Callable[[_Tap, str], None] | None = take
        # Another tap's, where there is one; else the name is looked up in the class again when this one is removed.
        self._before = vars(stream).get("write")
        self._original = stream.write
        self._own = self._tapped
        stream.write = self._own  # type: ignore[method-assign]

    def remove(self) -> None:
        """Gives the stream back, or hands through what comes where somebody has replaced `write` since."""
        self._take = None
        if vars(self._stream).get("write") is not self._own:
            return
        if self._before is None:
            del self._stream.write
        else:
            self._stream.write = self._before  # type: ignore[method-assign]

    def _tapped(self, text: str) -> int:
        take = self._take
        if take is not None:
            with suppress(Exception):  # whatever is wrong here, the program's own line comes first
                take(self, text)
        return self._original(text)


class _Secrets:
    """The environment's secret variables. Their names are looked up again when there are more or fewer variables."""

    def __init__(self) -> None:
        self._count = -1
        self._names: list[str] = []

    def now(self) -> dict[str, str]:
        if len(os.environ) != self._count:
            self._count = len(os.environ)
            self._names = [name for name in os.environ if is_secret_name(name)]
        return {name: os.environ.get(name, "") for name in self._names}


def _last_state(line: str) -> str:
    """What is to be seen of a line after its carriage returns; the next state does not cover a longer one's end."""
    return line.rstrip("\r").rpartition("\r")[2]
