"""W&B's client on behalf of others: runs that this process did not make, and uploads that were put aside."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.intents import Intent, acknowledge, changed_file

# W&B's own bound is 90 s; whatever is pushed waits, and a fresh attempt costs nothing.
_INIT_TIMEOUT_S = 30


def foreign_settings(**given: Any) -> Any:
    """Settings under which nothing of what this process does is recorded as what the run did.

    Args:
        given: What is known of the process that did it.

    Returns:
        A `wandb.Settings`.
    """
    import wandb

    return wandb.Settings(
        console="off",
        disable_code=True,
        disable_git=True,
        init_timeout=_INIT_TIMEOUT_S,
        save_code=False,
        silent=True,
        x_disable_meta=True,
        x_disable_stats=True,
        x_save_requirements=False,
        **given,
    )


def drop_changed(root: Path, path: Path, intent: Intent) -> str | None:
    """Drops an upload whose files are not what they were when it was put aside; it would go up under a false name.

    Args:
        root: What the intent's files are relative to.
        path: The intent's file.
        intent: It.

    Returns:
        The first file that was changed or removed; None where all are as they were.
    """
    changed = changed_file(root, intent)
    if changed is not None:
        acknowledge(path, {"dropped": f"{changed} was changed or removed before it could be uploaded"})
    return changed


def log_files(run: Any, intent: Intent, files: Mapping[str, Path]) -> Any:
    """Begins to upload an intent's files.

    Args:
        run: A `wandb.Run`, online.
        intent: What to upload.
        files: Where each file is, by its name in the artifact.

    Returns:
        The `wandb.Artifact`; whoever has waited for it calls `confirm`.
    """
    import wandb

    artifact = wandb.Artifact(intent.name, intent.type, intent.description, metadata=dict(intent.metadata))
    for name, file in files.items():
        # Without these W&B copies every file into the home folder's cache.
        artifact.add_file(str(file), name=name, policy="immutable", skip_cache=True)
    return run.log_artifact(artifact, aliases=list(dict.fromkeys(["latest", *intent.aliases])))


def confirm(path: Path, artifact: Any) -> str:
    """Acknowledges an upload that the server has committed.

    Args:
        path: The intent's file.
        artifact: The `wandb.Artifact`, which was waited for.

    Returns:
        W&B's name of it, `entity/project/name:v5`.

    Raises:
        RuntimeError: The server has not committed it.
    """
    if artifact.state != "COMMITTED":
        raise RuntimeError(f"the server has it as {artifact.state}")
    acknowledge(path, {"version": artifact.version, "artifact": artifact.qualified_name})
    return str(artifact.qualified_name)
