"""`make demo`: demonstrations, behaviour cloning and evaluation as real Slurm jobs on this machine, then a table."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from tracking.errors import UserError, exit_on_user_error
from tracking.files import read_json

_DATASET = "lift-demo"
_DEMONSTRATIONS = 30
_TRAINING_STEPS = 300
_EPISODES = 20

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    cluster: Annotated[
        str | None, typer.Option(help="lab or local; without it the lab where one can run, else local.")
    ] = None,
) -> None:
    """Collects 30 demonstrations, trains a policy on two ranks and evaluates it: minutes on two cores."""
    with exit_on_user_error():
        demo(cluster)


def demo(cluster: str | None) -> None:
    """Runs the three stages one behind the other and shows what came out.

    Raises:
        UserError: A stage did not end well; the message names its log.
    """
    start = time.monotonic()
    cluster = cluster or _lab_or_local()
    two_ranks = ["resources.tasks_per_node=2"] if cluster == "local" else []
    with _timed("collect: demonstrations of a scripted expert in robosuite"):
        _run_stage(
            "collect",
            cluster,
            [f"collect.repo_id={_DATASET}", f"collect.episodes={_DEMONSTRATIONS}", "collect.num_workers=2"],
        )
    with _timed("bc: an ACT policy under DeepSpeed ZeRO on two ranks"):
        training = [f"bc.repo_ids={_DATASET}", f"bc.training_steps={_TRAINING_STEPS}", *two_ranks]
        trained = _run_stage("bc", cluster, training)
    with _timed("eval: the trained policy and an untrained one on new seeds"):
        evaluation = [
            f"eval.policy={trained / 'bundle'}",
            f"eval.episodes={_EPISODES}",
            "eval.untrained=true",
        ]
        evaluated = _run_stage("eval", cluster, evaluation)
    _show(trained, evaluated, cluster, time.monotonic() - start)


def _lab_or_local() -> str:
    from launch.lab import Lab, LabUnavailable

    with _timed("lab: a Slurm of four nodes on this machine"):
        try:
            Lab().up()
        except LabUnavailable as error:
            print(f"{error}\n  going on without Slurm, through submitit's local executor (--cluster local)")
            return "local"
    return "lab"


@contextmanager
def _timed(title: str) -> Iterator[None]:
    print(f"\n== {title}", flush=True)
    start = time.monotonic()
    yield
    print(f"== {time.monotonic() - start:.0f} s", flush=True)


def _run_stage(stage: str, cluster: str, settings: list[str]) -> Path:
    """Submits a stage as `launch.submit --wait` does and returns its run folder."""
    from launch.config import resolve
    from launch.follow import follow
    from launch.models import held_models
    from launch.places import enter_lab
    from launch.preflight import check
    from launch.spec import make_spec
    from launch.submission import submit
    from launch.submit import report

    if cluster == "lab":
        enter_lab()
    config = resolve(stage, cluster, settings)
    spec = make_spec(config, datetime.now())
    check(config, spec, live=False)
    with held_models(config, spec) as spec_of_now:
        submitted = submit(config, spec_of_now)
    report(spec, submitted)
    if not follow(spec.run_dir, submitted.log, submitted.state):
        raise UserError(f"the {stage} job ended and its run is not complete; its log: {submitted.log}")
    return spec.run_dir


def _show(trained: Path, evaluated: Path, cluster: str, seconds: float) -> None:
    from rich.console import Console
    from rich.table import Table

    from tracking import read_journal

    console = Console()
    policies = Table("policy", "success", "95 % interval", "mean steps")
    for name, result in read_json(evaluated / "evaluation.json").items():
        low, high = result["interval_95"]
        policies.add_row(
            name,
            f"{result['successes']}/{result['trials']}",
            f"{low:.0%} to {high:.0%}",
            f"{result['mean_length']:.0f}",
        )
    console.print(f"\nLift on {_EPISODES} new seeds: {_DEMONSTRATIONS} demonstrations, {_TRAINING_STEPS} steps")
    console.print(policies)

    rows = [row for row in read_journal(trained).rows if "loss/total" in row.data]
    rate = (rows[-1].step - rows[0].step) / (rows[-1].time - rows[0].time)
    facts: list[tuple[str, Any]] = [
        ("training", f"{rate:.1f} steps/s on two ranks"),
        ("whole demo", f"{seconds:.0f} s on {cluster}"),
        ("bundle", _short(trained / "bundle")),
        ("logs", _short(Path("logs") / trained.name)),
        ("W&B folder", _short(trained / "wandb")),
        ("next", f"python -m launch.submit --stage bc --cluster {cluster} --dry-run"),
    ]
    for name, value in facts:
        # Paths are to be copied, so they are not wrapped.
        console.print(f"{name + ':':<12}{value}", soft_wrap=True, highlight=False, markup=False)


def _short(path: Path) -> str:
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


if __name__ == "__main__":
    app()
