"""Which files a model is made of, what it may be called, and which training step it is of."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from tracking.errors import UserError

_SHARDS = ("*_optim_states.pt", "*mp_rank_*_model_states.pt", "zero_pp_rank_*")
_STEP = re.compile(r"(?:^|[-_.])(?:global_?step|step|checkpoint)[-_]?0*(\d+)(?!\d)")
_VERSION = re.compile(r"v\d+")


def model_files(path: Path, caller: str) -> dict[str, Path]:
    """The files of a model by their names in the artifact; looks at them and reads none.

    Args:
        path: A file, or a folder whose files all belong to the model; either may be reached through a link.
        caller: Who asks, for the message.

    Raises:
        UserError: The path is missing, empty, leads out of itself or in a circle, or is a part of a sharded checkpoint.
    """
    files = all_files(path, caller)
    shard = next((name for name in files if any(fnmatchcase(Path(name).name, pattern) for pattern in _SHARDS)), None)
    if shard is not None:
        raise UserError(
            f"{caller}: {path} is a DeepSpeed checkpoint, or a part of one ({shard}), and no model: its shards are of "
            "use only to the job that saved them\n"
            "  next: give a policy bundle (RUN/bundle), or consolidate it first:\n"
            "        python -m tracking.consolidate CHECKPOINT model.safetensors\n"
            "  (log_checkpoint does that by itself for the folder that holds the shards)"
        )
    return files


def all_files(path: Path, caller: str) -> dict[str, Path]:
    """As `model_files`, whatever the files are."""
    try:
        root = path.resolve(strict=True)
    except OSError as error:
        raise UserError(
            f"{caller}: {path}: {error.strerror}; expected a file or folder that has been saved\n"
            "  next: call it after the save, with the path that was written"
        ) from error
    except RuntimeError as error:  # what Python makes of a loop of links
        raise _endless(path, caller) from error
    files = {path.name: root} if root.is_file() else _files_below(path, root, caller)
    if not files:
        raise UserError(f"{caller}: {path} holds no file; expected a file or folder that has been saved")
    return files


def sharded_checkpoint(path: Path) -> Path | None:
    """The folder with the shards, where `path` is a DeepSpeed checkpoint or the folder with its tags and `latest`.

    Raises:
        UserError: `latest` names no checkpoint.
    """
    if not path.is_dir():
        return None
    if any(next(path.glob(pattern), None) for pattern in _SHARDS):
        return path
    from tracking.checkpoints import LATEST  # a package of its own, which most models do not need

    if not (path / LATEST).is_file() or (path / LATEST).is_symlink():
        return None
    from tracking.consolidate.layout import find_checkpoint

    return find_checkpoint(path)


def _files_below(path: Path, root: Path, caller: str) -> dict[str, Path]:
    files: dict[str, Path] = {}
    # A folder, its name in the artifact, and the folders that lead to it.
    waiting: list[tuple[Path, str, tuple[Path, ...]]] = [(root, "", (root,))]
    while waiting:
        folder, prefix, way = waiting.pop()
        for entry in sorted(folder.iterdir()):
            target = _target(entry, path, root, caller)
            name = f"{prefix}{entry.name}"
            if target.is_dir():
                if target in way:
                    raise _endless(entry, caller)
                waiting.append((target, f"{name}/", (*way, target)))
            elif target.is_file():
                files[name] = target
            else:
                raise UserError(
                    f"{caller}: {entry} is no file that could be uploaded (a broken link or a device)\n"
                    "  next: remove it from the folder"
                )
    return files


def _target(entry: Path, path: Path, root: Path, caller: str) -> Path:
    try:
        target = entry.resolve()
    except RuntimeError as error:
        raise _endless(entry, caller) from error
    if not target.is_relative_to(root):
        raise UserError(
            f"{caller}: {entry} is a link out of {path}, to {target}\n"
            "  next: put the file itself into the folder (cp -L), or leave it out"
        )
    return target


def _endless(link: Path, caller: str) -> UserError:
    return UserError(
        f"{caller}: {link} is a link that leads in a circle\n  next: remove it (rm {shlex.quote(str(link))})"
    )


def check_alias(alias: str, caller: str) -> None:
    """Refuses what W&B does not take as an alias.

    Raises:
        UserError: The alias is empty, holds a sign that W&B gives a meaning, or looks like a version.
    """
    if not alias or any(sign in alias for sign in "/:,") or alias.strip() != alias or _VERSION.fullmatch(alias):
        raise UserError(
            f"{caller}: {alias!r} cannot be an alias: W&B has no '/', ':' or ',' in one, and gives v0, v1, … "
            "itself\n  try: best, final or step-1000"
        )


def step_of(path: Path, aliases: Sequence[str] = (), metadata: Mapping[str, object] | None = None) -> int | None:
    """The training step that the metadata, an alias, the path's own name or its folder's name tells."""
    given = (metadata or {}).get("step")
    if isinstance(given, int) and not isinstance(given, bool):
        return given
    for text in (*aliases, path.name, path.absolute().parent.name):
        if found := _STEP.search(text):
            return int(found[1])
    return None
