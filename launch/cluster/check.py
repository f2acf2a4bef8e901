"""The site check: a short job that looks at what jobs will need, and its way back into the profile.

```
logs/site-check-NAME/
  check.json      a check that is under way: what it was asked; gone once its answer stands in the profile
  submission.sh   its script, beside what sbatch said
  JOB.out         its answer
ROOT/.site-check-TOKEN/
  login, node-…   what the login node and each node have written; removed in the end
```
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from launch import sbatch
from launch.cluster.answers import OVER, findings, read_answers
from launch.cluster.writing import profile_of, with_findings
from launch.config import ROOT, clusters, resolve, user_profiles
from launch.places import expand
from launch.profile import Checked, Cluster
from launch.render import check_log_folder, foreign_variables, rendered, sbatch_options
from launch.slurm import ALIVE, SlurmSilent, states
from launch.spec import JobSpec, make_spec, small_job
from tracking.errors import UserError, unknown
from tracking.files import read_json, write_atomic, write_json
from tracking.server import PUBLIC, chosen_server

MINUTES = 10
"""How long the job may run; it needs less than one."""

_TOGETHER = 2
_SECONDS_FOR_FILES = 15.0


@dataclass(frozen=True)
class Pending:
    """A check that is under way.

    Attributes:
        token: What the login node has written into the folders.
        folders: The folders, one below each root.
        nodes: How many nodes it was to run on.
        began: When, as it will stand in the profile.
    """

    token: str
    folders: tuple[str, ...]
    nodes: int
    began: str


def log_folder(name: str) -> Path:
    """Where the job of a profile's check writes."""
    return ROOT / "logs" / f"site-check-{name}"


def find_profile(name: str) -> tuple[Path, Cluster]:
    """Reads a profile that a job can check.

    Raises:
        UserError: There is none of this name, it is not valid, or it has no Slurm.
    """
    if (path := clusters().get(name)) is None:
        raise unknown("cluster", name, clusters())
    cluster = profile_of(path.read_text(), name, path)
    if cluster.executor != "slurm":
        raise UserError(f"{name!r} runs jobs on this machine, without Slurm: there is no site to check")
    return path, cluster


def pending(name: str) -> tuple[Pending, str] | None:
    """A check of this profile that is under way, and its job; None where there is none."""
    folder = log_folder(name)
    record, job_id = read_json(folder / "check.json"), sbatch.answer(folder)
    if record is None or job_id is None:
        return None
    return _pending(record), job_id


def submit(name: str, cluster: Cluster, nodes: int | None, gpus: int | None) -> tuple[Pending, str]:
    """Queues the job.

    Args:
        name: The profile.
        cluster: What it holds.
        nodes: How many nodes; None is two where the partition has two.
        gpus: GPUs on each; None is one where the partition has any, because GPU partitions refuse jobs without.

    Raises:
        UserError: A root cannot be written, or Slurm refused the job.
    """
    folder, token = log_folder(name), secrets.token_hex(8)
    spec = _spec(name, cluster, nodes, gpus)
    asked = Pending(token, _folders(cluster, token), spec.resources.nodes, _now())
    if (unasked := read_json(folder / "check.json")) is not None:
        # One that died before Slurm had its job.
        clean(_pending(unasked))
    shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True)
        for probe in map(Path, asked.folders):
            probe.mkdir(parents=True)
            write_atomic(probe / "login", token)
    except OSError as error:
        clean(asked)
        raise UserError(f"cannot write {error.filename}: {error.strerror}; change the roots in the profile") from None
    write_json(folder / "check.json", asdict(asked))
    write_atomic(folder / sbatch.SCRIPT, script(spec, asked))
    remove = [part for variable in foreign_variables(os.environ, spec) for part in ("-u", variable)]
    try:
        return asked, sbatch.call(["env", *remove, "sbatch", str(folder / sbatch.SCRIPT)], folder)
    except (UserError, sbatch.UnansweredError) as error:
        clean(asked)
        (folder / "check.json").unlink()
        hint = "\n  next: --nodes 1, or another partition in the profile" if asked.nodes > 1 else ""
        raise UserError(f"{error}{hint}") from None


def script(spec: JobSpec, asked: Pending) -> str:
    """Renders the job's script."""
    check_log_folder(spec.log_dir)
    folders = [part for folder in asked.folders for part in ("--folder", folder)]
    return rendered(
        "site_check.sbatch.j2",
        cluster=spec.cluster.name,
        options=sbatch_options(spec, f"{spec.log_dir}/%j.out"),
        common=f"{spec.root}/job_templates/common.sh",
        modules=spec.cluster.modules,
        conda_env=spec.cluster.conda_env,
        python=spec.python,
        environment=list(spec.environment.items()),
        arguments=[
            "--token",
            asked.token,
            "--server",
            chosen_server({**os.environ, **spec.environment}) or PUBLIC,
            *folders,
        ],
    )


