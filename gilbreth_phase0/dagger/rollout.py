"""A roll-out with interventions: who acted, what the expert would have done, and the file that keeps it."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gilbreth_phase0.acting import PolicyActor
from gilbreth_phase0.dagger.gates import Ending, Gate, Labeller, View
from gilbreth_phase0.dagger.machine import Interventions
from gilbreth_phase0.environments import ACTION, Observation, RobosuiteEnv, Vector
from gilbreth_phase0.rollout import Episode
from tracking.files import write_atomic


@dataclass(frozen=True)
class RollOut:
    """One roll-out, a row a step.

    Attributes:
        seed: What it started from.
        success: Whether the task was solved.
        reward: Sum of the shaped reward.
        takeovers: How often the expert took over.
        relabelled: Whether every frame is to be learnt from with the expert's label.
        discarded: Whether a person wants none of it.
        agent_pos: Shape (steps, 43).
        environment_state: Shape (steps, …).
        executed: The actions that were executed, shape (steps, 7).
        labels: The expert's, shape (steps, 7); NaN where it was not asked.
        by_expert: Whether the expert's action was executed, shape (steps,).
    """

    seed: int
    success: bool
    reward: float
    takeovers: int
    relabelled: bool
    discarded: bool
    agent_pos: Vector
    environment_state: Vector
    executed: Vector
    labels: Vector
    by_expert: npt.NDArray[np.bool_]

    @property
    def length(self) -> int:
        """Steps."""
        return len(self.executed)

    @property
    def expert_frames(self) -> int:
        """Frames that the expert labelled to be learnt from: what the roll-out cost."""
        return self.length if self.relabelled else int(self.by_expert.sum())

    @property
    def episode(self) -> Episode:
        """How it went, as of any episode."""
        return Episode(self.seed, self.success, self.length, self.reward)

    def write(self, path: Path) -> None:
        """Writes it to a file, whole or not at all."""
        buffer = io.BytesIO()
        np.savez_compressed(buffer, **{each.name: getattr(self, each.name) for each in fields(self)})
        write_atomic(path, buffer.getvalue())

    @classmethod
    def read(cls, path: Path) -> RollOut:
        """Reads what `write` wrote; nothing in it is executed."""
        with np.load(path, allow_pickle=False) as found:
            values: dict[str, Any] = {name: found[name] for name in found.files}
        return cls(**{name: value.item() if value.ndim == 0 else value for name, value in values.items()})


def roll_out(
    env: RobosuiteEnv, actor: PolicyActor, expert: Labeller, gate: Gate, *, seed: int, budget: int | None = None
) -> RollOut:
    """Runs a policy from a seed to the end, with the expert taking over where the gate wants it.

    Queued actions are dropped whenever somebody else takes the controls; while the expert has them, the policy is
    asked anew in each state.

    Args:
        env: Where.
        actor: The policy.
        expert: Labels, and acts in takeovers.
        gate: Says when.
        seed: Decides the start, and what the gate draws.
        budget: Takeovers that there may be; None for any number.
    """
    observation, _ = env.reset(seed=seed)
    gate.begin(seed)
    actor.reset()
    machine, rows = Interventions(budget), _Rows()
    reward = 0.0
    while True:
        if machine.expert_acts:
            actor.reset()
        proposal = actor.action(observation)
        label = expert.action(observation) if gate.needs_label else None
        steps_left = env.arguments.horizon - len(rows.executed)
        wanted = gate.event(View(machine.state, machine.since, steps_left, observation, reward, proposal, label))
        if isinstance(wanted, Ending):
            return rows.roll_out(seed, wanted is Ending.SUCCESS, machine, gate, discarded=wanted is Ending.DISCARD)
        if machine.apply(wanted):
            actor.reset()
            proposal = proposal if machine.expert_acts else actor.action(observation)
        if machine.expert_acts and label is None:
            label = expert.action(observation)
        executed = label if machine.expert_acts and label is not None else proposal
        rows.add(observation, executed, label, machine.expert_acts)
        observation, reward, terminated, truncated, info = env.step(executed)
        rows.reward += reward
        if terminated or truncated:
            return rows.roll_out(seed, info["is_success"], machine, gate)


class _Rows:
    def __init__(self) -> None:
        self.observations: list[Observation] = []
        self.executed: list[Vector] = []
        self.labels: list[Vector] = []
        self.by_expert: list[bool] = []
        self.reward = 0.0

    def add(self, observation: Observation, executed: Vector, label: Vector | None, by_expert: bool) -> None:
        self.observations.append(observation)
        self.executed.append(executed)
        self.labels.append(label if label is not None else np.full(len(ACTION), np.nan, dtype=np.float32))
        self.by_expert.append(by_expert)

    def roll_out(
        self, seed: int, success: bool, machine: Interventions, gate: Gate, discarded: bool = False
    ) -> RollOut:
        return RollOut(
            seed=seed,
            success=success,
            reward=self.reward,
            takeovers=machine.takeovers,
            relabelled=gate.relabels,
            discarded=discarded or not self.executed,
            agent_pos=_stack([each["agent_pos"] for each in self.observations]),
            environment_state=_stack([each["environment_state"] for each in self.observations]),
            executed=_stack(self.executed),
            labels=_stack(self.labels),
            by_expert=np.asarray(self.by_expert, dtype=np.bool_),
        )


def _stack(rows: list[Vector]) -> Vector:
    return np.stack(rows) if rows else np.zeros((0, 0), dtype=np.float32)
