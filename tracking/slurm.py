"""What Slurm knows of jobs, asked for many at once, in text with explicit fields (its JSON differs between versions).

squeue knows jobs that wait or run, and for some minutes those that have ended; sacct knows the others, where there is
accounting; scontrol knows what squeue knows, and answers where squeue does not. Standard library only: the sync daemon
must stay small, and `launch` quick.
"""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

# These change what squeue and sacct list and how, and would hide jobs.
_FILTERS = ("SQUEUE_", "SACCT_")
# The names of squeue, each with a width, because Slurm cuts what is wider; the lines are cut at these widths, because
# a reason may hold spaces and a field may be empty. What a user wrote is last: letters beyond ASCII shift what follows.
_WIDTHS = {
    "JobID": 20,
    "ArrayJobID": 20,
    "ArrayTaskID": 20,
    "State": 20,
    "Reason": 100,
    "exit_code": 12,
    "RestartCnt": 12,
    "Cluster": 64,
    "Partition": 64,
    "SubmitTime": 24,
    "StartTime": 24,
    "EndTime": 24,
    "TimeLimit": 24,
    "NodeList": 200,
    "Name": 132,
    "Comment": 300,
}
_SACCT = (
    *("JobIDRaw", "JobID", "State", "Reason", "ExitCode", "Cluster", "Partition"),
    *("Submit", "Start", "End", "Timelimit", "NodeList", "JobName"),
)
_SCONTROL = {
    "Reason": "reason",
    "ExitCode": "exit",
    "Restarts": "restarts",
    "Partition": "partition",
    "SubmitTime": "submit",
    "StartTime": "start",
    "EndTime": "end",
    "TimeLimit": "time_limit",
    "NodeList": "node_list",
    "JobName": "name",
}
_NOTHING = {"", "None", "N/A", "(null)", "Unknown", "UNLIMITED", "Partition_Limit", "INVALID", "NONE"}
# Up to so many jobs, one question each is less than all jobs of the cluster.
_FEW = 3
# What was answered while another answer was waited for is still read.
_GRACE_S = 0.1


@dataclass(frozen=True)
class JobState:
    """What Slurm says about a job; None where it does not tell.

    Attributes:
        job_id: As it was asked for: `12`, or `12_3` for an element of an array.
        state: Slurm's word, without what it adds to it: `PENDING`, `RUNNING`, `CANCELLED`.
        reason: Why it waits or ended, in Slurm's words.
        exit_code: The batch script's exit code.
        signal: The signal that ended the batch script; None where none did.
        restarts: How often it was requeued; accounting does not tell.
        cluster: The cluster that was asked.
        partition: Its partition, or those that it may start in.
        submit: When it was submitted, or requeued, in seconds since the epoch.
        start: When it started, or is expected to.
        end: When it ended, or will be ended.
        time_limit: Seconds that it may run.
        node_list: Its nodes, in Slurm's short form.
        name: The job's name.
        comment: The job's comment; accounting may not tell.
    """

    job_id: str
    state: str
    reason: str | None = None
    exit_code: int | None = None
    signal: int | None = None
    restarts: int | None = None
    cluster: str | None = None
    partition: str | None = None
    submit: float | None = None
    start: float | None = None
    end: float | None = None
    time_limit: float | None = None
    node_list: str | None = None
    name: str | None = None
    comment: str | None = None


@dataclass(frozen=True)
class Answer:
    """What a Slurm command said.

    Attributes:
        output: What it printed; empty for a job that it does not know, None where it did not answer.
        problem: What it said instead of an answer, or why there was none.
    """

    output: str | None
    problem: str = ""


@dataclass(frozen=True)
class Problem:
    """A command that did not answer, and what it said instead."""

    command: str
    words: str

    def __str__(self) -> str:
        return self.words


Ask = Callable[[Sequence[str], float], Answer]


