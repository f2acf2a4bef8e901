"""Moving `best` in the store: by evaluations that lie in files, with the rule of `tracking.gate`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from tracking.errors import UserError, unknown
from tracking.files import read_json
from tracking.gate.best import BestRule, Judgement, judge


def read_outcomes(path: Path, metric: str = "success", policy: str = "trained") -> dict[int, float]:
    """What came out on each seed, by an `evaluation.json` or the run folder that holds it.

    Args:
        path: The file, or the folder.
        metric: Which value of an episode: `success`, `reward` or `length`.
        policy: Whose episodes, where the file has several policies'.

    Raises:
        UserError: It holds no episodes of this policy, or they do not have this value.
    """
    file = path / "evaluation.json" if path.is_dir() else path
    try:
        found = read_json(file)
    except ValueError as error:
        raise UserError(str(error)) from error
    if found is None:
        raise UserError(f"{file} does not exist\n  next: evaluate the policy (--stage eval)")
    results = found if isinstance(found, dict) else {}
    if "episodes" not in results and policy not in results:
        raise unknown(f"policy in {file}", policy, results)
    episodes: list[dict[str, Any]] = (results if "episodes" in results else results[policy])["episodes"]
    for episode in episodes:
        if metric not in episode or "seed" not in episode:
            raise unknown(f"value of an episode in {file}", metric, episode)
    return {int(episode["seed"]): float(episode[metric]) for episode in episodes}


def judge_files(
    new: Path, best: Path | None, fresh: tuple[Path, Path] | None, *, metric: str, rule: BestRule
) -> Judgement:
    """Compares two policies by their evaluations.

    Args:
        new: The new one's.
        best: The best one's so far, on the same seeds; None where there is none.
        fresh: Both on fresh seeds, the new one's first.
        metric: As in `read_outcomes`.
        rule: As in `judge`.

    Raises:
        UserError: As `read_outcomes` and `judge`.
    """
    return judge(
        read_outcomes(new, metric),
        None if best is None else read_outcomes(best, metric),
        rule=rule,
        fresh=None if fresh is None else (read_outcomes(fresh[0], metric), read_outcomes(fresh[1], metric)),
    )


def check_rule(given: str) -> BestRule:
    """Refuses what is no rule.

    Raises:
        UserError: Lists those that there are.
    """
    rules: tuple[BestRule, ...] = get_args(BestRule)
    for rule in rules:
        if given == rule:
            return rule
    raise unknown("best rule", given, rules)
