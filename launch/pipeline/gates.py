"""The gate behind a stage: a tiny job that looks at what the stage's run has left."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from launch import orphans, sbatch
from launch.intent import Intent
from launch.pipeline.plan import Step
from launch.pipeline.record import GateRecord, StepRecord, new_key
from launch.render import check_log_folder, foreign_variables, rendered, sbatch_options
from launch.slurm import ALIVE, JobState
from tracking.errors import UserError
from tracking.files import read_json, write_atomic

GateWord = Literal["none", "waits", "runs", "passed", "failed", "ended", "unknown"]


@dataclass(frozen=True)
class GateView:
    """What a gate is.

    Attributes:
        word: In a word; `ended` is a gate that is over and has decided nothing.
        why: What it found, or what is known of its job.
        job_id: Its job now, which may be a later one than it was submitted as.
    """

    word: GateWord
    why: str = ""
    job_id: str | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it will still decide."""
        return self.word in ("waits", "runs")


def new_gate(step: Step, pipeline: str) -> GateRecord:
    """A gate that is to be submitted."""
    key = new_key()
    folder = step.spec.root / "logs" / f"{pipeline}-gates" / f"{step.stage}-{key}"
    return GateRecord(key, str(folder), [dict(one) for one in step.conditions], time=time.time())


def jobs_of(gate: GateRecord | None) -> list[str]:
    """The jobs of a gate, the first one first: it goes back into the queue behind jobs that its run handed on to."""
    if gate is None or gate.job_id is None:
        return []
    links = [read_json(path) or {} for path in Path(gate.folder).glob("links/[!.]*.json")]
    later = sorted(links, key=lambda link: float(link.get("time") or 0.0))
    return [gate.job_id, *(str(link["job_id"]) for link in later if "job_id" in link)]


def look_at_gate(gate: GateRecord | None, run_dir: Path, known: Mapping[str, JobState]) -> GateView:
    """What a gate has decided, or is about to.

    Args:
        gate: The gate.
        run_dir: The run that it looks at.
        known: What Slurm says about its jobs.
    """
    if gate is None:
        return GateView("none")
    verdict, jobs = read_json(run_dir / "promotion.json"), jobs_of(gate)
    last = jobs[-1] if jobs else None
    if verdict is not None and verdict.get("gate") == gate.key:
        word: GateWord = "passed" if verdict["passed"] else "failed"
        model = [f"{verdict['alias']} is {verdict['model']}"] if verdict.get("model") else []
        return GateView(word, "; ".join(verdict["faults"] or [*model, *verdict["good"]]), last)
    if last is None:
        return GateView("unknown", "it was being submitted when the command was interrupted")
    state = known.get(last)
    if state is None:
        return GateView("ended", f"job {last} is gone and has decided nothing", last)
    if state.state == "UNKNOWN":
        return GateView("unknown", "Slurm did not answer", last)
    if state.state in ALIVE:
        return GateView("waits" if state.state == "PENDING" else "runs", "", last)
    return GateView("ended", f"job {last} is {state.state} and has decided nothing: {gate.folder}", last)


def adopt_gate(step: Step, gate: GateRecord) -> bool:
    """Finds the job of a gate whose submission was interrupted.

    Returns:
        Whether it has one; it is in the record then.

    Raises:
        SlurmSilent: Nobody can tell yet.
    """
    gate.job_id = orphans.slurm_job(_intent(step, gate))
    return gate.job_id is not None


def submit_gate(step: Step, gate: GateRecord, pipeline: str, behind: Sequence[str], previous: str | None) -> str:
    """Queues a gate.

    Args:
        step: The stage.
        gate: The gate, which is in the record already.
        pipeline: The pipeline.
        behind: Jobs of the stage that must be over.
        previous: The gate before it, which must have passed; None where it has.

    Returns:
        Its job.

    Raises:
        UserError: Slurm refused it, or a folder cannot be written.
        sbatch.UnansweredError: Whether Slurm has it is not known.
    """
    intent, folder = _intent(step, gate), Path(gate.folder)
    text = script(step, gate, pipeline)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        intent.log_mark.touch()
        write_atomic(folder / sbatch.SCRIPT, text)
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}") from None
    conditions = [f"afterok:{previous}"] if previous is not None else []
    conditions += [f"afterany:{':'.join(behind)}"] if behind else []
    options = [f"--comment={intent.key}"]
    if conditions:
        options += [f"--dependency={','.join(conditions)}", "--kill-on-invalid-dep=yes"]
    remove = [part for name in foreign_variables(os.environ, step.gate) for part in ("-u", name)]
    return sbatch.call(["env", *remove, "sbatch", *options, str(folder / sbatch.SCRIPT)], folder)


def script(step: Step, gate: GateRecord, pipeline: str) -> str:
    """Renders a gate's script."""
    spec = replace(step.gate, log_dir=Path(gate.folder))
    check_log_folder(spec.log_dir)
    return rendered(
        "gate.sbatch.j2",
        options=[one for one in sbatch_options(spec, f"{spec.log_dir}/%j.out") if one[0] != "dependency"],
        common=f"{spec.root}/job_templates/common.sh",
        chain=f"{spec.root}/job_templates/chain.sh",
        gate=f"{spec.root}/job_templates/gate.sh",
        modules=spec.cluster.modules,
        conda_env=spec.cluster.conda_env,
        python=spec.python,
        environment=list(spec.environment.items()),
        run=step.spec.run_dir,
        name=step.spec.name,
        folder=gate.folder,
        arguments=_arguments(step, gate, pipeline),
    )


def _arguments(step: Step, gate: GateRecord, pipeline: str) -> list[str]:
    product = step.product
    given: list[str] = [f"--run-dir={step.spec.run_dir}", f"--gate={gate.key}", f"--pipeline={pipeline}"]
    for one in gate.conditions:
        given += [f"--{bound}={one['metric']}={one[bound]}" for bound in ("min", "max") if bound in one]
    facts: dict[str, Any] = {"dataset": product.folder, "episodes": product.episodes, "model": product.model}
    return given + [f"--{key}={value}" for key, value in facts.items() if value is not None]


def same_gate(step: Step, record: StepRecord) -> bool:
    """Whether the gate that there is asks for what is asked for now."""
    return record.gate is not None and record.gate.conditions == [dict(one) for one in step.conditions]


def _intent(step: Step, gate: GateRecord) -> Intent:
    return Intent(
        name=step.gate.name,
        nonce=gate.key,
        run_dir=Path(gate.folder),
        log_dir=Path(gate.folder),
        executor="slurm",
        cluster=step.gate.cluster.name,
        slurm=os.environ.get("SLURM_CONF"),
        request="",
        arguments=(),
        time=gate.time,
        holder=None,
        unanswered=gate.unanswered,
    )
