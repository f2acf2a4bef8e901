"""What a command that was killed while it submitted has left: its job is adopted, or what it wrote is removed.

Where Slurm has a job for the intent, the job is recorded in the run folder, as the killed command would have done.
Where it certainly has none, the run folder and the log folder of that submission are removed. Where nobody can tell,
because Slurm does not answer, all is left to the next command.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import intent as intents
from launch import sbatch
from launch.intent import Intent
from launch.questions import user_name
from launch.slurm import SlurmRefused, SlurmSilent, run_slurm
from tracking.files import read_json, write_json

# An sbatch that was killed, or whose answer was lost, may have handed over a job that Slurm has not listed yet.
_SECONDS_UNTIL_LISTED = 3.0
_SECONDS_UNTIL_LISTED_LATE = 600.0
# How long the sbatch of a killed command is waited for; it goes on without its parent.
_SECONDS_FOR_SBATCH = 10.0
_LONGEST_QUESTION_S = 15.0
# How far the clocks of this host and of Slurm's may be apart.
_SLACK_S = 300.0


@dataclass(frozen=True)
class Found:
    """What became of a submission that was left.

    Attributes:
        intent: What was being submitted.
        job_id: Its job; None where there is none, or where nobody can tell.
        is_settled: False where the next command has to look again.
        line: What is said of it; empty where there is nothing to say.
        way: What settles it, where this command did not.
    """

    intent: Intent
    job_id: str | None
    is_settled: bool
    line: str
    way: str = "the same command again in a while"


def settle(run_root: Path, cluster: str, name: str | None = None) -> Iterator[Found]:
    """Deals with every submission of this user below a run root that was left.

    Args:
        run_root: Where run folders are.
        cluster: The profile that this command is for: another cluster's Slurm cannot be asked.
        name: The one run that is looked at; None is every one.

    Yields:
        What became of each; of those that are under way in a living process, or another user's, nothing.
    """
    for intent in intents.open_intents(run_root):
        if not intent.is_own or name not in (None, intent.name) or intent.is_under_way:
            continue
        if not _can_ask(intent, cluster):
            yield _beyond(intent)
        elif (taken := intents.take_over(intent)) is not None:
            yield _settle(taken)


def _can_ask(intent: Intent, cluster: str) -> bool:
    if intent.executor == "local":
        return intent.holder is not None and intent.holder.is_here()
    return (intent.cluster, intent.slurm) == (cluster, os.environ.get("SLURM_CONF"))


def _beyond(intent: Intent) -> Found:
    """What nobody here can ask for: where it can be, and how it is dropped where that place is gone."""
    conf = f"SLURM_CONF={shlex.quote(intent.slurm)}" if intent.slurm is not None else "no SLURM_CONF"
    where = f"on {intent.host}" + (f" with {conf}" if intent.executor == "slurm" else "")
    drop = f"where it has no job for certain: rm {shlex.quote(str(intent.path))}"
    line = f"{intent.name} was being submitted with profile {intent.cluster} {where}; it cannot be asked for from here"
    return Found(intent, None, False, f"{line}; {drop}", "the same command there")


def _settle(intent: Intent) -> Found:
    recorded = record_of(intent)
    if recorded.get("state") in ("submitted", "adopted"):
        intents.close(intent)
        known = str(recorded["job_id"])
        return Found(intent, known, True, f"{intent.name} is queued as job {known}; the command was interrupted")
    try:
        job_id = _local_job(intent) if intent.executor == "local" else slurm_job(intent)
    except (SlurmSilent, SlurmRefused) as error:
        intents.let_go(intent)
        why = str(error).splitlines()[0]
        return Found(intent, None, False, f"{intent.name}: whether it was submitted is not known yet: {why}")
    if job_id is None:
        discard(intent)
        return Found(intent, None, True, f"{intent.name} was never submitted and is removed; again: {intent.command}")
    # An empty record is one whose run folder somebody has removed meanwhile.
    if recorded:
        write_json(intent.run_dir / "submission.json", {**recorded, "state": "adopted", "job_id": job_id})
    intents.close(intent)
    return Found(intent, job_id, True, f"{intent.name} is job {job_id}: adopted, because the command was interrupted")


def record_of(intent: Intent) -> dict[str, Any]:
    """The run's own record, where it is of this submission; else empty."""
    try:
        record = read_json(intent.run_dir / "submission.json")
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) and record.get("key") == intent.key else {}


