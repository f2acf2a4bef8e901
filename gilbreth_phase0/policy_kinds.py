"""Which of LeRobot's policies are trained here, and what differs between them: another one is another row.

Nothing heavy is imported, so that arguments are checked before LeRobot is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tracking.errors import UserError, unknown

PolicyName = Literal["act", "diffusion"]


@dataclass(frozen=True)
class PolicyKind:
    """One of LeRobot's policies.

    Attributes:
        chunk: The field of its configuration that says how many actions it predicts at once.
        defaults: Fields whose value here is not LeRobot's.
        starts_in_the_past: Whether a chunk begins at the oldest observation, not at the newest.
        loss_mask: The field that keeps padded actions out of the loss; None where they never are in it.
        halvings: The field with an entry for each time that a chunk is halved, so that it must be even so often.
        derived: Fields that follow from others.
    """

    chunk: str
    defaults: Mapping[str, Any] = field(default_factory=dict)
    starts_in_the_past: bool = False
    loss_mask: str | None = None
    halvings: str | None = None
    derived: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda _: {}


_DIFFUSION: Mapping[str, Any] = {"n_obs_steps": 2, "horizon": 16, "n_action_steps": 8, "down_dims": (512, 1024, 2048)}
"""LeRobot's own, by which the fields that are not given are known before it is imported."""


def _last_frames(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """Frames at an episode's end that begin no chunk; LeRobot's 7 is this for its own chunk alone."""
    return {"drop_n_last_frames": settings["horizon"] - settings["n_action_steps"] - settings["n_obs_steps"] + 1}


POLICIES: Mapping[str, PolicyKind] = {
    "act": PolicyKind("chunk_size", {"n_obs_steps": 1, "chunk_size": 10, "n_action_steps": 5}),
    "diffusion": PolicyKind(
        "horizon",
        _DIFFUSION,
        starts_in_the_past=True,
        loss_mask="do_mask_loss_for_padding",
        halvings="down_dims",
        derived=_last_frames,
    ),
}


def settings_of(policy: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Completes the fields of a policy's configuration.

    Args:
        policy: One of `POLICIES`.
        given: Fields that were given, `action_chunk_size` (None is not given) whatever the policy calls it.

    Raises:
        UserError: The policy is unknown, or the fields do not go together.
    """
    if policy not in POLICIES:
        raise unknown("policy", policy, POLICIES)
    kind = POLICIES[policy]
    named = {kind.chunk if name == "action_chunk_size" else name: value for name, value in given.items()}
    settings = {**kind.defaults, **{name: value for name, value in named.items() if value is not None}}
    _check_chunk(kind, settings)
    return {**kind.derived(settings), **settings}


def _check_chunk(kind: PolicyKind, settings: Mapping[str, Any]) -> None:
    chunk, executed, seen = (settings[name] for name in (kind.chunk, "n_action_steps", "n_obs_steps"))
    for name in (kind.chunk, "n_action_steps", "n_obs_steps"):
        if not isinstance(settings[name], int) or settings[name] < 1:
            raise UserError(f"--policy-settings {name}={settings[name]!r}: expected a whole number from 1 on")
    left = chunk - (seen - 1) if kind.starts_in_the_past else chunk
    if executed > left:
        past = f"; {seen - 1} of its {chunk} belong to the past (--n-obs-steps {seen})" if left < chunk else ""
        raise UserError(
            f"--n-action-steps {executed}: only the {max(left, 0)} actions of a chunk (--action-chunk-size) can be"
            f" executed{past}"
        )
    stages = settings.get(kind.halvings) if kind.halvings is not None else None
    if isinstance(stages, list | tuple) and chunk % 2 ** len(stages):  # what is no list is LeRobot's to refuse
        whole = 2 ** len(stages)
        raise UserError(
            f"--action-chunk-size {chunk}: it is halved {len(stages)} times ({kind.halvings}), so it must be a multiple"
            f" of {whole}, for example {-(-chunk // whole) * whole}"
        )
