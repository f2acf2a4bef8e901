"""Why a run failed, in one line: from Slurm's state, the exit code, and the end of each rank's log.

A dead rank makes the others fail too, and they often say so louder: of all that the logs hold, causes go before what
may be a consequence, and the earlier before the later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from launch.jobs.signatures import SIGNATURES, Signature
from tracking.slurm import JobState

_TAIL_BYTES, _SHORT_TAIL_BYTES = 2**18, 2**15
# So many ranks are read in full length; of more, each gets less.
_FULL_RANKS = 16
_LINE_LIMIT = 200
# submitit's first line of an attempt: what stands before it is an earlier attempt's.
_BEGIN = re.compile(r"^submitit INFO \([^)]*\) - Starting with JobEnvironment", re.MULTILINE)
_STAMP = re.compile(r"(\d{4}-\d\d-\d\d)[T ](\d\d:\d\d:\d\d)|\[[EWI](\d\d)(\d\d) (\d\d:\d\d:\d\d)")
_EXCEPTION = re.compile(
    r"^(?:\[rank\d+\]: ?)?((?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Interrupt|Exit|Warning)\b.*)"
)
_REFUSED = re.compile(r"^error: (.*)")


@dataclass(frozen=True)
class Cause:
    """Why a run failed.

    Attributes:
        kind: The short name of the kind of failure.
        what: The cause in plain words.
        line: The line of the log that says so; None where Slurm said it.
        log: The log that has it.
        rank: The rank whose log it is.
        fix: What to do about it.
    """

    kind: str
    what: str
    line: str | None = None
    log: Path | None = None
    rank: int | None = None
    fix: str = ""

    def __str__(self) -> str:
        return self.what if self.rank is None else f"{self.what} (rank {self.rank})"


@dataclass(frozen=True)
class _Hit:
    signature: Signature
    match: re.Match[str]
    line: str
    log: Path
    rank: int
    at: tuple[float, int]


_BY_STATE = {
    "NODE_FAIL": Cause("node lost", "a node failed", fix="requeue: it resumes where it was saved"),
    "BOOT_FAIL": Cause("node lost", "a node did not boot", fix="requeue"),
    "OUT_OF_MEMORY": Cause(
        "host memory", "the job ran out of memory (not the GPU's)", fix="more memory: --set resources.memory_gb=…"
    ),
    "PREEMPTED": Cause("preempted", "a job of higher priority took its nodes", fix="requeue: it resumes"),
    "TIMEOUT": Cause("time limit", "it met its time limit", fix="requeue: it resumes where it was saved"),
    "DEADLINE": Cause("time limit", "it met its deadline", fix="requeue"),
    "CANCELLED": Cause("cancelled", "it was cancelled", fix="requeue takes it up again"),
}
# Slurm's word for these is the cause, whatever a dying process wrote into its log.
_FINAL = ("CANCELLED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")


def find_cause(
    logs: Mapping[int, Path],
    job: JobState | None,
    facts: Mapping[str, str],
    *,
    refused: bool = False,
    in_full: bool = True,
) -> Cause | None:
    """Finds why a run failed.

    Args:
        logs: The log of each rank in its last job.
        job: What Slurm says of that job; None where it does not remember it, or did not run it.
        facts: What a fix may name: `stage`, `run`, `environment`, `nodes`.
        refused: Whether the last attempt ended with refused input.
        in_full: Whether more than the very end of each log is read.

    Returns:
        None where nothing says why.
    """
    if job is not None and job.state in _FINAL:
        return _BY_STATE[job.state]
    whole = _read(logs, _TAIL_BYTES if in_full else _SHORT_TAIL_BYTES)
    texts = {rank: (path, _last_attempt(text)) for rank, (path, text) in whole.items()}
    if refused and (found := _refusal(texts)) is not None:
        return found
    # An attempt may not even come to write why it ended; that of the one before it is then the same.
    return _judge(texts, job, facts) or _judge(whole, job, facts) or _from_exit(job, logs)


def _last_attempt(text: str) -> str:
    *_, last = _BEGIN.split(text)
    return str(last)


def _judge(texts: Mapping[int, tuple[Path, str]], job: JobState | None, facts: Mapping[str, str]) -> Cause | None:
    hits = [hit for rank, (path, text) in texts.items() for hit in _hits(rank, path, text)]
    best = min(hits, key=lambda hit: (hit.signature.rank, hit.at), default=None)
    if job is not None and job.state in _BY_STATE and (best is None or best.signature.rank > 0):
        return _BY_STATE[job.state]
    if best is not None and best.signature.rank == 0:
        return _from_hit(best, facts)
    # An exception that no signature knows is still nearer to the cause than what may have followed from it.
    return _exception(texts) or (_from_hit(best, facts) if best is not None else None)


def _read(logs: Mapping[int, Path], size: int = _TAIL_BYTES) -> dict[int, tuple[Path, str]]:
    size = size if len(logs) <= _FULL_RANKS else size * _FULL_RANKS // len(logs)
    texts = {}
    for rank, path in sorted(logs.items()):
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - size))
                text = file.read().decode(errors="replace").replace("\r", "\n")
        except OSError:
            continue
        texts[rank] = (path, text)
    return texts


def _hits(rank: int, path: Path, text: str) -> Iterator[_Hit]:
    """The first line of each kind, in one log."""
    seen: set[str] = set()
    written = path.stat().st_mtime
    moment = None
    for number, line in enumerate(text.splitlines()):
        moment = _moment(line, written) or moment
        for signature in SIGNATURES:
            match = signature.pattern.search(line) if signature.kind not in seen else None
            if match is not None:
                seen.add(signature.kind)
                # A log without times ends with what it says last.
                yield _Hit(signature, match, line.strip(), path, rank, (moment or written, number))
                break


def _moment(line: str, written: float) -> float | None:
    """The time that stands in a line: Python's logging, Slurm's, or torch's, which leaves out the year."""
    match = _STAMP.search(line[:80])
    if match is None:
        return None
    day, clock, month, date, torch_clock = match.groups()
    try:
        if day:
            return datetime.fromisoformat(f"{day}T{clock}").timestamp()
        year = datetime.fromtimestamp(written).year
        return datetime.fromisoformat(f"{year}-{month}-{date}T{torch_clock}").timestamp()
    except ValueError:
        return None


