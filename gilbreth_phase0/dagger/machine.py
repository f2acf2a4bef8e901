"""Who acts in a roll-out, as a state machine with every transition written down."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(Enum):
    """Who acts."""

    POLICY = "policy"
    TAKEOVER = "takeover"
    HANDED_BACK = "handed back"
    """The policy acts again, and automatic gates leave it alone for a while."""


class Event(Enum):
    """What changes that."""

    TAKE_OVER = "take over"
    HAND_BACK = "hand back"
    SETTLED = "settled"


TRANSITIONS = {
    (State.POLICY, Event.TAKE_OVER): State.TAKEOVER,
    (State.TAKEOVER, Event.HAND_BACK): State.HANDED_BACK,
    (State.HANDED_BACK, Event.TAKE_OVER): State.TAKEOVER,
    (State.HANDED_BACK, Event.SETTLED): State.POLICY,
}
"""All that can happen; anything else is a fault of the gate that wants it."""


class TransitionError(Exception):
    """A gate wants what cannot happen in this state."""


@dataclass
class Interventions:
    """The state of one roll-out, and what it may still cost.

    Attributes:
        budget: Takeovers that this roll-out may have; None for any number.
        state: Who acts.
        takeovers: How many there were.
        since: Steps that were done in this state.
    """

    budget: int | None = None
    state: State = State.POLICY
    takeovers: int = 0
    since: int = 0

    @property
    def expert_acts(self) -> bool:
        """Whether the expert is at the controls."""
        return self.state is State.TAKEOVER

    @property
    def is_spent(self) -> bool:
        """Whether no takeover is left."""
        return self.budget is not None and self.takeovers >= self.budget

    def apply(self, event: Event | None) -> bool:
        """Goes one step on.

        Args:
            event: What the gate wants; a takeover that the budget does not have does not happen.

        Returns:
            Whether somebody else acts now: queued actions are void then.

        Raises:
            TransitionError: It cannot happen in this state.
        """
        self.since += 1
        if event is None or (event is Event.TAKE_OVER and self.is_spent):
            return False
        before = self.expert_acts
        try:
            self.state = TRANSITIONS[self.state, event]
        except KeyError:
            raise TransitionError(f"{event.value!r} cannot happen in the state {self.state.value!r}") from None
        self.since = 1
        self.takeovers += event is Event.TAKE_OVER
        return self.expert_acts != before