def wait_for(name: str, job_id: str, seconds: float, report: Callable[[str], None]) -> bool:
    """Waits until the job is over.

    Args:
        name: The profile.
        job_id: The job.
        seconds: How long to wait at most.
        report: Gets a line whenever its state has changed.

    Returns:
        Whether it is over.
    """
    deadline, pause, shown = time.monotonic() + seconds, 0.5, ""
    while not is_over(name, job_id):
        line, alive = _state(job_id)
        if line != shown:
            report(f"[{time.strftime('%H:%M:%S')}] job {job_id}: {line}")
            shown = line
        if not alive:
            # What it wrote last may not be seen here yet.
            until = min(deadline, time.monotonic() + _SECONDS_FOR_FILES)
            while not is_over(name, job_id) and time.monotonic() < until:
                time.sleep(0.2)
            return True
        if time.monotonic() + pause > deadline:
            return False
        time.sleep(pause)
        pause = min(10.0, 1.5 * pause)
    return True


def is_over(name: str, job_id: str) -> bool:
    """Whether the job has said all that it has to say."""
    return OVER in _log(name, job_id).splitlines()


def conclude(name: str, cluster: Cluster, asked: Pending, job_id: str) -> Checked:
    """Reads the answer of a job that is over, looks at what the nodes have written, and removes it.

    Raises:
        UserError: The job has said nothing.
    """
    folder = log_folder(name)
    answers = read_answers(_log(name, job_id))
    nodes = {answer.node for answer in answers if answer.part == "shared"}
    missing = [Path(probe) / f"node-{node}" for probe in asked.folders for node in nodes]
    deadline = time.monotonic() + _SECONDS_FOR_FILES
    if not any(answer.part == "shared" and answer.ok is False for answer in answers):
        while not all(path.exists() for path in missing) and time.monotonic() < deadline:
            time.sleep(0.2)
    checked = findings(answers, cluster, asked.nodes, [Path(probe) for probe in asked.folders], asked.began)
    clean(asked)
    (folder / "check.json").unlink(missing_ok=True)
    if not answers:
        said = " ".join(_log(name, job_id).split())[-300:]
        raise UserError(
            f"the job {job_id} ended without an answer{': ' + said if said else ''}.\n"
            f"  next: see {folder}; if it holds no log, the nodes do not see this folder, or the job was cancelled"
        )
    return checked


def record(name: str, path: Path, checked: Checked) -> Path:
    """Writes what was seen into the profile; of one that is shipped, into a copy of the user's own.

    Returns:
        The file that was written.

    Raises:
        UserError: It cannot be written.
    """
    changes: dict[str, Any] = {
        key: seen.ok for key in ("internet", "requeue") if (seen := getattr(checked, key)) and seen.ok is not None
    }
    text = with_findings(path.read_text(), name, path, checked, changes)
    own = user_profiles() / f"{name}.yaml"
    # A link to a file elsewhere stays one.
    target = path.resolve() if path == own else own
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, text)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}") from None
    return target


def clean(asked: Pending) -> None:
    """Removes the folders below the roots."""
    for folder in asked.folders:
        shutil.rmtree(folder, ignore_errors=True)


def _spec(name: str, cluster: Cluster, nodes: int | None, gpus: int | None) -> JobSpec:
    limits = cluster.partitions.get(cluster.partition or "")
    has = min(limits.nodes or _TOGETHER, limits.max_nodes or _TOGETHER) if limits else _TOGETHER
    settings = [
        f"name=site-check-{name}",
        f"resources.nodes={nodes or min(_TOGETHER, has)}",
        *small_job(cluster, MINUTES, gpus),
        "resources.memory_gb=1",
        # Whether it may be requeued is one of the questions.
        "cluster.requeue=null",
    ]
    spec = make_spec(resolve("smoke", name, settings), datetime.now())
    return dataclasses.replace(spec, log_dir=log_folder(name))


def _pending(record: dict[str, Any]) -> Pending:
    return Pending(**{**record, "folders": tuple(record["folders"])})


def _folders(cluster: Cluster, token: str) -> tuple[str, ...]:
    keys = [key for key in ("run_root", "data_root", "store_root") if getattr(cluster, key) is not None]
    places = [expand(getattr(cluster, key), ROOT, f"cluster.{key}") for key in keys]
    return tuple(str(place / f".site-check-{token}") for place in dict.fromkeys(places))


def _state(job_id: str) -> tuple[str, bool]:
    """What Slurm says of the job, and whether it waits or runs."""
    try:
        state = states([job_id]).get(job_id)
    except SlurmSilent:
        return "Slurm does not answer", True
    if state is None:
        return "gone from the queue", False
    return f"{state.state} ({state.reason})" if state.reason else state.state, state.state in ALIVE


def _log(name: str, job_id: str) -> str:
    try:
        return (log_folder(name) / f"{job_id}.out").read_text(errors="replace")
    except OSError:
        return ""


def _now() -> str:
    return datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z")
