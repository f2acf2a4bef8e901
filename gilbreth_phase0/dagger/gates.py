"""When the expert is asked for: gates, each asked before every step of a roll-out.

A gate sees one roll-out at a time and draws from its seed alone, so that a roll-out follows from the policy, the gate
and the seed, whichever process has it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol

import numpy as np
import numpy.typing as npt

from gilbreth_phase0.dagger.machine import Event, State
from gilbreth_phase0.environments import Observation, Vector

Schedule = Literal["linear", "exponential"]


class Ending(Enum):
    """What ends a roll-out before its time; only a person wants that."""

    SUCCESS = "success"
    DISCARD = "discard"
    NEXT = "next"


@dataclass(frozen=True)
class View:
    """What a gate may look at before a step.

    Attributes:
        state: Who acts.
        since: Steps that were done in this state.
        steps_left: Until the roll-out is truncated.
        observation: What is seen.
        reward: The shaped reward of the step before.
        proposal: What the policy would do, shape (7,).
        label: What the expert would do, shape (7,); None for a gate that does not need it.
    """

    state: State
    since: int
    steps_left: int
    observation: Observation
    reward: float
    proposal: Vector
    label: Vector | None


class Labeller(Protocol):
    """An expert, or a policy that is asked like one: says what it would do in a state, whatever was done before."""

    def action(self, observation: Observation) -> Vector:
        """The action, shape (7,)."""


class Gate(Protocol):
    """Decides who acts next.

    Attributes:
        needs_label: Whether it looks at what the expert would do, at every step.
        relabels: Whether every frame gets the expert's label, whoever acted; else only the expert's own frames count.
    """

    needs_label: bool
    relabels: bool

    def begin(self, seed: int) -> None:
        """Begins a roll-out."""

    def event(self, view: View) -> Event | Ending | None:
        """What is to change before the next step."""


def beta(schedule: Schedule, round_number: int, rounds: int, base: float = 0.5) -> float:
    """The share of steps that the expert executes in a round of DAgger.

    Args:
        schedule: `linear` falls to 0 in the last round; `exponential` is base to the power of the round (Ross et al.,
            2011, section 4, where round 0 is what the initial policy was trained on).
        round_number: From 1 on.
        rounds: How many there are.
        base: Of the exponential.
    """
    return 1 - round_number / rounds if schedule == "linear" else float(base**round_number)


@dataclass
class BetaMixing:
    """At each step the expert acts with a probability of β; every frame gets its label."""

    beta: float
    needs_label: bool = True
    relabels: bool = True

    def begin(self, seed: int) -> None:
        """Begins a roll-out."""
        self._random = np.random.default_rng((seed, 1))

    def event(self, view: View) -> Event | None:
        """Draws who acts in the next step."""
        wanted = self._random.random() < self.beta
        if wanted == (view.state is State.TAKEOVER):
            return None
        return Event.TAKE_OVER if wanted else Event.HAND_BACK


@dataclass
class Patience:
    """How long a state lasts at least under an automatic gate, steps.

    Attributes:
        takeover: Before the expert may hand back.
        settle: Before the policy, handed back to, may be interrupted again; two in any case.
    """

    takeover: int = 10
    settle: int = 5


@dataclass
class RandomGate:
    """Takes over at a policy's step with a fixed probability, for a fixed time."""

    frequency: float
    patience: Patience = field(default_factory=Patience)
    needs_label: bool = False
    relabels: bool = False

    def begin(self, seed: int) -> None:
        """Begins a roll-out."""
        self._random = np.random.default_rng((seed, 2))

    def event(self, view: View) -> Event | None:
        """Draws at the policy's steps; counts at the expert's."""
        drawn = self._random.random() < self.frequency
        return _automatic(view, self.patience, ask=drawn, release=True)


