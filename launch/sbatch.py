"""One call of `sbatch`, whose answer goes to a file: it is there also when the process that called has been killed.

```
LOG/submission.sh   the script
LOG/sbatch.out      what sbatch printed; it stands from the moment before sbatch is called
LOG/sbatch.err      what it complained about
```
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType

from launch.jobs.reasons import explain_reason
from tracking.errors import UserError
from tracking.files import fsync_dir

SCRIPT = "submission.sh"
_OUTPUT, _ERRORS = "sbatch.out", "sbatch.err"

LONGEST_S = 90.0
"""How long sbatch may take: it tries again by itself while Slurm does not answer."""

# sbatch failed, and Slurm may have the job all the same: the answer was lost, not the question.
_LOST = re.compile(r"timed out|zero bytes|receive failure|unexpected message|connection (?:failure|reset|closed)", re.I)
_SILENT = re.compile(r"unable to contact slurm|connection refused|connect failure|error in the slurm controller", re.I)
# Of every limit Slurm says "job submit limit, user's size and/or time limits"; this word, on another line, tells which.
_LIMIT = re.compile(r"\b(?:QOS|Assoc)(?:Max|Grp|Min)[A-Za-z]+\b")
_PLAIN = (
    (
        r"(?:Max|Grp)(?:Submit)?Jobs?(?:PerUser|PerAccount)?Limit",
        "as many of your jobs are queued as QOS, account or partition allow",
        "wait until one ends, or cancel one: squeue --me",
    ),
    (r"invalid partition", "there is no such partition", "see the partitions: sinfo --summarize"),
    (
        r"invalid account or account/partition combination",
        "you may not use that account, or not with that partition",
        "see yours: sacctmgr show associations user=$USER format=account,partition,qos",
    ),
    (
        r"invalid qos",
        "you may not use that QOS",
        "see yours: sacctmgr show associations user=$USER format=account,partition,qos",
    ),
)


class UnansweredError(Exception):
    """Whether Slurm has the job is not known; the message says why."""


def call(command: Sequence[str], log_dir: Path) -> str:
    """Calls sbatch once.

    Args:
        command: `sbatch` with its arguments.
        log_dir: Where its answer is kept.

    Returns:
        The job's number.

    Raises:
        UserError: Slurm refused the job, or was not there to take it.
        UnansweredError: It hung, or answered something else.
    """
    with (log_dir / _OUTPUT).open("wb") as output, (log_dir / _ERRORS).open("wb") as errors:
        fsync_dir(log_dir)
        try:
            # A session of its own: a Ctrl-C of the terminal must not end it in the middle.
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=errors, start_new_session=True
            )
        except OSError as error:
            raise UserError(f"{command[0]} cannot be run: {error.strerror}") from None
        try:
            code = process.wait(LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise UnansweredError(f"sbatch did not end in {LONGEST_S:.0f} s") from None
    if (job_id := answer(log_dir)) is not None:
        return job_id
    if code == 0:
        said = _read(log_dir / _OUTPUT).strip()
        raise UnansweredError(f"sbatch gave no job number, but {said[:200]!r}")
    complaint = refusal(log_dir)
    if complaint is None:
        raise UnansweredError(f"sbatch ended with {code}: {_words(_read(log_dir / _ERRORS))}")
    raise UserError(complaint)


def was_called(log_dir: Path) -> bool:
    """Whether sbatch was called, or was about to be."""
    return (log_dir / _OUTPUT).exists()


def called_at(log_dir: Path) -> Path:
    """The file whose time is that of the call."""
    return log_dir / _ERRORS


def answer(log_dir: Path) -> str | None:
    """The number of the job that Slurm made of the call; None where it has not said."""
    match = re.search(r"^Submitted batch job (\d+)", _read(log_dir / _OUTPUT), re.MULTILINE)
    return match[1] if match else None


def refusal(log_dir: Path) -> str | None:
    """Why Slurm has no such job, in words, from what sbatch complained about; None where that is not certain."""
    complaint = _words(_read(log_dir / _ERRORS))
    if not complaint or _LOST.search(complaint):
        return None
    if _SILENT.search(complaint):
        return f"Slurm does not answer, and nothing was submitted: {complaint}\n  next: try again, or see scontrol ping"
    for form, reason, way in _PLAIN:
        if re.search(form, complaint, re.IGNORECASE):
            return f"sbatch refused the job: {reason} ({complaint})\n  next: {way}"
    if limit := _LIMIT.search(complaint):
        other = "ask for more" if "Min" in limit[0] else "ask for less"
        way = f"{other}: --set resources.…=, or another QOS: --set cluster.qos=NAME"
        return f"sbatch refused the job: {explain_reason(limit[0]).words} ({complaint})\n  next: {way}"
    return f"sbatch refused the job: {complaint}"


def is_running(log_dir: Path) -> bool:
    """Whether an sbatch for this script runs on this host, whoever called it."""
    script = os.fsencode(log_dir / SCRIPT)
    return any(b"sbatch" in command and script in command for command in commands().values())


def commands() -> dict[int, bytes]:
    """The command lines of this host's processes, by number; of other users' only where the kernel shows them."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):  # it has ended meanwhile
                found[int(folder.name)] = (folder / "cmdline").read_bytes()
    return found


@contextmanager
def interrupts_wait() -> Iterator[list[int]]:
    """Holds Ctrl-C back until a job is recorded; the second one is not held back.

    Yields:
        A list that holds the signal when one came.
    """
    came: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is not signal.default_int_handler:
        yield came
        return

    def remember(number: int, frame: FrameType | None) -> None:
        came.append(number)
        signal.signal(signal.SIGINT, before)
        print("\ninterrupted: waiting for Slurm's answer; again to leave at once", flush=True)

    signal.signal(signal.SIGINT, remember)
    try:
        yield came
    finally:
        signal.signal(signal.SIGINT, before)


def _words(text: str) -> str:
    return " ".join(re.sub(r"^sbatch: (?:error: )?", "", text, flags=re.MULTILINE).split())


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
