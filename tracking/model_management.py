"""Weights of any `torch.nn.Module` by name: an older interface on top of the model store.

Weights are safetensors wherever they go; nothing here loads a pickle.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tracking.errors import UserError, unknown
from tracking.files import beside, fsync_dir, fsync_file
from tracking.ranks import is_main_process

if TYPE_CHECKING:
    import torch

    from tracking.store import Published, Store
    from tracking.tracker import ExperimentTracker

WEIGHTS = "model.safetensors"


def upload_model_to_wandb(
    model_state_dict: Mapping[str, Any],
    step: int,
    model_alias: str = "latest",
    *,
    name: str = "model",
    metadata: Mapping[str, Any] | None = None,
    tracker: ExperimentTracker | None = None,
    store: Store | None = None,
) -> Published | None:
    """Publishes weights into the model store at once; their upload to W&B waits for a network.

    Args:
        model_state_dict: `model.state_dict()`.
        step: The training step.
        model_alias: Its alias beside `latest` and `step-N`.
        name: The model's name.
        metadata: What is worth knowing.
        tracker: Logs `model/total_parameters` and `model/file_size_mb`, and W&B shows the model as its run's.
        store: The model store; `GILBRETH_STORE` or `./models` where it is None.

    Returns:
        What was published; None on other ranks than 0, where nothing happens.

    Raises:
        UserError: The state holds something that is no tensor, or a name cannot be one.
    """
    if not is_main_process():
        return None
    from tracking.store import open_store, publish

    store = store or open_store()
    store.make()
    scratch = store.incoming()
    try:
        save_weights(model_state_dict, scratch / WEIGHTS)
        facts = {
            **(metadata or {}),
            "step": step,
            "total_parameters": sum(value.numel() for value in model_state_dict.values()),
        }
        done = publish(
            store,
            scratch,
            name,
            [] if model_alias == "latest" else model_alias,
            facts,
            type="model",
            run_dir=tracker.get_run_dir() if tracker is not None else None,
        )
    finally:
        (scratch / WEIGHTS).unlink(missing_ok=True)
        scratch.rmdir()
    if tracker is not None:
        sizes = {"total_parameters": facts["total_parameters"], "file_size_mb": done.version.bytes / 1e6}
        tracker.log_metrics({f"model/{key}": value for key, value in sizes.items()}, step)
    return done


def save_and_upload_best_model(
    model_state_dict: Mapping[str, Any],
    step: int,
    eval_metrics: Mapping[str, float],
    threshold_metric: str,
    best_value_tracker: MutableMapping[str, Any],
    *,
    name: str = "model",
    tracker: ExperimentTracker | None = None,
    store: Store | None = None,
) -> bool:
    """Publishes weights as `best` where a metric is greater than it ever was.

    It compares plain numbers: with few episodes the best of many evaluations is often the luckiest one.

    Args:
        model_state_dict: `model.state_dict()`.
        step: The training step.
        eval_metrics: What the evaluation found; goes into the metadata.
        threshold_metric: The metric that decides.
        best_value_tracker: `best_value` and `best_step` so far, which are brought up to date; empty in the beginning.
        name: The model's name.
        tracker: Logs `best_model/step` and the metric.
        store: As in `upload_model_to_wandb`.

    Returns:
        Whether it is the best so far.

    Raises:
        UserError: The metric is not among those of the evaluation.
    """
    if threshold_metric not in eval_metrics:
        raise unknown("metric", threshold_metric, eval_metrics)
    value, best = float(eval_metrics[threshold_metric]), best_value_tracker.get("best_value")
    if math.isnan(value) or (best is not None and value <= best):
        return False
    upload_model_to_wandb(
        model_state_dict, step, "best", name=name, metadata=eval_metrics, tracker=tracker, store=store
    )
    best_value_tracker.update(best_value=value, best_step=step)
    if tracker is not None:
        tracker.log_metrics({"best_model/step": step, f"best_model/{threshold_metric}": value}, step)
    return True


def download_model_from_wandb(identifier: str) -> Path:
    """Finds weights by name, in the model store or on W&B.

    Args:
        identifier: `name:alias`, `entity/project/name:alias`, or a path.

    Returns:
        The safetensors file.

    Raises:
        UserError: There is no such model, or it has no single file of weights.
    """
    from tracking.artifacts import download_checkpoint_from_wandb

    found = download_checkpoint_from_wandb(identifier)
    files = [found] if found.is_file() else sorted(found.glob("*.safetensors"))
    named = [path for path in files if path.name == WEIGHTS] or files
    if len(named) != 1 or named[0].suffix != ".safetensors":
        there = ", ".join(path.name for path in files) or "no safetensors"
        raise UserError(f"{identifier}: expected one safetensors file with the weights; {found} has {there}")
    return named[0]


class ModelManager:
    """A module with a name.

    Args:
        model: Any module.
        name: The model's name.
        tracker: As in `upload_model_to_wandb`.
        store: As in `upload_model_to_wandb`.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        name: str = "model",
        *,
        tracker: ExperimentTracker | None = None,
        store: Store | None = None,
    ) -> None:
        self.model = model
        self.name = name
        self._tracker = tracker
        self._store = store

    def save_checkpoint(
        self, filepath: Path | str, step: int, upload_to_wandb: bool = False, wandb_alias: str = "latest"
    ) -> Path:
        """Saves the weights as safetensors, whatever the file's name ends with.

        Args:
            filepath: Where; `checkpoint.pt` becomes `checkpoint.safetensors`, `model-0.95` `model-0.95.safetensors`.
            step: The training step.
            upload_to_wandb: Whether to publish them too.
            wandb_alias: Their alias.

        Returns:
            The file.
        """
        from tracking.store.contents import PICKLES

        path = Path(filepath)
        stem = path.stem if path.suffix.lower() in {*PICKLES, ".safetensors"} else path.name
        path = path.with_name(f"{stem}.safetensors")
        state = self.model.state_dict()
        if is_main_process():
            path.parent.mkdir(parents=True, exist_ok=True)
            save_weights(state, path)
        if upload_to_wandb:
            upload_model_to_wandb(state, step, wandb_alias, name=self.name, tracker=self._tracker, store=self._store)
        return path

    def load_from_wandb(self, identifier: str) -> Path:
        """Loads weights into the module, which then has exactly those.

        Args:
            identifier: As `download_model_from_wandb` takes it.

        Returns:
            The file that was loaded.

        Raises:
            UserError: There is no such model, or its weights are not whole or not this module's; the module is as it
                was.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        path = download_model_from_wandb(identifier)
        try:
            weights = load_file(path)
        except SafetensorError as error:
            raise UserError(f"{path} is not whole: {error}\n  next: copy it again") from error
        own = self.model.state_dict()
        faults = [f"{key} is missing" for key in own if key not in weights]
        faults += [
            f"{key} is {tuple(weights[key].shape)}, the module's is {tuple(own[key].shape)}"
            for key in own
            if key in weights and weights[key].shape != own[key].shape
        ]
        faults += [f"{key} is not the module's" for key in weights if key not in own]
        if faults:
            raise UserError(
                f"{path} does not fit the {type(self.model).__name__}: {'; '.join(faults[:3])}"
                f"{f' and {len(faults) - 3} more' if faults[3:] else ''}"
            )
        self.model.load_state_dict(weights)
        return path


def save_weights(state: Mapping[str, Any], path: Path) -> None:
    """Saves a state as safetensors, whole or not at all; tensors that share memory become independent ones.

    Raises:
        UserError: An entry is no tensor.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for key, value in state.items():
        if not isinstance(value, torch.Tensor):
            raise UserError(f"{key} is a {type(value).__name__}: only tensors can be saved as safetensors")
        tensor = value.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.data_ptr() in seen or storage.nbytes() != tensor.nbytes:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        tensors[key] = tensor
    temporary = beside(path, "tmp")
    try:
        save_file(tensors, temporary)
        fsync_file(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    fsync_dir(path.parent)
