"""Whether a segment's rows are meant for W&B's server, for an offline folder, or for nothing."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal, cast

from tracking.errors import unknown

Mode = Literal["online", "offline", "disabled"]

_MODES = ("online", "offline", "disabled")


def decide_mode(mode: str | None, environ: Mapping[str, str] = os.environ) -> Mode:
    """Decides what is wanted: an explicit argument first, then `WANDB_MODE`, else online.

    Whether online is possible is the probe's to say; where it is not, the segment is an offline one.

    Args:
        mode: What the caller asked for, or None.
        environ: Where `WANDB_MODE` is looked up.

    Raises:
        UserError: The argument or the variable is not a mode.
    """
    for kind, given in (("mode", mode), ("WANDB_MODE", environ.get("WANDB_MODE") or None)):
        if given is not None:
            if given not in _MODES:
                raise unknown(kind, given, _MODES)
            return cast(Mode, given)
    return "online"