@dataclass
class OracleGate:
    """Takes over where the expert sees that it goes wrong.

    Attributes:
        disagreement: Mean distance between the policy's and the expert's action over the window (root mean square over
            the 7 numbers, each within ±1) from which the expert takes over.
        agreement: The distance below which it hands back.
        no_progress: Steps without a new greatest reward after which it takes over.
        near_timeout: Steps before the end at which it takes over for good; what is left must be enough to solve the
            task.
        window: Steps that the mean is taken over.
        patience: How long a state lasts at least.
    """

    disagreement: float = 0.6
    agreement: float = 0.2
    no_progress: int = 40
    near_timeout: int = 80
    window: int = 5
    patience: Patience = field(default_factory=Patience)
    needs_label: bool = True
    relabels: bool = False

    def begin(self, seed: int) -> None:
        """Begins a roll-out; nothing is drawn."""
        del seed
        self._distances: deque[float] = deque(maxlen=self.window)
        self._greatest, self._stuck = -np.inf, 0

    def event(self, view: View) -> Event | None:
        """Compares the two actions, the progress and the time that is left."""
        assert view.label is not None
        self._distances.append(distance(view.proposal, view.label))
        is_better = view.reward > self._greatest
        # What the expert's own steps gain is no progress of the policy, and a fresh start for it.
        self._stuck = 0 if is_better or view.state is not State.POLICY else self._stuck + 1
        self._greatest = max(self._greatest, view.reward)
        mean = float(np.mean(self._distances))
        late = view.steps_left <= self.near_timeout
        full = len(self._distances) == self.window
        ask = late or self._stuck >= self.no_progress or (full and mean > self.disagreement)
        event = _automatic(view, self.patience, ask=ask, release=full and mean < self.agreement and not late)
        if event is not None:
            self._distances.clear()
        return event


@dataclass
class EnsembleGate:
    """Takes over where several policies do not agree on what to do.

    Attributes:
        members: The policies beside the acting one.
        threshold: The doubt from which the expert takes over; `calibrated` finds the one of a wanted switch rate.
        patience: How long a state lasts at least.
    """

    members: Sequence[Labeller]
    threshold: float
    patience: Patience = field(default_factory=Patience)
    needs_label: bool = False
    relabels: bool = False

    def begin(self, seed: int) -> None:
        """Begins a roll-out; nothing is drawn."""
        del seed
        self.doubts: list[float] = []

    def event(self, view: View) -> Event | None:
        """Compares the policies; their standard deviation, averaged over the 7 numbers, is the doubt."""
        actions = [view.proposal, *(member.action(view.observation) for member in self.members)]
        self.doubts.append(float(np.std(actions, axis=0).mean()))
        doubts = self.doubts[-1] > self.threshold
        return _automatic(view, self.patience, ask=doubts, release=not doubts)


def calibrated(doubts: Sequence[Sequence[float]], rate: float, patience: Patience) -> float:
    """The least threshold at which an ensemble gate would take over at no more than a share of the policy's steps.

    Args:
        doubts: What roll-outs of the policy alone gave at each step.
        rate: The wanted switch rate: takeovers for each step of the policy.
        patience: As the gate has it; while the expert would act, nothing is counted.

    Returns:
        The threshold, one of the doubts themselves; the greatest where even that is too often.
    """
    values = np.unique(np.concatenate([np.asarray(each, dtype=np.float64) for each in doubts]))
    low, high = 0, len(values) - 1
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if _switch_rate(doubts, values[middle], patience) <= rate else (middle + 1, high)
    return float(values[low])


def _switch_rate(doubts: Sequence[Sequence[float]], threshold: float, patience: Patience) -> float:
    takeovers = steps = 0
    for each in doubts:
        next_step = 0
        for step, doubt in enumerate(each):
            if step < next_step:
                continue
            steps += 1
            if doubt > threshold:
                takeovers += 1
                next_step = step + patience.takeover + max(patience.settle, 2)
    return takeovers / max(steps, 1)


def distance(ours: npt.NDArray[np.floating], theirs: npt.NDArray[np.floating]) -> float:
    """Root mean square of the difference of two actions."""
    return float(np.sqrt(np.mean(np.square(ours - theirs))))


def _automatic(view: View, patience: Patience, *, ask: bool, release: bool) -> Event | None:
    if view.state is State.TAKEOVER:
        return Event.HAND_BACK if release and view.since >= patience.takeover else None
    if view.state is State.HANDED_BACK:
        return Event.SETTLED if view.since >= patience.settle - 1 else None
    return Event.TAKE_OVER if ask else None