def _from_hit(hit: _Hit, facts: Mapping[str, str]) -> Cause:
    detail = next((group for group in hit.match.groups() if group), "")
    what, fix = hit.signature.what.format(_short(detail)), hit.signature.fix.format_map(facts)
    rank = hit.match.groupdict().get("rank")
    return Cause(hit.signature.kind, what, _short(hit.line), hit.log, int(rank) if rank else hit.rank, fix)


def _refusal(texts: Mapping[int, tuple[Path, str]]) -> Cause | None:
    for rank, (path, text) in texts.items():
        for line in text.splitlines():
            if match := _REFUSED.match(line.strip()):
                fix = "mend the input and submit again; a requeue cannot mend it"
                return Cause("refused", f"the input was refused: {_short(match[1])}", _short(line), path, rank, fix)
    return None


def _exception(texts: Mapping[int, tuple[Path, str]]) -> Cause | None:
    """The last line of the first traceback, of the rank whose log ended first."""
    for rank, (path, text) in sorted(texts.items(), key=lambda item: item[1][0].stat().st_mtime):
        _, begun, rest = text.partition("Traceback (most recent call last)")
        for line in rest.splitlines() if begun else ():
            if (match := _EXCEPTION.match(line)) and not any(one.pattern.search(line) for one in SIGNATURES):
                fix = "`explain` shows the lines around it; mend it, then requeue"
                return Cause("exception", f"Python stopped: {_short(match[1])}", _short(line.strip()), path, rank, fix)
    return None


def _from_exit(job: JobState | None, logs: Mapping[int, Path]) -> Cause | None:
    if job is None or job.state not in ("FAILED", "COMPLETED"):
        return None
    has_log = any(path.exists() for path in logs.values())
    if not has_log and job.signal == 53:  # Slurm's number for what it could not set up
        fix = "the folder of the log must be there and on the shared disk; submit again"
        return Cause("no log", "Slurm could not open the job's log", fix=fix)
    if job.state == "FAILED" and job.signal is not None:
        return Cause("signal", f"signal {job.signal} ended it", fix="`logs` shows how far it came")
    if job.state == "FAILED":
        return Cause("exit", f"it ended with exit code {job.exit_code}", fix="`logs` shows how far it came")
    return None


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LINE_LIMIT else f"{text[: _LINE_LIMIT - 1]}…"


def lines_around(cause: Cause, before: int = 6, after: int = 3) -> list[str]:
    """The lines of the log around the one that says why, for who wants to see more."""
    if cause.log is None or cause.line is None:
        return []
    lines = _read({0: cause.log}).get(0, (cause.log, ""))[1].splitlines()
    # The last one of that kind: the same may have ended earlier attempts.
    at = next((number for number in reversed(range(len(lines))) if _short(lines[number]) == cause.line), None)
    return [] if at is None else [line.rstrip() for line in lines[max(0, at - before) : at + after + 1]]