def discard(intent: Intent) -> None:
    """Removes what a submission without a job has written, and nothing of another run of that name."""
    rivals = [one for one in intents.open_intents(intent.run_dir.parent) if one.name == intent.name]
    is_alone = all(one.nonce == intent.nonce for one in rivals)
    for folder, is_own in ((intent.log_dir, intent.has_logs), (intent.run_dir, bool(record_of(intent)))):
        # Killed just after it was made, a folder does not say whose it is.
        if is_own or (is_alone and _is_bare(folder)):
            shutil.rmtree(folder, ignore_errors=True)
    intents.close(intent)


def _is_bare(folder: Path) -> bool:
    """Whether a folder holds nothing but a record that was being written."""
    try:
        return all(path.name.startswith(".submission.json.") for path in folder.iterdir())
    except OSError:
        return False


def slurm_job(intent: Intent, others: Collection[str] = ()) -> str | None:
    """The job of an intent; None where there is none for certain.

    Args:
        intent: What was being submitted.
        others: Jobs of the same name that are known to be others.

    Raises:
        SlurmSilent: Slurm cannot tell, or not yet.
        SlurmRefused: It does not say what its jobs are.
    """
    log_dir = intent.log_dir
    if not intent.has_logs or not sbatch.was_called(log_dir):
        return None
    deadline = time.monotonic() + _SECONDS_FOR_SBATCH
    while (running := sbatch.is_running(log_dir)) and time.monotonic() < deadline:
        time.sleep(0.05)
    if (job_id := sbatch.answer(log_dir)) is not None:
        return job_id
    if running:
        raise SlurmSilent("its sbatch is still waiting for an answer")
    late = intent.unanswered
    while True:
        age = intents.age(sbatch.called_at(log_dir))
        if (job_id := _listed(intent, others) or _seen(log_dir)) is not None:
            return job_id
        if sbatch.refusal(log_dir) is not None or age > (_SECONDS_UNTIL_LISTED_LATE if late else _SECONDS_UNTIL_LISTED):
            return None
        if late:
            wait = (_SECONDS_UNTIL_LISTED_LATE - age) / 60
            raise SlurmSilent(f"Slurm's answer was lost and it lists no such job; certain in {wait:.0f} min")
        time.sleep(0.2)


def _listed(intent: Intent, others: Collection[str]) -> str | None:
    """Asks Slurm for this user's jobs; the oldest one with the key, or the name where a site rewrites comments."""
    user, name = user_name(), intent.name
    squeue = ["squeue", "--noheader", "--states=all", f"--user={user}", "--format=%F|%V|%j|%k"]
    lines = run_slurm(squeue, _LONGEST_QUESTION_S, tries=2).splitlines()
    if not (found := list(_jobs(intent, lines, others))):
        since = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(intent.time - _SLACK_S))
        sacct = ["sacct", "--noheader", "--parsable2", "--allocations", f"--user={user}", f"--starttime={since}"]
        try:
            answer = run_slurm([*sacct, f"--name={name}", "--format=JobIDRaw,Submit,JobName,Comment"], 5.0)
        except (SlurmSilent, SlurmRefused):
            answer = ""  # a site without accounting
        found = list(_jobs(intent, answer.splitlines(), others))
    return str(min(found)) if found else None


def _jobs(intent: Intent, lines: list[str], others: Collection[str]) -> Iterator[int]:
    for line in lines:
        number, submitted, name, comment, *_ = [*line.split("|", 3), "", "", ""]
        same_name = name == intent.name and not comment.startswith("gilbreth:")
        recent = submitted.isdigit() and float(submitted) > intent.time - _SLACK_S
        if number.isdigit() and number not in others and (comment == intent.key or (same_name and recent)):
            yield int(number)


def _seen(log_dir: Path) -> str | None:
    """The number of a job that began, from what it wrote; Slurm forgets jobs after some minutes."""
    numbers = [
        int(match[1])
        for path in log_dir.iterdir()
        if (match := re.match(r"(\d+)(?:_\d+)?_(?:submitted\.pkl|\d+_log\.)", path.name))
    ]
    return str(min(numbers)) if numbers else None


def _local_job(intent: Intent) -> str | None:
    """The controller of a job on this machine; submitit's pickle is moved to where the tasks look for it."""
    if not intent.has_logs:
        return None
    folder = os.fsencode(intent.log_dir)
    controllers = [
        pid for pid, line in sbatch.commands().items() if b"submitit.local._local" in line and folder in line
    ]
    if not controllers:
        return _seen(intent.log_dir)
    job_id = str(min(controllers))
    target = intent.log_dir / f"{job_id}_submitted.pkl"
    for pickle in intent.log_dir.glob("*.pkl"):
        if re.fullmatch(r"[0-9a-f]{32}\.pkl", pickle.name) and not target.exists():
            pickle.rename(target)
    return job_id
