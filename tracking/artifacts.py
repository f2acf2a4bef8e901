"""Artifacts: the small ones that the tracker makes itself, and policies by the names that users have written down.

`put_config` and `put_diff` are the tracker's: the configuration and the diff of the working tree. The rest keeps an
older interface on top of the model store, which works without a network.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from collections.abc import Collection, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError
from tracking.files import write_atomic
from tracking.intents import Intent, put_intent
from tracking.names import slug

if TYPE_CHECKING:
    from tracking.store import Published, Store

CACHE_VARIABLE = "GILBRETH_ARTIFACT_CACHE"
_CACHE = "~/.cache/sir_wandb_artifacts"


def put_config(run_dir: Path, run_name: str, config: Mapping[str, Any]) -> Path:
    """Writes a configuration as YAML into the run folder and puts its upload aside.

    Args:
        run_dir: The run folder.
        run_name: What the artifact is named after.
        config: Plain values without secrets.

    Returns:
        The file, relative to the run folder.
    """
    import yaml

    text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
    return _put(run_dir, f"{slug(run_name)}-config", "config", "config.yaml", text)


def put_diff(run_dir: Path, run_name: str, diff: str) -> Path:
    """Writes the working tree's diff into the run folder and puts its upload aside; as `put_config`."""
    return _put(run_dir, f"{slug(run_name)}-diff", "diff", "diff.patch", diff)


def _put(run_dir: Path, name: str, kind: str, file_name: str, text: str) -> Path:
    content = text.encode()
    # Named after its content: what a waiting upload refers to never changes under it.
    stem, suffix = file_name.split(".")
    path = Path("artifacts") / f"{stem}-{hashlib.sha256(content).hexdigest()[:12]}.{suffix}"
    (run_dir / "artifacts").mkdir(exist_ok=True)
    if not (run_dir / path).exists():
        write_atomic(run_dir / path, content)
    put_intent(run_dir, Intent(name, kind, {file_name: str(path)}))
    return path


def upload_checkpoint_to_wandb(
    checkpoint_path: Path | str,
    artifact_name: str,
    artifact_type: str = "policy",
    description: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    *,
    run_dir: Path | None = None,
) -> Published:
    """Publishes a policy into the model store at once; its upload to W&B waits for a network.

    Args:
        checkpoint_path: The policy bundle.
        artifact_name: Its name. A name of the old forms (`act-lift-best-step-10000`) becomes the name `act-lift` and
            aliases (`best`, `step-10000`).
        artifact_type: Its type on W&B.
        description: Free text.
        metadata: For example what `create_artifact_metadata` makes.
        run_dir: The run that made it (`tracker.get_run_dir()`).

    Returns:
        What was published; `str()` of it is `act-lift:v3`.

    Raises:
        UserError: A file in it is not of a kind that is loaded from other people, or not whole.
    """
    from tracking.store import open_store, publish
    from tracking.store.reference import today

    name, aliases = today(slug(artifact_name))
    return publish(
        open_store(),
        Path(checkpoint_path),
        name,
        aliases,
        metadata,
        type=artifact_type,
        description=description,
        run_dir=run_dir,
    )


def download_checkpoint_from_wandb(artifact_identifier: str, download_dir: Path | str | None = None) -> Path:
    """Finds a policy: by `name:alias` in the model store, else on W&B; fetches only what is not here.

    Args:
        artifact_identifier: `name:alias`, `entity/project/name:alias` or a path. Without a project, what the store does
            not have is looked for in the W&B project of `WANDB_ENTITY` and `WANDB_PROJECT`; `name:v3` is the store's.
        download_dir: Where its files are copied to. Without it they stay where they are: in the store, or where there
            is none in `GILBRETH_ARTIFACT_CACHE` (`~/.cache/sir_wandb_artifacts`; name another one where the home is
            small).

    Returns:
        The folder with its files.

    Raises:
        UserError: There is no such policy, W&B cannot be asked, it holds what is not loaded from other people, or
            `download_dir` is a file or holds files of another model.
    """
    from tracking.store import open_store, resolve

    found = resolve(artifact_identifier, open_store(), into=_download_store())
    if found.note:
        print(f"note: {found.note}", file=sys.stderr)
    if download_dir is None:
        return found.path
    target = Path(download_dir)
    if target.exists() and not target.is_dir():
        raise UserError(f"{target} is a file; expected a folder to copy {found} into\n  next: name a folder")
    files = [found.path] if found.path.is_file() else [path for path in found.path.rglob("*") if path.is_file()]
    folder = found.path.parent if found.path.is_file() else found.path
    names = [file.relative_to(folder) for file in files]
    _refuse_mixture(target, names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, target / name)
    return target


