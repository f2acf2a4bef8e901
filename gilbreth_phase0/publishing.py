"""A finished run's policy gets a name in the model store, from which later stages load it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gilbreth_phase0.datasets import open_metadata
from tracking.errors import UserError
from tracking.files import read_json
from tracking.gate import judge
from tracking.names import slug
from tracking.store import Published, Store, open_store, publish
from tracking.store.state import Version

BEST, FINAL = "best", "final"


def publish_bundle(run_dir: Path, bundle: Path, policy: str, dataset: Path, step: int) -> tuple[Published, str]:
    """Publishes a bundle as `{policy}-{dataset}` with the aliases `latest`, `final`, `step-N` and, where it is, `best`.

    Done again after a requeue it finds the same version.

    Args:
        run_dir: The run that made it; what its evaluation found goes into the metadata.
        bundle: The policy's folder.
        policy: LeRobot's name of the policy type.
        dataset: The folder of the dataset that it was trained on.
        step: The last training step.

    Returns:
        What was published, and why it is the best one or not.

    Raises:
        UserError: The store cannot be made where it should be, or the bundle is not whole.
        OSError: The disk is full or the store cannot be written.
    """
    store, name = open_store(), slug(f"{policy}-{dataset.name}")
    evaluation = _evaluation(run_dir)
    is_best, why = judge_best(store, name, evaluation)
    meta = open_metadata(dataset, dataset.name)
    facts = {
        "step": step,
        "policy": policy,
        "dataset": dataset.name,
        "dataset_episodes": meta.total_episodes,
        "dataset_frames": meta.total_frames,
        **evaluation,
    }
    aliases = [FINAL, BEST] if is_best else [FINAL]
    return publish(store, bundle, name, aliases, facts, run_dir=_run_dir(run_dir)), why


def judge_best(store: Store, name: str, evaluation: Mapping[str, Any]) -> tuple[bool, str]:
    """Whether a policy takes the alias `best`, and why: the first one does, and one that is better beyond chance.

    Args:
        store: The store.
        name: The model's name.
        evaluation: `eval_seeds` and `eval_outcomes`, as a version's metadata has them.
    """
    if not store.exists:
        return True, "it is the first"
    state = store.state(name)
    number = state.aliases.get(BEST)
    if number is None:
        return True, "it is the first"
    best = state.versions[number]
    new, old = _outcomes(evaluation), _outcomes(best.metadata)
    if not new or not old:
        which = "it was" if not new else f"{name}:v{number} was"
        return False, f"{which} not evaluated; {_by_hand(name)}"
    try:
        judgement = judge(new, old)
    except UserError as error:
        return False, f"{str(error).splitlines()[0]}; {_by_hand(name)}"
    return judgement.better, f"against {_named(name, best)}: {judgement.reason}"


def _by_hand(name: str) -> str:
    return f"to make it the best: python -m tracking.models alias {name}:latest {BEST}"


def _named(name: str, version: Version) -> str:
    return f"{name}:v{version.number}"


def _outcomes(facts: Mapping[str, Any]) -> dict[int, float]:
    seeds, outcomes = facts.get("eval_seeds") or [], facts.get("eval_outcomes") or []
    return dict(zip(seeds, outcomes, strict=True)) if len(seeds) == len(outcomes) else {}


def _evaluation(run_dir: Path) -> dict[str, Any]:
    """What RUN/evaluation.json says of the trained policy; nothing where there was no evaluation."""
    result = (read_json(run_dir / "evaluation.json") or {}).get("trained")
    if result is None:
        return {}
    return {
        "success_rate": result["success_rate"],
        "reward_per_step": result["reward_per_step"],
        "eval_seeds": [episode["seed"] for episode in result["episodes"]],
        "eval_outcomes": [int(episode["success"]) for episode in result["episodes"]],
    }


def _run_dir(run_dir: Path) -> Path | None:
    """None where nothing is tracked: then there is no run to name."""
    return run_dir if (run_dir / "run.json").exists() else None
