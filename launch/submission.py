"""From a job to its run folder and its job id: intent, submission, outcome; exactly once, whatever is killed."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from launch import intent as intents
from launch import sbatch
from launch.chain import kind_of_run, queue_links
from launch.config import Config
from launch.intent import Intent
from launch.orphans import Found, discard, settle
from launch.snapshot import Tree, code_diff, take_snapshot, tree_of
from launch.spec import JobSpec
from launch.task import StageTask
from tracking.errors import UserError
from tracking.files import write_atomic, write_json
from tracking.pace import total_steps
from tracking.redact import REDACTED

_DIFF = "code.diff"


@dataclass(frozen=True)
class Submitted:
    """A job that was handed over.

    Attributes:
        job_id: Slurm's, or the process id of the local controller.
        log: Log of its first task.
        state: Asks for its state in capitals, with Slurm's reason; None when it is gone.
        links: What is said of the further jobs of a chain that were queued with it; None where there are none.
    """

    job_id: str
    log: Path
    state: Callable[[], str | None]
    links: str | None = None


class StoppedError(UserError):
    """Ctrl-C before anything was submitted."""

    exit_code = 130


def pick_up(config: Config, spec: JobSpec) -> tuple[JobSpec, Submitted] | None:
    """Deals with what commands that were killed have left in this run root.

    Args:
        config: What this command is asked for.
        spec: The job that it would submit.

    Returns:
        The job of an earlier command that was asked for the same, where it was adopted now: it takes the place of the
        one that this command would submit. None where there is none.

    Raises:
        UserError: The same was asked for, and nobody can tell yet whether Slurm has the job.
    """
    request, twin = intents.request_of(config, spec), None
    for found in settle(spec.run_dir.parent, spec.cluster.name):
        is_same = found.intent.request == request or found.intent.name == spec.name
        if is_same and not found.is_settled:
            raise UserError(f"{found.line}\n  next: {found.way}; or for another run beside it: --set name=NAME")
        print_found(found)
        if is_same and found.job_id is not None and twin is None:
            twin = _as_submitted(found, spec)
    return twin


def resumed(run_dir: Path, enter_lab: Callable[[], None]) -> list[str] | None:
    """Finishes a submission that was interrupted.

    Args:
        run_dir: The run folder.
        enter_lab: Makes this process talk to the lab.

    Returns:
        What to call `launch.submit` with where Slurm never got the job; None where it is adopted.

    Raises:
        UserError: There is none of that run, it is under way, or nobody can tell yet whether Slurm has its job.
    """
    own = [one for one in intents.open_intents(run_dir.parent) if one.name == run_dir.name]
    if not own:
        raise UserError(f"no submission of {run_dir} was interrupted\n  next: see its submission.json")
    if not own[0].is_own:
        raise UserError(f"{run_dir.name} is being submitted by {own[0].user}; only {own[0].user} can finish that")
    if own[0].cluster == "lab":
        enter_lab()
    found = next(settle(run_dir.parent, own[0].cluster, run_dir.name), None)
    if found is None:
        raise UserError(f"{run_dir.name} is being submitted now: {own[0].holder}")
    if not found.is_settled:
        raise UserError(f"{found.line}\n  next: {found.way}")
    print_found(found)
    if found.job_id is not None:
        return None
    if any(REDACTED in argument for argument in found.intent.arguments):
        raise UserError("its command line held a secret, which is not kept; submit it again yourself")
    return [*found.intent.arguments, "--set", f"name={run_dir.name}"]


def print_found(found: Found) -> None:
    """Says what became of a submission that was left; the further jobs of a chain that is adopted are queued."""
    print(found.line, flush=True)
    if found.job_id is not None and (links := queue_links(found.intent.run_dir)) is not None:
        print(links, flush=True)


def submit(
    config: Config, spec: JobSpec, *, snapshot: bool = False, arguments: Sequence[str] | None = None
) -> Submitted:
    """Records the intent, makes the run folder, submits, and records the outcome.

    Args:
        config: The configuration, which is kept with the run.
        spec: Its job.
        snapshot: Whether the job runs a copy of the tree as it is now.
        arguments: What follows `launch.submit` in a command that submits the same; None is this process's own.

    Raises:
        UserError: A folder cannot be made, Slurm refused the job, or Ctrl-C came before; then nothing of it is left.
        SystemExit: Slurm's answer was lost: the intent stays, and the next command finds out.
    """
    tree = tree_of(spec.root)
    diff = code_diff(tree)
    intent = intents.new_intent(config, spec, arguments)
    record = _record(config, spec, intent, tree, diff)
    if snapshot:
        spec = replace(spec, root=take_snapshot(tree, spec.run_dir.parent))
        record["snapshot"] = str(spec.root)
    try:
        intents.begin(intent)
        _make_folders(spec, intent, record)
        write_atomic(spec.run_dir / "config.yaml", config.dump(spec.name))
        if diff is not None:
            write_atomic(spec.run_dir / _DIFF, diff.encode("utf-8", "surrogateescape"))
        submitted = _hand_over(spec, intent, record)
    except sbatch.UnansweredError as error:
        intents.let_go(intent)
        raise SystemExit(
            f"error: {error}; whether Slurm has the job is not known\n  the next launch.submit finds out; or look: "
            f"squeue --me --name={spec.name}"
        ) from None
    except KeyboardInterrupt:
        if intent.has_logs and sbatch.was_called(spec.log_dir):
            raise SystemExit(
                "interrupted: whether Slurm has the job is not known\n  the next launch.submit finds out; or look: "
                f"squeue --me --name={spec.name}"
            ) from None
        discard(intent)
        raise StoppedError("interrupted: nothing was submitted, and nothing is left") from None
    except UserError:
        discard(intent)
        raise
    except OSError as error:
        if intent.has_logs and (job_id := sbatch.answer(spec.log_dir)) is not None:
            raise SystemExit(
                f"error: job {job_id} is queued, and its record cannot be written: {error}\n"
                "  the next launch.submit writes it"
            ) from None
        discard(intent)
        raise UserError(f"cannot write {error.filename}: {error.strerror}; nothing was submitted") from None
    return replace(submitted, links=queue_links(spec.run_dir)) if spec.resources.links > 1 else submitted


def _record(config: Config, spec: JobSpec, intent: Intent, tree: Tree, diff: str | None) -> dict[str, Any]:
    return {
        "key": intent.key,
        "stage": spec.stage,
        "executor": spec.cluster.executor,
        "minutes": spec.resources.time,
        "steps": total_steps(config.arguments),
        "command": intent.command,
        "time": intent.time,
        "log_dir": str(spec.log_dir),
        "git_commit": tree.commit,
        "git_dirty": tree.dirty,
        "code_diff": _DIFF if diff is not None else None,
        "snapshot": None,
        "kind": kind_of_run(config, spec),
    }


def _make_folders(spec: JobSpec, intent: Intent, record: dict[str, Any]) -> None:
    """Makes the two folders, each of which says at once whose it is."""
    _make(spec.run_dir)
    write_json(spec.run_dir / "submission.json", {"state": "submitting", "job_id": None, **record})
    _make(spec.log_dir)
    intent.log_mark.touch()


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        raise UserError(
            f"{str(folder)!r} is there already, from another run or from a command that submits it now; choose another "
            "--set name=NAME"
        ) from None
    except OSError as error:
        raise UserError(
            f"cannot make {error.filename}: {error.strerror}; set cluster.run_root to a folder of yours"
        ) from None


def _hand_over(spec: JobSpec, intent: Intent, record: dict[str, Any]) -> Submitted:
    task = StageTask(spec.module, str(spec.run_dir), spec.argv)
    hand_over = _slurm(spec, intent) if spec.cluster.executor == "slurm" else _this_machine(spec)
    # The job starts in the folder that it was submitted from.
    with sbatch.interrupts_wait() as interrupted, contextlib.chdir(spec.root):
        submitted = hand_over(task)
        write_json(spec.run_dir / "submission.json", {"state": "submitted", "job_id": submitted.job_id, **record})
        intents.close(intent)
    if interrupted:
        cancel = "scancel" if spec.cluster.executor == "slurm" else "kill"
        raise SystemExit(
            f"interrupted: {spec.name} is queued as job {submitted.job_id} and recorded; to cancel it: "
            f"{cancel} {submitted.job_id}"
        )
    return submitted


def _slurm(spec: JobSpec, intent: Intent) -> Callable[[StageTask], Submitted]:
    # Imported before the call, so that Ctrl-C ends the wait for it.
    from launch.executor import StageExecutor

    missing = [command for command in ("sbatch", "srun", "squeue") if shutil.which(command) is None]
    if missing:
        raise UserError(
            f"cluster {spec.cluster.name!r} needs Slurm, and {missing[0]} is not on the PATH here.\n"
            "  run this on a login node, or without Slurm: --cluster local"
        )
    executor = StageExecutor(spec, intent.key)
    return lambda task: _slurm_job(executor.submit(task).job_id, spec.log_dir)


def _slurm_job(job_id: str, log_dir: Path) -> Submitted:
    from launch.follow import slurm_state

    return Submitted(job_id, log_dir / f"{job_id}_0_log.out", lambda: slurm_state(job_id))


def _this_machine(spec: JobSpec) -> Callable[[StageTask], Submitted]:
    from launch.executor import local_executor

    executor = local_executor(spec)

    def start(task: StageTask) -> Submitted:
        job = executor.submit(task)
        return Submitted(job.job_id, Path(job.paths.stdout), lambda: str(job.get_info()["jobState"]))

    return start


def _as_submitted(found: Found, spec: JobSpec) -> tuple[JobSpec, Submitted]:
    assert found.job_id is not None
    intent, job_id = found.intent, found.job_id
    spec = replace(spec, name=intent.name, run_dir=intent.run_dir, log_dir=intent.log_dir)
    if intent.executor == "slurm":
        return spec, _slurm_job(job_id, intent.log_dir)
    alive = lambda: "RUNNING" if Path("/proc", job_id).exists() else "FINISHED"  # noqa: E731
    return spec, Submitted(job_id, intent.log_dir / f"{job_id}_0_log.out", alive)
