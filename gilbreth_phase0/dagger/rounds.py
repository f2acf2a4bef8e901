"""What a run of DAgger has done so far, and what it cost.

```
RUN/dagger.json                   what the run started from, and the rounds that are done: the cost curve
RUN/rounds/01/policy/             the policy that the round rolls out
RUN/rounds/01/rollouts/           its roll-outs, a file each
RUN/rounds/01/round.json          what came of them, and of the training on them
```
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gilbreth_phase0.dagger.rollout import RollOut
from tracking.files import read_json, write_json

RUN_FILE = "dagger.json"


@dataclass(frozen=True)
class Round:
    """One round: roll out with interventions, aggregate, train, evaluate.

    Attributes:
        number: From 1 on.
        roll_outs: How many there were, without those that a person discarded.
        discarded: How many those are.
        takeovers: How often the expert took over.
        expert_frames: Frames that the expert labelled: what the round cost.
        policy_frames: Frames that the policy executed.
        expert_executed: Frames that the expert executed.
        solved: Roll-outs that solved the task.
        solved_alone: Those among them without a takeover.
        dataset: Name of the dataset that they became.
        kept: Episodes of it that training keeps.
        spent: Takeovers of all roll-outs, those that a person discarded included; what the budget counts.
        is_trained: Whether the policy of this round is there.
        successes: Of its policy's evaluation; None without one.
        trials: Episodes of that.
    """

    number: int
    roll_outs: int
    discarded: int
    takeovers: int
    expert_frames: int
    policy_frames: int
    expert_executed: int
    solved: int
    solved_alone: int
    dataset: str | None = None
    kept: int = 0
    spent: int = 0
    is_trained: bool = False
    successes: int | None = None
    trials: int | None = None

    @property
    def switch_rate(self) -> float:
        """Takeovers for each frame that the policy executed."""
        return self.takeovers / max(self.policy_frames, 1)

    def metrics(self) -> dict[str, float]:
        """What the tracker logs of its roll-outs."""
        return {
            "dagger/round": float(self.number),
            "dagger/roll_outs": float(self.roll_outs),
            "dagger/interventions": float(self.takeovers),
            "dagger/expert_frames": float(self.expert_frames),
            "dagger/switch_rate": self.switch_rate,
            "dagger/rollout_success": self.solved / max(self.roll_outs, 1),
            "dagger/unaided_success": self.solved_alone / max(self.roll_outs, 1),
        }


def summarise(number: int, roll_outs: Iterator[RollOut]) -> Round:
    """Sums up the roll-outs of a round."""
    kept: list[RollOut] = []
    discarded = spent_in_all = 0
    for each in roll_outs:
        spent_in_all += each.takeovers
        if each.discarded:
            discarded += 1
        else:
            kept.append(each)
    by_expert = sum(int(each.by_expert.sum()) for each in kept)
    return Round(
        number=number,
        roll_outs=len(kept),
        discarded=discarded,
        takeovers=sum(each.takeovers for each in kept),
        expert_frames=sum(each.expert_frames for each in kept),
        policy_frames=sum(each.length for each in kept) - by_expert,
        expert_executed=by_expert,
        solved=sum(each.success for each in kept),
        solved_alone=sum(each.success and not each.takeovers for each in kept),
        spent=spent_in_all,
    )


@dataclass(frozen=True)
class Ledger:
    """The folders and records of a run's rounds.

    Attributes:
        run_dir: The run folder.
    """

    run_dir: Path

    def folder(self, number: int) -> Path:
        """The folder of a round."""
        return self.run_dir / "rounds" / f"{number:02d}"

    def read(self, number: int) -> Round | None:
        """What is known of a round whose roll-outs are all there."""
        found = read_json(self.folder(number) / "round.json")
        return Round(**found) if found is not None else None

    def write(self, found: Round) -> None:
        """Keeps what is known of a round."""
        write_json(self.folder(found.number) / "round.json", asdict(found))

    def rounds(self) -> list[Round]:
        """The rounds so far, in order."""
        numbers = range(1, 1 + len(list((self.run_dir / "rounds").glob("*/round.json"))))
        return [found for number in numbers if (found := self.read(number)) is not None]

    def facts(self) -> dict[str, Any]:
        """What was written down when the run began; empty before that."""
        return read_json(self.run_dir / RUN_FILE) or {}

    def keep_facts(self, **facts: Any) -> None:
        """Writes more of that down."""
        write_json(self.run_dir / RUN_FILE, {**self.facts(), **facts})


def evaluated(found: Round, successes: int | None, trials: int | None) -> Round:
    """The same round with its training and its evaluation done."""
    return replace(found, is_trained=True, successes=successes, trials=trials)


def spent(rounds: Sequence[Round]) -> int:
    """Takeovers of several rounds, as the budget counts them."""
    return sum(each.spent for each in rounds)
