"""submitit's executors with this project's template and environment."""

from __future__ import annotations

import os
import uuid
from pathlib import Path
from typing import Any

from submitit.core import utils
from submitit.local.local import LocalExecutor
from submitit.slurm.slurm import SlurmExecutor

from launch.render import batch_script, foreign_variables, local_python
from launch.spec import JobSpec

# How often a stop at the time limit may requeue a run. Whether a run goes on is decided after each attempt from the
# progress that it made; submitit's own count must not end it first.
_MAX_NUM_TIMEOUT = 1000


class StageExecutor(SlurmExecutor):
    """Submits `StageTask`s with a script rendered from the stage template, as one job or as an array.

    Args:
        spec: What the job asks for; the tasks say which run folder is whose.
    """

    def __init__(self, spec: JobSpec) -> None:
        super().__init__(spec.log_dir, max_num_timeout=_MAX_NUM_TIMEOUT)
        self._spec = spec
        self._run_dirs: list[str] = []
        resources = spec.resources
        self.update_parameters(time=resources.time, nodes=resources.nodes, ntasks_per_node=resources.tasks)

    def _internal_process_submissions(self, delayed_submissions: list[utils.DelayedSubmission]) -> list[Any]:
        self._run_dirs = [delayed.function.run_dir for delayed in delayed_submissions]
        if len(delayed_submissions) == 1:
            return list(super()._internal_process_submissions(delayed_submissions))
        # submitit hands arrays to a plain SlurmExecutor, which would write its own script.
        pickles = [self._dump(delayed) for delayed in delayed_submissions]
        self._throttle()
        first = self._submit_command(self._submitit_command_str)
        tasks = range(first.num_tasks)
        jobs = [self.job_class(self.folder, f"{first.job_id}_{index}", tasks) for index in range(len(pickles))]
        for job, path in zip(jobs, pickles, strict=True):
            job.paths.move_temporary_file(path, "submitted_pickle")
        return jobs

    def _dump(self, delayed: utils.DelayedSubmission) -> Path:
        path: Path = self.folder / f"{uuid.uuid4().hex}.pkl"
        delayed.set_timeout(self.parameters["time"], self.max_num_timeout)
        delayed.dump(path)
        return path

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return batch_script(self._spec, self._run_dirs, array=len(self._run_dirs) > 1)

    def _make_submission_command(self, submission_file_path: Path) -> list[str]:
        remove = [part for name in foreign_variables(os.environ, self._spec) for part in ("-u", name)]
        return ["env", *remove, "sbatch", str(submission_file_path)]


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
