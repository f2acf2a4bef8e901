"""How many jobs a run will be: counted from what earlier runs of its kind measured."""

from __future__ import annotations

import math
import os
import subprocess
from dataclasses import dataclass, replace

from launch.config import Config
from launch.render import foreign_variables, is_chain, slurm_time
from launch.sbatch import SCRIPT
from launch.spec import JobSpec
from tracking.files import read_json
from tracking.pace import Pace, read_pace

# What decides how fast a stage trains; a run that differs in one of them says nothing.
_SPEED = ("policy", "policy_settings", "batch_size", "gradient_accumulation", "zero_stage", "device", "num_workers")
# Newest first; a run root may hold years of runs.
_LOOKED_AT = 50


@dataclass(frozen=True)
class Plan:
    """The jobs that a run is expected to take.

    Attributes:
        segments: How many; None where nothing was measured yet, infinity where not one step fits into a job.
        source: The run that measured it; None where there is none.
        pace: What it measured, for this run's number of steps.
    """

    segments: float | None
    source: str | None = None
    pace: Pace | None = None

    def sentence(self, spec: JobSpec) -> str:
        """What is said of it before the job is queued."""
        limit, ways = slurm_time(spec.resources.time), "handing on to the next" if is_chain(spec) else "requeued"
        bound = f"at most {spec.resources.max_segments}"
        if self.segments is None or self.pace is None:
            return f"jobs of {limit}, {ways} until the last step, {bound}; how many is known when one has measured it"
        pace = self.pace
        rates = f"{pace.steps_per_second:.3g} steps/s, {pace.save_seconds:.1f} s a save, measured in {self.source}"
        if math.isinf(self.segments):
            return f"not one step fits into a job of {limit}: {pace.startup_seconds:.0f} s to start, {rates}"
        if self.segments == 1:
            return f"one job of {limit} is enough for {pace.total} steps ({rates})"
        return f"about {self.segments:.0f} jobs of {limit}, {ways}, {bound}, for {pace.total} steps ({rates})"


def plan(config: Config, spec: JobSpec) -> Plan | None:
    """Plans the jobs of a run; reads the run root and writes nothing.

    Returns:
        None for a stage that does not count steps.
    """
    total = config.arguments.get("training_steps")
    if not isinstance(total, int):
        return None
    source = _measured(config, spec)
    if source is None:
        return Plan(None)
    pace = replace(source[1], step=0, total=total)
    return Plan(pace.segments(spec.resources.time * 60), source[0], pace)


def queue_links(spec: JobSpec) -> str | None:
    """Queues the further jobs of a chain that the profile wants to wait at once; the first one is queued already.

    Only one job of a run's name runs at a time, so one too many or too few does no harm: each queues its successor
    where none waits, and ends at once where the run is complete.

    Returns:
        A line that says what was queued; None where one job is enough.
    """
    wanted = spec.resources.links - 1
    if not is_chain(spec) or not wanted:
        return None
    remove = [part for name in foreign_variables(os.environ, spec) for part in ("-u", name)]
    command = ["env", *remove, "sbatch", "--parsable", "--dependency=singleton", str(spec.log_dir / SCRIPT)]
    ids: list[str] = []
    for _ in range(wanted):
        try:
            answer = subprocess.run(command, cwd=spec.root, capture_output=True, text=True, timeout=60, check=False)
            refusal = " ".join(answer.stderr.split()) if answer.returncode else None
        except subprocess.TimeoutExpired:
            refusal = "Slurm did not answer"
        if refusal is not None:
            return f"link warning: {len(ids)} of {wanted} further jobs of the chain are queued ({refusal})"
        ids.append(answer.stdout.strip().partition(";")[0])
    return f"link jobs {', '.join(ids)} go on with the run when the one before is over"


def _measured(config: Config, spec: JobSpec) -> tuple[str, Pace] | None:
    """The newest run of this kind that has measured its pace, and what it measured."""
    wanted = kind_of_run(config, spec)
    folders = sorted(spec.run_dir.parent.glob("*/pace.json"), key=lambda path: path.stat().st_mtime, reverse=True)[
        :_LOOKED_AT
    ]
    for path in folders:
        pace = read_pace(path.parent)
        if pace is not None and (read_json(path.parent / "submission.json") or {}).get("kind") == wanted:
            return path.parent.name, pace
    return None


def kind_of_run(config: Config, spec: JobSpec) -> dict[str, object]:
    """What decides how fast a run gets on, for its submission.json."""
    resources = spec.resources
    return {
        "stage": spec.stage,
        "cluster": spec.cluster.name,
        "partition": spec.cluster.partition,
        "ranks": resources.nodes * resources.tasks,
        **{key: config.arguments[key] for key in _SPEED if key in config.arguments},
    }
