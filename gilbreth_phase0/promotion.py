"""The gate behind a stage of a pipeline: is what its run made good enough for the next stage to start from?

`job_templates/gate.sbatch.j2` runs it. What it found stands in RUN/promotion.json. A model that has passed gets the
pipeline's name as an alias in the model store; that is the name by which later stages ask for it.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from gilbreth_phase0.attempt import read_attempts
from tracking.checkpoints import candidates, verify
from tracking.errors import UserError, exit_on_user_error
from tracking.files import read_json, write_json
from tracking.gate import Condition
from tracking.models.files import model_files
from tracking.store import Store, open_store
from tracking.store.contents import file_digest, folder_digest
from tracking.store.resolve import move_aliases

PROMOTION_FILE = "promotion.json"

_MAIN, _FRESH = "trained", "untrained"


@dataclass
class Findings:
    """What a gate has found.

    Attributes:
        good: What is as it should be.
        faults: What is not; nothing may be promoted then.
        metrics: What the run's evaluation measured.
        model: The version that was promoted.
        alias: The name that it is found by now.
    """

    good: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    metrics: dict[str, float] = field(default_factory=dict)
    model: str | None = None
    alias: str | None = None

    @property
    def line(self) -> str:
        """The same in one line."""
        what = [f"{self.alias} is {self.model} now"] if self.model else []
        return f"failed: {'; '.join(self.faults)}" if self.faults else f"passed: {'; '.join([*what, *self.good])}"


def examine(
    run_dir: Path, conditions: Sequence[Condition] = (), dataset: Path | None = None, episodes: int | None = None
) -> Findings:
    """Looks at what a run has left; changes nothing.

    Args:
        run_dir: The run folder.
        conditions: What its evaluation must have found.
        dataset: The dataset that it was to record.
        episodes: How many episodes that must hold.
    """
    found = Findings()
    step = _done(run_dir, found)
    if step is None:
        return found
    parts: list[Callable[[], None]] = [
        lambda: _checkpoint(run_dir, step, found),
        lambda: _bundle(run_dir / "bundle", found),
        lambda: _dataset(dataset, episodes, found),
        lambda: _metrics(run_dir, conditions, found),
    ]
    for part in parts:
        try:
            part()
        except Exception as error:  # noqa: BLE001 - whatever a file that is not whole makes its reader raise
            found.faults.append(f"{type(error).__name__}: {' '.join(str(error).split())}")
    return found


def promote(run_dir: Path, store: Store, name: str, alias: str) -> str:
    """Gives the version that has the files of a run's bundle an alias.

    Args:
        run_dir: The run folder.
        store: The model store.
        name: The model's name.
        alias: The alias, which may be at another version so far.

    Returns:
        The version, as `act-lift:v3`.

    Raises:
        UserError: There is none.
    """
    # A run publishes on the way too, and it is its bundle that was looked at. Another run may have published the very
    # same files before: then its version stands for both.
    version = store.known(name).same(_digest(run_dir / "bundle"))
    if version is None:
        raise UserError(
            f"{run_dir.name} has not published its bundle as a version of {name}\n"
            f"  next: python -m tracking.models publish {run_dir / 'bundle'} {name}"
        )
    move_aliases(store, name, {alias: version.number})
    return f"{name}:v{version.number}"


def _digest(bundle: Path) -> str:
    files = model_files(bundle, "promotion")
    return folder_digest({name: {"sha256": file_digest(path)} for name, path in files.items()})


def _done(run_dir: Path, found: Findings) -> int | None:
    record = read_json(run_dir / "done.json")
    if record is not None:
        found.good.append(f"the run is complete at step {record['step']}")
        return int(record["step"])
    attempts = read_attempts(run_dir)
    why = attempts[-1].reason if attempts else "no attempt of it has ended by itself"
    found.faults.append(f"the run is not complete: {why}")
    return None


def _checkpoint(run_dir: Path, step: int, found: Findings) -> None:
    saved = candidates(run_dir / "checkpoints")
    if not saved:
        return
    try:
        manifest = verify(saved[0])
    except ValueError as error:
        found.faults.append(f"the newest checkpoint is not whole: {error}")
        return
    if manifest.step != step:
        found.faults.append(f"the newest checkpoint is of step {manifest.step}, and the run of step {step}")
    else:
        found.good.append(f"checkpoint {saved[0].name} is whole")


def _bundle(bundle: Path, found: Findings) -> None:
    if not bundle.is_dir():
        return
    import torch

    from gilbreth_phase0.policies import load_bundle

    policy = load_bundle(bundle)
    batch: dict[str, Any] = {
        name: torch.zeros(1, *feature.shape) for name, feature in policy.config.input_features.items()
    }
    policy.model.eval()
    policy.model.reset()
    with torch.inference_mode():
        action = policy.postprocessor(policy.model.select_action(policy.preprocessor(batch)))
    wanted = tuple(policy.config.output_features["action"].shape)
    if tuple(action.shape[1:]) != wanted or not bool(torch.isfinite(action).all()):
        found.faults.append(f"the bundle's action is {tuple(action.shape[1:])}, expected {wanted} finite numbers")
    else:
        found.good.append("the bundle loads and acts")


def _dataset(dataset: Path | None, episodes: int | None, found: Findings) -> None:
    if dataset is None:
        return
    from gilbreth_phase0.datasets import open_dataset

    opened = open_dataset(dataset, dataset.name)
    opened[len(opened) - 1]  # the last frame can be read
    count = opened.meta.total_episodes
    if episodes is not None and count != episodes:
        found.faults.append(f"the dataset {dataset} has {count} episodes, {episodes} were asked for")
    else:
        found.good.append(f"the dataset opens and has {count} episodes")


def _metrics(run_dir: Path, conditions: Sequence[Condition], found: Findings) -> None:
    results: dict[str, dict[str, Any]] = read_json(run_dir / "evaluation.json") or {}
    # Of several policies, the one that was made last stands last.
    result = results.get(_MAIN) or next((found for name, found in reversed(results.items()) if name != _FRESH), {})
    found.metrics = {key: float(value) for key, value in result.items() if isinstance(value, int | float)}
    if interval := result.get("interval_95"):
        found.metrics |= {"success_rate_low": interval[0], "success_rate_high": interval[1]}
    for condition in conditions:
        fault = condition.fault(found.metrics)
        if fault is not None:
            found.faults.append(fault)
        else:
            found.good.append(f"{condition.metric} is {found.metrics[condition.metric]:.4g}")


def conditions_of(low: Sequence[str], high: Sequence[str]) -> list[Condition]:
    """Reads `METRIC=NUMBER` of the command line.

    Raises:
        UserError: One is not of this form.
    """
    bounds: dict[str, dict[str, float]] = {}
    for bound, texts in (("min", low), ("max", high)):
        for text in texts:
            metric, _, value = text.partition("=")
            try:
                number = float(value)
            except ValueError:
                number = math.nan
            if not metric or math.isnan(number):
                raise UserError(f"--{bound} {text!r}: expected METRIC=NUMBER, as in --{bound} success_rate=0.5")
            bounds.setdefault(metric, {})[bound] = number
    return [Condition.model_validate({"metric": metric, **values}) for metric, values in bounds.items()]


app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command()
def main(
    run_dir: Annotated[Path, typer.Option(help="Run folder of the stage.")],
    gate: Annotated[str, typer.Option(help="This gate's key, for promotion.json.")],
    pipeline: Annotated[str, typer.Option(help="Name of the pipeline: the alias that a model gets.")],
    *,
    low: Annotated[list[str] | None, typer.Option("--min", help="METRIC=NUMBER: the least that will do.")] = None,
    high: Annotated[list[str] | None, typer.Option("--max", help="METRIC=NUMBER: the most that will do.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="The dataset that the run was to record.")] = None,
    episodes: Annotated[int | None, typer.Option(help="How many episodes that must hold.")] = None,
    model: Annotated[str | None, typer.Option(help="Name under which the run was to publish its policy.")] = None,
) -> None:
    """Looks at what a run has left and gives its model the pipeline's alias; exits with 1 where that is not to be."""
    with exit_on_user_error():
        conditions = conditions_of(low or [], high or [])
        found = examine(run_dir, conditions, dataset, episodes)
        if model is not None and not found.faults:
            try:
                found.model, found.alias = promote(run_dir, open_store(), model, pipeline), f"{model}:{pipeline}"
            except (UserError, OSError) as error:
                found.faults.append(str(error).splitlines()[0])
    record = {
        "gate": gate,
        "pipeline": pipeline,
        "passed": not found.faults,
        "faults": found.faults,
        "good": found.good,
        "metrics": found.metrics,
        "conditions": [one.model_dump(exclude_none=True) for one in conditions],
        "model": found.model,
        "alias": found.alias,
        "job_id": os.environ.get("SLURM_JOB_ID"),
        "time": time.time(),
    }
    if run_dir.is_dir():
        write_json(run_dir / PROMOTION_FILE, record)
    print(found.line, flush=True)
    raise typer.Exit(1 if found.faults else 0)


if __name__ == "__main__":
    app()
