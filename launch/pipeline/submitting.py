"""Submits a pipeline, or what is missing of one: each stage, and the gate behind it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from launch import orphans, sbatch
from launch.config import Config
from launch.jobs.actions import submit_again, wait_until_over
from launch.jobs.folders import find_runs
from launch.models import held_models
from launch.pipeline import record as records
from launch.pipeline.decisions import Decision, Seen, decide, see
from launch.pipeline.gates import adopt_gate, jobs_of, new_gate, submit_gate
from launch.pipeline.plan import Step, make_steps
from launch.pipeline.record import Record, StepRecord
from launch.preflight import Finding, findings
from launch.preflight.finding import errors_of, show
from launch.preflight.limits import limit_findings, limits_of_profile
from launch.preflight.request import request_of
from launch.preflight.rules import FOLDER_TAKEN
from launch.render import batch_script, waiting_options
from launch.slurm import ALIVE, run_slurm, states
from launch.spec import JobSpec
from launch.submission import StoppedError, print_found, submit
from launch.submit import reaches_slurm
from tracking.errors import UserError
from tracking.files import read_json, write_atomic


@dataclass(frozen=True)
class Pipeline:
    """A pipeline with what is to be done for it.

    Attributes:
        run_root: Where its runs are.
        record: What it is, and how far it was submitted.
        steps: Its stages.
        decisions: What is done for each.
        seen: What each is now.
    """

    run_root: Path
    record: Record
    steps: list[Step]
    decisions: list[Decision]
    seen: list[Seen]


def steps_of(record: Record, decisions: Sequence[Decision] = ()) -> list[Step]:
    """The stages of a pipeline, with the runs that were decided on, else those that it had."""
    chosen = {stage: one.run for stage, one in zip(record.stages, decisions, strict=False)}

    def run_of(stage: str) -> str:
        before = record.steps.get(stage)
        return chosen.get(stage) or (before.run if before is not None else f"{record.name}-{stage}")

    return make_steps(
        record.name,
        record.cluster,
        stage_names=record.stages,
        settings=record.settings,
        conditions=record.conditions,
        run_of=run_of,
    )


def prepare(run_root: Path, record: Record) -> Pipeline:
    """Finds out what is to be done for a pipeline; submits nothing.

    Raises:
        UserError: Something cannot be run, or nobody can tell what Slurm has.
    """
    steps = steps_of(record)
    seen, problem = see(run_root, record)
    if problem is not None:
        raise UserError(f"{problem}; nothing was queued")
    decisions = decide(steps, seen)
    return Pipeline(run_root, record, steps_of(record, decisions), decisions, seen)


def mend(run_root: Path, record: Record) -> None:
    """Takes over what a command that was killed has submitted for this pipeline.

    Raises:
        UserError: Nobody can tell yet what Slurm has.
    """
    if not record.steps:
        return
    runs = {step.run for step in record.steps.values()}
    for found in orphans.settle(run_root, record.cluster):
        print_found(found)
        if found.intent.name in runs and not found.is_settled:
            raise UserError(f"nobody can tell yet what Slurm has of it\n  next: {found.way}")
    steps = {one.stage: one for one in steps_of(record)}
    for stage, step in record.steps.items():
        step.job_id = _job_of(run_root / step.run) or step.job_id
        if step.gate is not None and step.gate.job_id is None:
            if not adopt_gate(steps[stage], step.gate):
                step.gate = None
            else:
                print(f"the gate behind {stage} is job {step.gate.job_id}: adopted, the command was interrupted")
    records.write(run_root, record)


def check_all(pipeline: Pipeline) -> list[Finding]:
    """Runs preflight for all stages that are to be submitted, and their gates, and prints on stderr what it finds.

    Returns:
        The errors.
    """
    from rich.console import Console

    found: list[Finding] = []
    for step, decision in zip(pipeline.steps, pipeline.decisions, strict=True):
        own = list[Finding]()
        if decision.action in ("new", "again"):
            taken = decision.action == "again"
            live = reaches_slurm(step.spec)
            own += [one for one in findings(step.config, step.spec, live=live) if not (taken and _is_folder(one))]
        if decision.action in ("new", "again", "gate"):
            own += limit_findings(request_of(step.gate), limits_of_profile(step.gate.cluster))
        # What is true of every stage is said once.
        own = [one for one in own if one not in found]
        if own:
            print(f"preflight of {step.stage}:", file=sys.stderr)
            show(own, Console(stderr=True))
        found += own
    return errors_of(found)


def _is_folder(finding: Finding) -> bool:
    return finding.rule == FOLDER_TAKEN.name


def submit_all(pipeline: Pipeline) -> None:
    """Submits what was decided on; what is queued is recorded at once.

    Raises:
        UserError: Slurm refused a job; what is queued already stays.
        SystemExit: Slurm's answer was lost, or Ctrl-C came; the next command goes on.
    """
    record = pipeline.record
    records.write(pipeline.run_root, record)
    previous: str | None = None
    for step, decision, seen in zip(pipeline.steps, pipeline.decisions, pipeline.seen, strict=True):
        if decision.action == "skip":
            continue
        if decision.action == "leave":
            previous = seen.gate.job_id
            continue
        own = record.steps.setdefault(step.stage, StepRecord(step.spec.name))
        try:
            if decision.action in ("new", "again"):
                _submit_stage(pipeline, step, decision, own, previous)
            previous = _submit_gate(pipeline, step, decision, own, previous)
        except StoppedError:
            raise StoppedError(
                f"interrupted: {step.stage} was not submitted; what was queued before it stays\n"
                f"  next: python -m launch.pipeline run --resume {record.name}\n"
                f"        python -m launch.pipeline cancel {record.name}"
            ) from None
        except UserError as error:
            raise UserError(
                f"{step.stage}: {error}\n  what was queued before stays; to go on: "
                f"python -m launch.pipeline run --resume {record.name}"
            ) from None


def _submit_stage(pipeline: Pipeline, step: Step, decision: Decision, own: StepRecord, previous: str | None) -> None:
    record, spec = pipeline.record, replace(step.spec, after=previous)
    takes = {one.stage: record.steps[one.stage].run for one in step.takes}
    # The gate that there was belongs to the job that there was.
    _cancel(jobs_of(own.gate))
    own.run, own.job_id, own.takes, own.gate = spec.name, None, takes, None
    records.write(pipeline.run_root, record)
    if decision.action == "new":
        arguments = ["--stage", step.stage, "--cluster", record.cluster]
        arguments += [part for setting in step.settings for part in ("--set", setting)]
        with held_models(step.config, spec) as spec_of_now:
            submitted = submit(step.config, spec_of_now, arguments=arguments)
        own.job_id, links = submitted.job_id, submitted.links
    else:
        own.job_id, links = _again(step.config, spec), None
    records.write(pipeline.run_root, record)
    where = f", behind gate {previous}" if previous is not None else ""
    print(f"{step.stage:<8} job {own.job_id}{where}: {spec.name}", flush=True)
    if links is not None:
        print(f"{'':<8} {links}", flush=True)


def _again(config: Config, spec: JobSpec) -> str:
    """Submits the run once more: what it asks Slurm for may have changed, what it does has not."""
    (run,) = find_runs([spec.run_dir])
    _cancel(run.jobs)
    if not (spec.log_dir / "task_0.pkl").is_file():
        raise UserError(f"{run.name} cannot be taken up: its task is gone from {spec.log_dir}")
    write_atomic(spec.run_dir / "config.yaml", config.dump(spec.name))
    write_atomic(spec.log_dir / sbatch.SCRIPT, batch_script(spec, [str(spec.run_dir)]))
    submit_again(run, waiting_options(spec))
    return str(_job_of(spec.run_dir))


def _submit_gate(pipeline: Pipeline, step: Step, decision: Decision, own: StepRecord, previous: str | None) -> str:
    if decision.action == "gate":
        _cancel(jobs_of(own.gate))
    own.gate = new_gate(step, pipeline.record.name)
    records.write(pipeline.run_root, pipeline.record)
    behind = [] if (step.spec.run_dir / "done.json").exists() else _living(step.spec.run_dir)
    try:
        with sbatch.interrupts_wait() as interrupted:
            own.gate.job_id = submit_gate(step, own.gate, pipeline.record.name, behind, previous)
            records.write(pipeline.run_root, pipeline.record)
    except sbatch.UnansweredError as error:
        own.gate.unanswered = True
        records.write(pipeline.run_root, pipeline.record)
        raise SystemExit(
            f"error: {error}; whether Slurm has the gate behind {step.stage} is not known\n"
            f"  next: python -m launch.pipeline run --resume {pipeline.record.name}"
        ) from None
    if interrupted:
        raise SystemExit(
            f"interrupted: what is queued stays\n  next: python -m launch.pipeline run --resume {pipeline.record.name}"
        )
    print(f"{'':<8} gate {own.gate.job_id} behind {step.stage}", flush=True)
    return own.gate.job_id


def _living(run_dir: Path) -> list[str]:
    jobs = [job for run in find_runs([run_dir]) for job in run.jobs]
    return [job for job, state in states(jobs).items() if state.state in ALIVE] if jobs else []


def _cancel(jobs: Sequence[str]) -> None:
    alive = [job for job, state in states(jobs).items() if state.state in ALIVE] if jobs else []
    if not alive:
        return
    run_slurm(["scancel", *alive])
    if left := wait_until_over(alive):
        raise UserError(f"Slurm was asked to cancel {', '.join(one.job_id for one in left)}, and has not")


def _job_of(run_dir: Path) -> str | None:
    submission = read_json(run_dir / "submission.json") or {}
    return str(submission["job_id"]) if submission.get("job_id") else None


def cancel_all(run_root: Path, record: Record) -> list[str]:
    """Cancels every job of a pipeline that waits or runs, at once, so that none begins because another one ends.

    Returns:
        The jobs.
    """
    jobs = [job for step in record.steps.values() for job in jobs_of(step.gate)]
    jobs += [job for step in record.steps.values() for run in find_runs([run_root / step.run]) for job in run.jobs]
    alive = [job for job, state in states(jobs).items() if state.state in ALIVE] if jobs else []
    _cancel(alive)
    return alive