def _refuse_mixture(target: Path, names: Collection[Path]) -> None:
    """Weights or settings of another model beside these would be loaded with them."""
    there = {path.relative_to(target) for path in target.rglob("*") if path.suffix in {".safetensors", ".json"}}
    if other := sorted(map(str, there - set(names))):
        raise UserError(
            f"{target} holds files of another model: {', '.join(other)}\n  next: name another folder, or empty this one"
        )


def list_checkpoints_from_wandb(artifact_type: str = "policy", project: str | None = None) -> list[dict[str, Any]]:
    """Lists the versions on W&B; the model store's own where W&B cannot be asked, which is said on stderr.

    Args:
        artifact_type: Their type.
        project: `entity/project` or `project`; by `WANDB_ENTITY` and `WANDB_PROJECT` where it is None.

    Returns:
        For each version `name` (`act-lift:v3`), `version`, `aliases`, `description`, `metadata`, `size` and
        `created_at`, newest first within a name.
    """
    from tracking.store import open_store
    from tracking.store.publish import default_target
    from tracking.store.remote import Unreachable, full_project, wandb_api

    try:
        api = wandb_api()
    except Unreachable as error:
        print(f"note: {error}; these are the model store's", file=sys.stderr)
        return list(_versions_of(open_store(), artifact_type))
    place = full_project(api, project or default_target())
    return [
        {
            "name": found.name,
            "version": found.version,
            "aliases": list(found.aliases),
            "description": found.description,
            "metadata": dict(found.metadata),
            "size": found.size,
            "created_at": found.created_at,
        }
        for collection in api.artifact_collections(place, artifact_type)
        for found in api.artifacts(artifact_type, f"{place}/{collection.name}")
    ]


def create_artifact_metadata(  # noqa: PLR0917 - its users pass them so
    repo_id: str,
    success_rate: float,
    avg_reward: float,
    step: int,
    is_best: bool = False,
    dataset_size: int = 0,
    checkpoint_index: int | None = None,
) -> dict[str, Any]:
    """What is worth knowing of a policy; numbers stay numbers, so that W&B can sort by them.

    Args:
        repo_id: The dataset.
        success_rate: Share of the evaluation's episodes, 0 to 1.
        avg_reward: Mean return of an episode.
        step: Training step.
        is_best: Whether it was the best so far.
        dataset_size: Frames that it was trained on.
        checkpoint_index: Which of the periodic checkpoints it is.
    """
    metadata = {
        "repo_id": repo_id,
        "success_rate": float(success_rate),
        "avg_reward": float(avg_reward),
        "step": int(step),
        "is_best": bool(is_best),
        "dataset_size": int(dataset_size),
    }
    return metadata if checkpoint_index is None else {**metadata, "checkpoint_index": int(checkpoint_index)}


def _download_store() -> Store:
    """Where versions from W&B go: the model store, so that jobs find them too, else a cache of the same form."""
    from tracking.store import Store, open_store

    store = open_store()
    if store.exists and not os.environ.get(CACHE_VARIABLE):
        return store
    return Store(Path(os.environ.get(CACHE_VARIABLE) or _CACHE).expanduser().absolute())


def _versions_of(store: Store, artifact_type: str) -> Iterator[dict[str, Any]]:
    for name in store.names():
        state = store.state(name)
        for number, version in sorted(state.versions.items(), reverse=True):
            if version.type == artifact_type:
                yield {
                    "name": f"{name}:v{number}",
                    "version": f"v{number}",
                    "aliases": state.aliases_of(number),
                    "description": version.description,
                    "metadata": dict(version.metadata),
                    "size": version.bytes,
                    "created_at": _iso(version.time),
                }


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
