"""A model on its way to W&B: what `log_checkpoint` checks and puts aside.

The files stay where they are. The training process reads their sizes and times only, so that a large model costs it
nothing; whether they are still the same is checked before they are uploaded. Of a DeepSpeed checkpoint it reads where
each tensor lies, besides, which tells at once whether it can be consolidated and how large that will be. Who uploads
it consolidates it, so that training does not wait and an offline run needs no second copy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tracking.errors import unknown
from tracking.intents import Intent, stamp
from tracking.models.files import all_files, check_alias, model_files, sharded_checkpoint, step_of
from tracking.names import slug
from tracking.words import many, size

_OFF = ("", "0", "false", "no", "off")
_ON = ("1", "true", "yes", "on")
_CALLER = "log_checkpoint"
_LARGE = 5e9


def uploads_wanted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether `WANDB_LOG_MODEL` asks for checkpoints to be uploaded; it does not by default.

    Raises:
        UserError: The variable says neither yes nor no.
    """
    given = environ.get("WANDB_LOG_MODEL", "").lower()
    if given not in _OFF + _ON:
        raise unknown("WANDB_LOG_MODEL", given, [*filter(None, _OFF), *_ON])
    return given in _ON


def model_name(tags: Any, run_name: str) -> str:
    """What the artifact is called: `{model}-{dataset}`, or after the run where the tags are a plain list."""
    if isinstance(tags, Mapping):
        return slug(f"{tags['model']}-{tags['dataset']}")
    return slug(f"{run_name}-model")


def model_intent(name: str, path: Path, aliases: Sequence[str] | str, run_dir: Path, run_id: str) -> Intent:
    """Describes the upload of a model; of a DeepSpeed checkpoint it reads where the weights lie, of others nothing.

    Args:
        name: The artifact's name.
        path: A file, a folder whose files all belong to the model, or a DeepSpeed checkpoint with or without our
            manifest: the folder of a tag, or the one with the tags and `latest`. May be reached through a link.
        aliases: Names of this version; `step-N` and `stepN` are added where the name of `path` tells the step.
        run_dir: The run folder.
        run_id: The run that made the model.

    Raises:
        UserError: The path is missing, empty, leads out of itself or in a circle, or is a part of a checkpoint; a
            checkpoint is not whole or of a layout that is not consolidated; an alias is not valid.
    """
    names = [aliases] if isinstance(aliases, str) else list(aliases)
    for alias in names:
        check_alias(alias, _CALLER)
    if (checkpoint := sharded_checkpoint(path)) is not None:
        path = checkpoint = checkpoint.resolve()
        files = all_files(checkpoint, _CALLER)
        total = _consolidated_size(checkpoint)
    else:
        files = model_files(path, _CALLER)
        total = sum(file.stat().st_size for file in files.values())
    step = step_of(path, names)
    if step is not None:
        names += [f"step-{step}", f"step{step}"]
    return Intent(
        name,
        "model",
        {name: _from(run_dir, file) for name, file in files.items()},
        aliases=tuple(dict.fromkeys(names)),
        metadata={"step": step, "run_id": run_id, "bytes": total},
        stamps={name: stamp(file) for name, file in files.items()},
        consolidate=_from(run_dir, checkpoint) if checkpoint is not None else None,
    )


def _consolidated_size(checkpoint: Path) -> int:
    from tracking.consolidate.plan import make_plan

    return sum(entry.nbytes for entry in make_plan(checkpoint, "F32").entries)


def describe(intent: Intent) -> str:
    """What is to be uploaded, and how much it is: `2 files, 3.0 MB; best, step-100`."""
    what = "consolidated weights" if intent.consolidate else many(len(intent.files), "file")
    return f"{what}, {size(intent.metadata['bytes'])}; {', '.join(intent.aliases) or 'no alias'}"


def is_large(intent: Intent) -> bool:
    """Whether it is more than W&B should be given without a thought: 5 GB."""
    return bool(intent.metadata["bytes"] > _LARGE)


def _from(run_dir: Path, file: Path) -> str:
    """The file relative to the run folder where it is in there, so that the folder may be moved."""
    root = run_dir.resolve()
    return str(file.relative_to(root) if file.is_relative_to(root) else file)