class Question:
    """A question that is on its way to Slurm, while this process goes on; one whose answer nobody wants may be dropped.

    Args:
        command: The command with its arguments.
    """

    def __init__(self, command: Sequence[str]) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_FILTERS)}
        self._name, self._problem = command[0], ""
        self._process: subprocess.Popen[str] | None = None
        try:
            self._process = subprocess.Popen(
                command,
                env={**environment, "SLURM_TIME_FORMAT": "%s"},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                errors="replace",
            )
        except OSError as error:
            self._problem = f"{self._name}: {error.strerror}"

    def answer(self, deadline: float) -> Answer:
        """Waits for the answer.

        Args:
            deadline: When it counts as missing, on the monotonic clock.
        """
        if self._process is None:
            return Answer(None, self._problem)
        with self._process as process:
            try:
                output, errors = process.communicate(timeout=max(_GRACE_S, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                return Answer(None, f"{self._name} did not answer in time")
            finally:
                process.kill()  # nothing, where it has ended
        if process.returncode == 0:
            return Answer(output)
        # squeue says so where it was asked for one job alone.
        problem = " ".join(errors.split()) or f"{self._name} ended with {process.returncode}"
        return Answer("" if "Invalid job id" in errors else None, problem)


def ask(command: Sequence[str], deadline: float) -> Answer:
    """Puts one question to Slurm.

    Args:
        command: The command with its arguments.
        deadline: When the answer counts as missing, on the monotonic clock.
    """
    return Question(command).answer(deadline)


def query(jobs: Iterable[str], deadline: float, asks: Ask = ask) -> tuple[dict[str, JobState], list[Problem]]:
    """Asks for jobs: one question to squeue, one to sacct for those that left the queue, scontrol where squeue fails.

    Args:
        jobs: Numbers of jobs; an element of an array by its own number or as `12_3`. Anything else is passed over.
        deadline: When all that is not answered counts as unknown, on the monotonic clock.
        asks: Puts a question; what a caller gives may ask again where the answer is missing.

    Returns:
        A state for each job that Slurm knows, and the commands that did not answer.
    """
    wanted = sorted({job for job in jobs if re.fullmatch(r"[0-9]+(_[0-9]+)?", job)})
    if not wanted:
        return {}, []
    problems: list[Problem] = []
    listed = f"--jobs={','.join(wanted)}"
    columns = ",".join(f"{name}:{width}" for name, width in _WIDTHS.items())
    answer = asks(["squeue", "--noheader", "--array", "--states=all", listed, f"--Format={columns}"], deadline)
    found = _chosen(wanted, _from_squeue(answer.output or ""))
    if answer.output is None:
        problems.append(Problem("squeue", answer.problem))
        found |= _from_scontrol(wanted, deadline, asks, problems)
    if rest := [job for job in wanted if job not in found]:
        command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(rest)}"]
        answer = asks([*command, f"--format={','.join(_SACCT)}"], deadline)
        if answer.output is None:
            problems.append(Problem("sacct", answer.problem))
        found |= _chosen(rest, _from_sacct(answer.output or ""))
    return found, problems


def _chosen(wanted: Sequence[str], lines: Iterable[tuple[str, str, Mapping[str, str]]]) -> dict[str, JobState]:
    """The jobs that were asked for, by the number or the place in an array under which they were."""
    found: dict[str, JobState] = {}
    for number, element, fields in lines:
        for job in (number, element):
            if job in wanted:
                found[job] = _state(job, fields)
    return found


def _from_squeue(answer: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    for line in answer.splitlines():
        cells, at = {}, 0
        for name, width in _WIDTHS.items():
            cells[name] = line[at : at + width].strip()
            at += width
        # squeue writes the wait status.
        status = cells["exit_code"]
        code = f"{int(status) >> 8}:{int(status) & 127}" if status.isdigit() else status
        yield (
            cells["JobID"],
            f"{cells['ArrayJobID']}_{cells['ArrayTaskID']}",
            {
                "state": cells["State"],
                "reason": cells["Reason"],
                "exit": code,
                "restarts": cells["RestartCnt"],
                "cluster": cells["Cluster"],
                "partition": cells["Partition"],
                "submit": cells["SubmitTime"],
                "start": cells["StartTime"],
                "end": cells["EndTime"],
                "time_limit": cells["TimeLimit"],
                "node_list": cells["NodeList"],
                "name": cells["Name"],
                "comment": cells["Comment"],
            },
        )


def _from_sacct(answer: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    names = ("state", "reason", "exit", "cluster", "partition", "submit", "start", "end", "time_limit", "node_list")
    for line in answer.splitlines():
        number, element, *cells = line.split("|", len(_SACCT) - 1)
        if len(cells) == len(_SACCT) - 2:
            yield number, element, dict(zip((*names, "name"), cells, strict=True))


def _from_scontrol(wanted: Sequence[str], deadline: float, asks: Ask, problems: list[Problem]) -> dict[str, JobState]:
    """One question a job for a few, else one for all; without Slurm the first one ends it."""
    found: dict[str, JobState] = {}
    for job in wanted if len(wanted) <= _FEW else [None]:
        answer = asks(["scontrol", "--oneliner", "show", "job", *([job] if job else [])], deadline)
        if answer.output is None:
            problems.append(Problem("scontrol", answer.problem))
            break
        found |= _chosen(wanted, _from_oneliner(answer.output))
    return found


def _from_oneliner(answer: str) -> Iterator[tuple[str, str, dict[str, str]]]:
    for line in answer.splitlines():  # the number of an array brings all its elements
        fields = dict(re.findall(r"(?:^| )([A-Za-z/:]+)=(\S*)", line))
        element = f"{fields.get('ArrayJobId', '')}_{fields.get('ArrayTaskId', '')}"
        values = {ours: fields.get(theirs, "") for theirs, ours in _SCONTROL.items()}
        comment = re.search(r" Comment=(.*?) +(?:StdErr|[A-Z][A-Za-z]+)=", line)
        values["comment"] = comment[1] if comment else ""
        yield fields.get("JobId", ""), element, {"state": fields.get("JobState", ""), **values}


def _state(job: str, fields: Mapping[str, str]) -> JobState:
    known = {name: value for name, value in fields.items() if value not in _NOTHING}
    code, _, by_signal = known.get("exit", "").partition(":")
    restarts = known.get("restarts", "")
    return JobState(
        job_id=job,
        state=known.get("state", "UNKNOWN").partition(" ")[0].rstrip("+"),  # `CANCELLED by 1000`
        reason=known.get("reason"),
        exit_code=int(code) if code.isdigit() else None,
        signal=int(by_signal) if by_signal.isdigit() and by_signal != "0" else None,
        restarts=int(restarts) if restarts.isdigit() else None,
        cluster=known.get("cluster"),
        partition=known.get("partition"),
        submit=_time(known.get("submit")),
        start=_time(known.get("start")),
        end=_time(known.get("end")),
        time_limit=_span(known.get("time_limit")),
        node_list=known.get("node_list"),
        name=known.get("name"),
        comment=known.get("comment"),
    )


def _time(text: str | None) -> float | None:
    return float(text) if text is not None and text.isdigit() else None


def _span(text: str | None) -> float | None:
    """Reads `[D-][H:]M:S` as seconds."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text or "")
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + seconds)
