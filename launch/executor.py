"""submitit's executors with this project's template, environment and call of sbatch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from submitit.core import utils
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor, SlurmJob

from launch import sbatch
from launch.render import batch_script, foreign_variables, local_python, waiting_options
from launch.spec import JobSpec
from tracking.files import write_atomic

# How often a stop at the time limit may requeue a run. Whether a run goes on is decided after each attempt from the
# progress that it made; submitit's own count must not end it first.
_MAX_NUM_TIMEOUT = 1000


class StageExecutor(SlurmExecutor):
    """Submits `StageTask`s with a script rendered from the stage template, as one job or as an array.

    submitit moves its pickle to the job's number after `sbatch`, and a job whose submitter died before that waits for
    it and fails. Here the pickles have their names before, and each job links its own: after `sbatch` nothing is left
    to do that the job needs.

    Args:
        spec: What the job asks for; the tasks say which run folder is whose.
        key: What the job carries as its comment.
    """

    def __init__(self, spec: JobSpec, key: str | None = None) -> None:
        super().__init__(spec.log_dir, max_num_timeout=_MAX_NUM_TIMEOUT)
        self._spec = spec
        self._key = key or f"gilbreth:{spec.name}"
        resources = spec.resources
        self.update_parameters(time=resources.time, nodes=resources.nodes, ntasks_per_node=resources.tasks)

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[Any]:
        for index, delayed in enumerate(delayed_submissions):
            delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
            delayed.dump(self.folder / f"task_{index}.pkl")
        is_array = len(delayed_submissions) > 1
        run_dirs = [delayed.function.run_dir for delayed in delayed_submissions]
        script = self.folder / sbatch.SCRIPT
        write_atomic(script, batch_script(self._spec, run_dirs, array=is_array))
        job_id = sbatch.call(self._make_submission_command(script), self.folder)
        tasks = list(range(self._num_tasks()))
        ids = [f"{job_id}_{index}" for index in range(len(run_dirs))] if is_array else [job_id]
        return [SlurmJob(self.folder, one, tasks) for one in ids]

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        remove = [part for name in foreign_variables(os.environ, self._spec) for part in ("-u", name)]
        options = [f"--comment={self._key}", *waiting_options(self._spec)]
        return ["env", *remove, "sbatch", *options, str(submission_file_path)]


def local_executor(spec: JobSpec) -> LocalExecutor:
    """Makes the executor that runs a job on this machine, as one process a task."""
    executor = LocalExecutor(spec.log_dir, max_num_timeout=_MAX_NUM_TIMEOUT, python=local_python(spec))
    resources = spec.resources
    executor.update_parameters(
        timeout_min=resources.time,
        tasks_per_node=resources.tasks,
        gpus_per_node=resources.gpus_per_node,
        signal_delay_s=resources.signal_seconds,
        stderr_to_stdout=True,
    )
    return executor
