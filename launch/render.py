"""From a job to text: the batch script of Slurm, and the task command of this machine."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.config import ROOT, Cluster
from launch.spec import JobSpec
from tracking.errors import UserError

SUBMISSION_VARIABLES = {"partition": "SBATCH_PARTITION", "account": "SBATCH_ACCOUNT", "qos": "SBATCH_QOS"}
"""What sbatch reads from the environment where the profile leaves the field open."""

_FOREIGN = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SUBMITIT|PMI|PMIX|PMI2)_")
_RANKS = {"MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"}


def sbatch_quote(value: object) -> str:
    """Quotes a value for an `#SBATCH` line, which Slurm parses itself: a backslash escapes inside quotes too.

    Raises:
        UserError: It holds a control character, which no such line can.
    """
    text = str(value)
    if re.search(r"[\x00-\x1f\x7f]", text):
        raise UserError(f"{text!r} holds a control character, which an #SBATCH line cannot; choose another")
    if re.fullmatch(r"[A-Za-z0-9_./:@%+,=-]+", text):
        return text
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def check_log_folder(folder: Path) -> None:
    """Refuses a log folder in whose name Slurm would see a pattern of its own.

    Raises:
        UserError: Slurm expands `%` in a log's name, and a backslash switches that off.
    """
    if re.search(r"[%\\\x00-\x1f\x7f]", str(folder)):
        raise UserError(
            f"the log folder {str(folder)!r} holds '%', a backslash or a control character, which Slurm cannot have in "
            "the name of a log.\n  move the project to a folder without them"
        )


def batch_script(spec: JobSpec, run_dirs: Sequence[str], array: bool = False, parallel: int = 256) -> str:
    """Renders the stage template.

    Args:
        spec: The job.
        run_dirs: The run folder of each element of an array, or of the one job.
        array: Whether it is an array.
        parallel: How many elements of an array may run at once.

    Returns:
        The text that `sbatch` gets.

    Raises:
        UserError: A value cannot stand in an `#SBATCH` line.
    """
    check_log_folder(spec.log_dir)
    job = "%A_%a" if array else "%j"
    return rendered(
        "stage.sbatch.j2",
        stage=spec.stage,
        options=sbatch_options(spec, f"{spec.log_dir}/{job}_0_log.out", len(run_dirs) if array else 0, parallel),
        common=f"{spec.root}/job_templates/common.sh",
        modules=spec.cluster.modules,
        conda_env=spec.cluster.conda_env,
        python=spec.python,
        environment=list(spec.environment.items()),
        run_dirs=run_dirs,
        is_chain=is_chain(spec),
        chain=f"{spec.root}/job_templates/chain.sh",
        max_attempts=spec.resources.max_segments,
        seconds=spec.resources.time * 60,
        task_log=f"{spec.log_dir}/{job}_%t_log.out",
        folder=spec.log_dir,
    )


def rendered(template: str, **values: object) -> str:
    """Fills in a template of `job_templates`; it quotes what it prints by `quote`, in `#SBATCH` lines by `sbatch`."""
    environment = Environment(
        loader=FileSystemLoader(ROOT / "job_templates"),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["quote"] = lambda value: shlex.quote(str(value))
    environment.filters["sbatch"] = sbatch_quote
    return environment.get_template(template).render(**values)


def is_chain(spec: JobSpec) -> bool:
    """Whether the run is a chain of jobs: where the site forbids that a job is requeued."""
    return spec.cluster.requeue is False


def sbatch_options(spec: JobSpec, log: str, elements: int = 0, parallel: int = 0) -> list[tuple[str, str | int | None]]:
    """The options of a batch script, in the order in which they stand there."""
    cluster, resources = spec.cluster, spec.resources
    options: list[tuple[str, str | int | None]] = [("job-name", spec.name)]
    options += [(key, value) for key in SUBMISSION_VARIABLES if (value := getattr(cluster, key))]
    options += [("nodes", resources.nodes), ("ntasks-per-node", resources.tasks)]
    if resources.gpus_per_node:
        options.append(("gpus-per-node", resources.gpus_per_node))
    options += [
        ("cpus-per-task", resources.cpus_per_task),
        ("mem", f"{round(resources.memory_gb * 1024)}M"),
        ("time", slurm_time(resources.time)),
        # Without `B:`: the tasks get it, not the shell.
        ("signal", f"USR2@{resources.signal_seconds}"),
        ("no-requeue" if is_chain(spec) else "requeue", None),
        ("open-mode", "append"),
        ("output", log),
        ("comment", f"gilbreth:{spec.name}"),
    ]
    if resources.exclusive:
        options.append(("exclusive", None))
    if is_chain(spec):
        options.append(("dependency", "singleton"))
    if elements:
        options.append(("array", f"0-{elements - 1}%{min(elements, parallel)}"))
    return options


def waiting_options(spec: JobSpec) -> list[str]:
    """What sbatch is called with for a job that waits for another one; the script keeps its own dependency else."""
    if spec.after is None:
        return []
    alone = ",singleton" if is_chain(spec) else ""
    return [f"--dependency=afterok:{spec.after}{alone}", "--kill-on-invalid-dep=yes"]


def slurm_time(minutes: int) -> str:
    """Writes minutes as Slurm's `[D-]HH:MM:SS`."""
    days, rest = divmod(minutes, 24 * 60)
    return (f"{days}-" if days else "") + f"{rest // 60:02}:{rest % 60:02}:00"


def foreign_variables(environ: Mapping[str, str], spec: JobSpec) -> list[str]:
    """Names the variables that a new job must not inherit: `foreign_names` of its profile."""
    return foreign_names(environ, spec.cluster)


def foreign_names(environ: Mapping[str, str], cluster: Cluster) -> list[str]:
    """Names the variables that a new job must not inherit: those of a job that this one is submitted from.

    `SLURM_CONF` stays, which says where Slurm is, and so do account, partition and QOS where the profile leaves them
    open; a value of the profile must not be overridden by `SBATCH_…`, because that is not what the dry run shows.
    """
    open_fields = {name for field, name in SUBMISSION_VARIABLES.items() if getattr(cluster, field) is None}
    kept = open_fields | {"SLURM_CONF"}
    inherited = _RANKS | ({"CUDA_VISIBLE_DEVICES"} if "SLURM_JOB_ID" in environ else set())
    return sorted(name for name in environ if (_FOREIGN.match(name) or name in inherited) and name not in kept)


def local_python(spec: JobSpec, environ: Mapping[str, str] = os.environ) -> str:
    """Writes the Python command of a task on this machine: the same preparation as in a batch script, then exec.

    Args:
        spec: The job.
        environ: The environment that the task would inherit.
    """
    remove = [
        part for name in foreign_variables(environ, spec) if not name.startswith("SUBMITIT_") for part in ("-u", name)
    ]
    variables = {"OMP_NUM_THREADS": str(spec.resources.cpus_per_task), **spec.environment}
    prepare = (
        'common=$1 python=$2; shift 2; . "$common"; activate_environment "$python"; set_job_environment; '
        'trap "" USR2; exec env "$@"'
    )
    return shlex.join(
        [
            *("bash", "-euc", prepare, "task", f"{spec.root}/job_templates/common.sh", spec.python),
            *remove,
            *(f"{name}={value}" for name, value in variables.items()),
            spec.python,
        ]
    )
