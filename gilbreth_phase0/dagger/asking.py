"""From the arguments to who corrects, and when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from gilbreth_phase0.dagger.beginning import Start
from gilbreth_phase0.dagger.collection import RollOutWorker, Setup, Worker
from gilbreth_phase0.dagger.gates import (
    BetaMixing,
    EnsembleGate,
    Gate,
    OracleGate,
    Patience,
    RandomGate,
    beta,
    calibrated,
)
from gilbreth_phase0.dagger.rounds import Ledger
from gilbreth_phase0.seeds import CALIBRATION
from gilbreth_phase0.workers import ordered_map
from tracking.files import read_json, write_json

if TYPE_CHECKING:
    from gilbreth_phase0.train_dagger import Arguments

_CALIBRATIONS = 6


def make_gate(arguments: Arguments, start: Start, ledger: Ledger, number: int) -> Gate | None:
    """Makes the gate of a round; an ensemble's threshold is found from roll-outs of the policy alone, once a round.

    Args:
        arguments: The program's.
        start: What the run began from.
        ledger: Of the run.
        number: The round.

    Returns:
        The gate; None where a person decides.
    """
    if start.person is not None:
        return None
    patience = Patience(arguments.takeover_steps, arguments.settle_steps)
    if arguments.gate == "beta":
        return BetaMixing(beta(arguments.beta_schedule, number, arguments.rounds, arguments.beta_base))
    if arguments.gate == "random":
        return RandomGate(arguments.intervention_frequency, patience)
    if arguments.gate == "oracle":
        return OracleGate(
            disagreement=arguments.disagreement,
            agreement=arguments.agreement,
            no_progress=arguments.no_progress,
            near_timeout=arguments.near_timeout,
            patience=patience,
        )
    gate = EnsembleGate([start.asked(member) for member in start.members], float("inf"), patience)
    path = ledger.folder(number) / "threshold.json"
    known = read_json(path)
    if known is None:
        setup = Setup(start.environment, ledger.folder(number) / "policy", gate, start.policy_expert)
        seeds = CALIBRATION[:_CALIBRATIONS]
        with ordered_map(partial(DoubtWorker, setup), seeds, arguments.rollout_workers) as doubts:
            known = {"threshold": calibrated(list(doubts), arguments.switch_rate, patience)}
        write_json(path, known)
    return replace(gate, threshold=known["threshold"])


class DoubtWorker:
    """Rolls a policy out alone, and tells the doubt at each step."""

    def __init__(self, setup: Setup) -> None:
        """Takes a setup whose gate is an ensemble's with an endless threshold."""
        self._gate = setup.gate
        self._worker = RollOutWorker(setup)

    def __call__(self, seed: int) -> list[float]:
        """The doubts of a roll-out."""
        assert isinstance(self._gate, EnsembleGate)
        self._worker((seed, None))
        return self._gate.doubts


def make_worker(start: Start, policy: Path, gate: Gate | None) -> Callable[[], Worker]:
    """Makes what makes the roll-outs of a round.

    Args:
        start: What the run began from.
        policy: The bundle of the policy that is rolled out.
        gate: When the expert takes over; a person decides that for itself.
    """
    setup = Setup(start.environment, policy, gate, start.policy_expert)
    if start.person is None:
        return partial(RollOutWorker, setup)
    from gilbreth_phase0.dagger.human import PersonWorker

    return partial(PersonWorker, setup, start.person)
