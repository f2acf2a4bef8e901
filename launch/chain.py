"""How many jobs a run will be: counted from what earlier runs of its kind measured."""

from __future__ import annotations

import contextlib
import math
import os
import re
import time
from dataclasses import dataclass, replace
from pathlib import Path

from launch.config import Cluster, Config
from launch.jobs.folders import find_runs
from launch.render import foreign_names, is_chain, slurm_time
from launch.sbatch import SCRIPT, interrupts_wait
from launch.slurm import SlurmRefused, SlurmSilent, run_slurm
from launch.spec import JobSpec
from tracking.files import read_json, write_json
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
        None for a stage that does not count steps, or does more than them: rounds of roll-outs.
    """
    total = config.arguments.get("training_steps")
    if not isinstance(total, int) or "rounds" in config.arguments:
        return None
    source = _measured(config, spec)
    if source is None:
        return Plan(None)
    pace = replace(source[1], step=0, total=total)
    return Plan(pace.segments(spec.resources.time * 60), source[0], pace)


def queue_links(run_dir: Path) -> str | None:
    """Queues the further jobs of a chain that the profile wants to wait at once, and records them with the run.

    Only one job of a run's name runs at a time, so one too many or too few does no harm: each queues its successor
    where none waits, and ends at once where the run is complete.

    Args:
        run_dir: The run folder; its first job is queued already, and so may be further ones.

    Returns:
        A line that says what was queued; None where nothing was missing.
    """
    run = next(iter(find_runs([run_dir])), None)
    if run is None or run.config.get("resources", {}).get("links", 1) <= len(run.chain):
        return None
    cluster = Cluster.model_validate(run.config["cluster"])
    if cluster.requeue is not False or not run.on_slurm or not run.chain:
        return None
    wanted, jobs, refusal = int(run.config["resources"]["links"]) - len(run.chain), list(run.chain), ""
    remove = [part for name in foreign_names(os.environ, cluster) for part in ("-u", name)]
    with interrupts_wait() as interrupted:
        try:
            command = ["env", *remove, "sbatch", "--parsable", *_waiting_as(jobs[0]), str(run.log_dir / SCRIPT)]
            for _ in range(wanted):
                if interrupted:
                    refusal = "interrupted"
                    break
                with contextlib.chdir(run.root):
                    number = run_slurm(command, 60.0).strip().partition(";")[0]
                link = {"job_id": number, "after": jobs[-1], "time": int(time.time())}
                (run_dir / "links").mkdir(exist_ok=True)
                write_json(run_dir / "links" / f"{number}.json", link)
                jobs.append(number)
        except (SlurmRefused, SlurmSilent) as error:
            refusal = str(error).splitlines()[0].removeprefix("env refused: ")
    queued = jobs[len(run.chain) :]
    if refusal:
        return f"link warning: {len(queued)} of {wanted} further jobs of the chain are queued ({refusal})"
    return f"link jobs {', '.join(queued)} go on with the run when the one before is over"


def _waiting_as(job_id: str) -> list[str]:
    """What has a further job wait as the first one does: what that one may not do, because a gate fails, no job may."""
    listed = run_slurm(["squeue", "--noheader", f"--jobs={job_id}", "--format=%E"], tries=3)
    conditions = [part for part in re.sub(r"\([a-z]+\)", "", listed.strip()).split(",") if part.startswith("afterok:")]
    kill = ["--kill-on-invalid-dep=yes"] if conditions else []
    return [f"--dependency={','.join([*conditions, 'singleton'])}", *kill]


def _measured(config: Config, spec: JobSpec) -> tuple[str, Pace] | None:
    """The newest run of this kind that has measured its pace, and what it measured."""
    wanted = kind_of_run(config, spec)
    root = spec.run_dir.parent
    found = root.glob("*/pace.json") if os.access(root, os.R_OK | os.X_OK) else ()
    for path in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[:_LOOKED_AT]:
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
