"""Roll-outs made by hand, and workers that make them, for processes that must import both."""

from __future__ import annotations

import numpy as np

from gilbreth_phase0.dagger.rollout import RollOut
from tracking.errors import UserError


def made(by_expert, *, seed=5_000_000, success=True, relabelled=False, discarded=False):
    """A roll-out whose executed actions are the frame's number and whose labels are that plus 100."""
    flags = np.array(by_expert, dtype=bool)
    frames = np.arange(len(flags), dtype=np.float32)[:, None] * np.ones(7, dtype=np.float32)
    return RollOut(
        seed=seed,
        success=success,
        reward=float(len(flags)),
        takeovers=int((np.diff(np.concatenate([[0], flags.astype(int)])) == 1).sum()),
        relabelled=relabelled,
        discarded=discarded,
        agent_pos=np.repeat(frames[:, :1], 43, axis=1),
        environment_state=np.repeat(frames[:, :1], 10, axis=1),
        executed=frames,
        labels=frames + 100,
        by_expert=flags,
    )


class Toy:
    """A worker whose roll-out of a seed has a takeover for each step that the seed's last digit says."""

    def __call__(self, item):
        seed, budget = item
        wanted = seed % 10 if budget is None else min(seed % 10, budget)
        return made([1, 0] * wanted + [0], seed=seed)


class Fails:
    def __call__(self, item):
        raise UserError(f"no seed {item[0]}")
