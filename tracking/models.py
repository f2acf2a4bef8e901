"""A model on its way to W&B: what `log_checkpoint` checks and puts aside.

The files stay where they are. The training process reads their sizes and times only, so that a large model costs it
nothing; whether they are still the same is checked before they are uploaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tracking.errors import UserError, unknown
from tracking.intents import Intent, stamp
from tracking.names import slug

_OFF = ("", "0", "false", "no", "off")
_ON = ("1", "true", "yes", "on")

_SHARDS = ("*_optim_states.pt", "*mp_rank_*_model_states.pt", "zero_pp_rank_*")
_STEP = re.compile(r"(?:^|[-_.])(?:global_?step|step|checkpoint)[-_]?0*(\d+)(?!\d)")
_VERSION = re.compile(r"v\d+")


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
    """Describes the upload of a model; looks at its files and reads none.

    Args:
        name: The artifact's name.
        path: A file, or a folder whose files all belong to the model; either may be reached through a link.
        aliases: Names of this version; `step-N` is added where the name of `path` tells the step.
        run_dir: The run folder.
        run_id: The run that made the model.

    Raises:
        UserError: The path is missing, empty, leads out of itself or is a sharded checkpoint; an alias is not valid.
    """
    files = _files(path)
    _refuse_shards(path, files)
    names = [aliases] if isinstance(aliases, str) else list(aliases)
    for alias in names:
        _check_alias(alias)
    step = _step(path, names)
    if step is not None:
        names.append(f"step-{step}")
    stamps = {name: stamp(file) for name, file in files.items()}
    return Intent(
        name,
        "model",
        {name: _from(run_dir, file) for name, file in files.items()},
        aliases=tuple(dict.fromkeys(names)),
        metadata={"step": step, "run_id": run_id, "bytes": sum(size for size, _ in stamps.values())},
        stamps=stamps,
    )


def _files(path: Path) -> dict[str, Path]:
    """The files of a model by their names in the artifact."""
    try:
        root = path.resolve(strict=True)
    except OSError as error:
        raise UserError(
            f"log_checkpoint: {path}: {error.strerror}; expected a file or folder that has been saved\n"
            "  next: call it after the save, with the path that was written"
        ) from error
    if root.is_file():
        return {path.name: root}
    files: dict[str, Path] = {}
    for folder, folders, names in os.walk(root):
        links = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted([*names, *links]):
            file = Path(folder) / name
            target = file.resolve()
            if not target.is_relative_to(root):
                raise UserError(
                    f"log_checkpoint: {file} is a link out of {path}, to {target}\n"
                    "  next: put the file itself into the folder (cp -L), or leave it out"
                )
            if name in links or not target.is_file():
                raise UserError(
                    f"log_checkpoint: {file} is no file that could be uploaded (a broken link, a linked folder or a "
                    "device)\n  next: remove it from the folder"
                )
            files[file.relative_to(root).as_posix()] = target
    if not files:
        raise UserError(f"log_checkpoint: {path} holds no file; expected a file or folder that has been saved")
    return files


def _refuse_shards(path: Path, files: Mapping[str, Path]) -> None:
    shard = next((name for name in files if any(fnmatchcase(Path(name).name, pattern) for pattern in _SHARDS)), None)
    if shard is not None:
        raise UserError(
            f"log_checkpoint: {path} is a DeepSpeed checkpoint ({shard}): its parts are of use only to the job that "
            "saved them, and are not uploaded.\n"
            "  next: give the policy bundle (RUN/bundle) or a file with consolidated weights (zero_to_fp32)"
        )


def _check_alias(alias: str) -> None:
    if not alias or any(sign in alias for sign in "/:,") or _VERSION.fullmatch(alias):
        raise UserError(
            f"log_checkpoint: {alias!r} cannot be an alias: W&B has no '/', ':' or ',' in one, and gives v0, v1, … "
            "itself\n  try: best, final or step-1000"
        )


def _step(path: Path, aliases: Sequence[str]) -> int | None:
    """The training step that an alias, the path's own name or its folder's name tells."""
    for text in (*aliases, path.name, path.absolute().parent.name):
        if found := _STEP.search(text):
            return int(found[1])
    return None


def _from(run_dir: Path, file: Path) -> str:
    """The file relative to the run folder where it is in there, so that the folder may be moved."""
    root = run_dir.resolve()
    return str(file.relative_to(root) if file.is_relative_to(root) else file)
