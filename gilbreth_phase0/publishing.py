"""A run's policy gets a name in the model store, from which later stages load it, and `best` where it is that."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gilbreth_phase0.trials import TrialError
from tracking.errors import UserError
from tracking.gate import BestRule, judge
from tracking.gate.best import Outcomes
from tracking.identity import read_identity
from tracking.names import slug
from tracking.store import Published, Store, open_store, publish
from tracking.store.state import AliasMoved, State, Version

BEST, FINAL = "best", "final"
SUCCESS = "success_rate"
COMPARISON = "comparison"
LAST_SEED = "selected_up_to_seed"
"""Metadata: how a version compared with the best of other runs, and the last seed that its run was selected on."""


@dataclass(frozen=True)
class Trials:
    """How a comparison with another run's policy gets what it lacks.

    Attributes:
        on: What the policy of a bundle gets on seeds, by seed.
        fresh: Seeds that this run has not tried anything on, nor those that it is given.
    """

    on: Callable[[Path, Sequence[int]], Outcomes]
    fresh: Callable[[Iterable[int]], range]


@dataclass(frozen=True)
class Candidate:
    """A policy that is to get a name.

    Attributes:
        run_dir: The run that made it.
        bundle: Its folder.
        policy: LeRobot's name of its type.
        dataset: The name of the dataset that it was trained on.
        step: Its training step.
        outcomes: What it got on each seed, in the metric that decides what is best; empty where it was not tried.
        metric: That metric.
        facts: What else goes into the metadata.
        inputs: The models that it was made from, as `name:vN`.
    """

    run_dir: Path
    bundle: Path
    policy: str
    dataset: str
    step: int
    outcomes: Outcomes = field(default_factory=dict)
    metric: str = SUCCESS
    facts: Mapping[str, Any] = field(default_factory=dict)
    inputs: Sequence[str] = ()

    @property
    def name(self) -> str:
        """Its name in the store."""
        return slug(f"{self.policy}-{self.dataset}")


@dataclass(frozen=True)
class Comparison:
    """Whether a policy takes the alias `best` in the store.

    Attributes:
        is_best: Whether it does.
        why: Why, or why not.
        against: The version that has the alias now; None where none has.
        facts: Both policies' outcomes, for the metadata.
    """

    is_best: bool
    why: str
    against: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)


def publish_policy(
    candidate: Candidate,
    aliases: Sequence[str],
    *,
    may_be_best: bool,
    mirror: bool = True,
    rule: BestRule = "paired",
    trials: Trials | None = None,
) -> tuple[Published, str]:
    """Publishes a policy as `{policy}-{dataset}` with `latest`, `step-N`, the aliases, and `best` where it is that.

    Done again after a requeue it finds the same version. Where another run moves `best` meanwhile, the policy is
    compared with the one that has it then.

    Args:
        candidate: The policy.
        aliases: Beside `latest` and `step-N`.
        may_be_best: Whether it is its run's best, and may be the store's.
        mirror: Whether W&B gets it.
        rule: How it is compared with the best of other runs.
        trials: Tries policies; without it only what the metadata tell is compared.

    Returns:
        What was published, and why it is the best one or not.

    Raises:
        UserError: The store cannot be made where it should be, or the bundle is not whole.
        OSError: The disk is full or the store cannot be written.
    """
    store = open_store()
    facts = {
        "step": candidate.step,
        "policy": candidate.policy,
        "dataset": candidate.dataset,
        **candidate.facts,
        **_tried(candidate),
    }
    comparison = Comparison(False, "it is not its run's best")
    while True:
        if may_be_best:
            comparison = judge_best(store, candidate, rule=rule, trials=trials)
        given = [*aliases, BEST] if comparison.is_best else aliases
        try:
            published = publish(
                store,
                candidate.bundle,
                candidate.name,
                given,
                {**facts, COMPARISON: {"is_best": comparison.is_best, "why": comparison.why, **comparison.facts}},
                run_dir=candidate.run_dir if _run_id(candidate.run_dir) else None,
                inputs=candidate.inputs,
                mirror=mirror,
                expected={BEST: comparison.against} if comparison.is_best else None,
            )
        except AliasMoved as moved:
            print(f"{str(moved).splitlines()[0]}: judging again", flush=True)
            continue
        return published, comparison.why


def judge_best(
    store: Store, candidate: Candidate, *, rule: BestRule = "paired", trials: Trials | None = None
) -> Comparison:
    """Whether a policy takes the alias `best`, and why: the first one does, and one that is better beyond chance.

    What the best one of another run got on these seeds is read from its metadata, else it is tried on them here; where
    the difference may be chance, both are tried on fresh seeds.

    Args:
        store: The store.
        candidate: The policy.
        rule: As in `judge`.
        trials: Tries policies; without it what is not known stays so.
    """
    name = candidate.name
    state = store.state(name) if store.exists else State()
    number = state.aliases.get(BEST)
    if number is None:
        return Comparison(True, "it is the first")
    best = state.versions[number]
    run_id = _run_id(candidate.run_dir)
    if run_id is not None and best.run is not None and best.run["id"] == run_id:
        return Comparison(True, f"{name}:v{number} was this run's best before", number)
    if not candidate.outcomes:
        return Comparison(False, f"it was not evaluated; {_by_hand(name)}", number)
    try:
        return _compare(store, candidate, best, state, rule=rule, trials=trials)
    except TrialError as error:
        why = str(error)
    except UserError as error:
        why = str(error).splitlines()[0]
    return Comparison(False, f"{why}; {_by_hand(name)}", number)


def _compare(
    store: Store, candidate: Candidate, best: Version, state: State, *, rule: BestRule, trials: Trials | None
) -> Comparison:
    name, new = candidate.name, candidate.outcomes
    old: Outcomes = _outcomes(best.metadata, candidate.metric)
    there = store.folder(name, best)
    if trials is not None and old.keys() != new.keys():
        old = trials.on(there, sorted(new))
    if not old:
        return Comparison(False, f"{name}:v{best.number} was not evaluated; {_by_hand(name)}", best.number)
    judgement = judge(new, old, rule=rule)
    facts: dict[str, Any] = {"against": f"{name}:v{best.number}", "rule": rule, "outcomes_of_the_other": _values(old)}
    if judgement.confirm and trials is not None:
        seeds = trials.fresh(_seeds_of(state))
        fresh = (trials.on(candidate.bundle, seeds), trials.on(there, seeds))
        judgement = judge(new, old, rule=rule, fresh=fresh)
        facts |= {
            "fresh_seeds": list(seeds),
            "fresh_outcomes": _values(fresh[0]),
            "fresh_outcomes_of_the_other": _values(fresh[1]),
        }
    return Comparison(judgement.better, f"against {name}:v{best.number}: {judgement.reason}", best.number, facts)


def _by_hand(name: str) -> str:
    return f"to make it the best: python -m tracking.models alias {name}:latest {BEST}"


def _tried(candidate: Candidate) -> dict[str, Any]:
    """What a later run needs to compare itself with this policy; nothing where it was not tried."""
    if not candidate.outcomes:
        return {}
    return {
        "eval_metric": candidate.metric,
        "eval_seeds": sorted(candidate.outcomes),
        "eval_outcomes": _values(candidate.outcomes),
    }


def _values(outcomes: Outcomes) -> list[float]:
    """In the order of the seeds; successes and failures as 1 and 0."""
    return [int(value) if float(value).is_integer() else float(value) for _, value in sorted(outcomes.items())]


def _outcomes(facts: Mapping[str, Any], metric: str) -> dict[int, float]:
    seeds, outcomes = facts.get("eval_seeds") or [], facts.get("eval_outcomes") or []
    if len(seeds) != len(outcomes) or facts.get("eval_metric", SUCCESS) != metric:
        return {}
    return dict(zip(seeds, outcomes, strict=True))


def _seeds_of(state: State) -> Iterable[int]:
    """All seeds that any version of a name was tried on, as far as is known."""
    for version in (*state.versions.values(), *state.gone.values()):
        facts = version.metadata
        yield from facts.get("eval_seeds") or []
        yield from (facts.get(COMPARISON) or {}).get("fresh_seeds") or []
        yield facts.get(LAST_SEED, -1)


def _run_id(run_dir: Path) -> str | None:
    """None where nothing is tracked: then there is no run to name."""
    identity = read_identity(run_dir)
    return identity.run_id if identity is not None else None
