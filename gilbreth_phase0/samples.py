"""Samples of a dataset without cameras, read a batch at a time from memory.

LeRobotDataset reads each sample by itself, in over a millisecond: for a small policy on a CPU that is three quarters
of the training. What cameras saw would not fit into memory, and its decoding is the larger part there.

In DAgger's datasets a chunk of actions ends where the expert's actions no longer led to the next state: what would
follow there is the answer to another state than the one that the chunk comes to. It counts as padding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import Dataset

from gilbreth_phase0.datasets import ANNOTATIONS

ACTION = "action"


class ChunkRule:
    """Where the chunk of a frame of an expert's episode ends before the episode does.

    Step j of the chunk of frame t counts only if the expert executed the actions of all frames from t to t + j - 1 (or
    from t + j to t - 1, for steps before t).

    Args:
        relabelled: For each frame of the dataset, whether another action than its own was executed.
    """

    def __init__(self, relabelled: npt.NDArray[np.bool_]) -> None:
        before = np.concatenate([[0], np.cumsum(relabelled)])
        self._before = torch.from_numpy(before)

    def broken(self, frames: torch.Tensor, deltas: torch.Tensor) -> torch.Tensor:
        """Which steps do not count.

        Args:
            frames: Shape (batch,).
            deltas: The chunk's steps, counted from the frame, shape (steps,).

        Returns:
            Shape (batch, steps); of steps beyond the dataset's ends it says nothing, they are padding anyway.
        """
        moments = (frames.unsqueeze(1) + deltas).clamp(0, len(self._before) - 1)
        return self._before[moments] != self._before[frames].unsqueeze(1)


def in_memory(dataset: LeRobotDataset, rule: ChunkRule | None = None) -> Dataset[dict[str, Any]]:
    """Returns the same samples from memory where the dataset allows it, else from the dataset; without annotations.

    Args:
        dataset: As `datasets.open_dataset` opens it: all episodes, nothing transformed.
        rule: Where chunks end within an episode.
    """
    if not dataset.meta.camera_keys and "subtask_index" not in dataset.features:
        return SamplesInMemory(dataset, rule)
    return dataset if rule is None and not ANNOTATIONS.keys() & dataset.features.keys() else RuledSamples(dataset, rule)


class SamplesInMemory(Dataset[dict[str, Any]]):
    """All samples of a LeRobotDataset, equal to its own in keys, values, types and padding, but for annotations.

    Args:
        dataset: All episodes of it, without cameras or subtasks.
        rule: Where chunks end within an episode.
    """

    def __init__(self, dataset: LeRobotDataset, rule: ChunkRule | None = None) -> None:
        kept = [key for key in dataset.hf_dataset.column_names if key not in ANNOTATIONS]
        columns = dataset.hf_dataset.select_columns(kept).with_format("numpy")[:]
        self._columns = {key: torch.from_numpy(values) for key, values in columns.items()}
        self._rule = rule
        self._deltas = {key: torch.tensor(deltas) for key, deltas in (dataset.delta_indices or {}).items()}
        self._tasks = list(dataset.meta.tasks.index)
        episodes = dataset.meta.episodes.with_format("torch")
        self._starts = episodes["dataset_from_index"][:]
        self._ends = episodes["dataset_to_index"][:]

    def __len__(self) -> int:
        """Frames of the dataset."""
        return len(self._columns["index"])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Reads the samples of a batch at once; PyTorch's DataLoader asks for them in this way.

        Args:
            indices: Frames, counted from 0 over all episodes.
        """
        frames = torch.as_tensor(indices)
        values = {key: column[frames] for key, column in self._columns.items()}
        starts = self._starts[values["episode_index"]].unsqueeze(1)
        ends = self._ends[values["episode_index"]].unsqueeze(1)
        for key, deltas in self._deltas.items():
            moments = frames.unsqueeze(1) + deltas
            values[f"{key}_is_pad"] = (moments < starts) | (moments >= ends)
            values[key] = self._columns[key][moments.clamp(starts, ends - 1)]
            if key == ACTION and self._rule is not None:
                values[f"{key}_is_pad"] |= self._rule.broken(frames, deltas)
        tasks = [self._tasks[number] for number in values["task_index"].tolist()]
        rows = zip(*(value.unbind() for value in values.values()), strict=True)
        return [{**dict(zip(values, row, strict=True)), "task": task} for row, task in zip(rows, tasks, strict=True)]


class RuledSamples(Dataset[dict[str, Any]]):
    """The samples of a LeRobotDataset without its annotations, with chunks ended by a rule.

    Args:
        dataset: All episodes of it.
        rule: Where chunks end within an episode.
    """

    def __init__(self, dataset: LeRobotDataset, rule: ChunkRule | None = None) -> None:
        self._dataset = dataset
        self._rule = rule
        self._deltas = torch.tensor((dataset.delta_indices or {}).get(ACTION, []), dtype=torch.int64)

    def __len__(self) -> int:
        """Frames of the dataset."""
        return len(self._dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one sample."""
        sample = {key: value for key, value in self._dataset[index].items() if key not in ANNOTATIONS}
        if self._rule is not None and len(self._deltas):
            sample[f"{ACTION}_is_pad"] |= self._rule.broken(torch.tensor([index]), self._deltas)[0]
        return sample


class SelectedSamples(Dataset[dict[str, Any]]):
    """Some of the samples of several datasets, one behind the other.

    Args:
        parts: Samples, and those of them that are taken, in order.
    """

    def __init__(self, parts: Sequence[tuple[Dataset[dict[str, Any]], npt.NDArray[np.int64]]]) -> None:
        self._samples = [samples for samples, _ in parts]
        self._taken = [taken for _, taken in parts]
        self._ends = np.cumsum([len(taken) for taken in self._taken])

    def __len__(self) -> int:
        """Samples that are taken."""
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Reads one sample."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Reads the samples of a batch, in the order in which they are asked for.

        Args:
            indices: Counted from 0 over all samples that are taken.
        """
        wanted = np.asarray(indices)
        parts = np.searchsorted(self._ends, wanted, side="right")
        found: dict[int, dict[str, Any]] = {}
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            first = self._ends[part] - len(self._taken[part])
            frames = self._taken[part][wanted[places] - first].tolist()
            found |= zip(places.tolist(), _read(self._samples[part], frames), strict=True)
        return [found[place] for place in range(len(wanted))]


def _read(samples: Dataset[dict[str, Any]], frames: list[int]) -> list[dict[str, Any]]:
    """Reads a batch at once where the samples can do that."""
    at_once = getattr(samples, "__getitems__", None)
    return at_once(frames) if at_once is not None else [samples[frame] for frame in frames]
