"""Samples of a dataset without cameras, read a batch at a time from memory.

LeRobotDataset reads each sample by itself, in over a millisecond: for a small policy on a CPU that is three quarters
of the training. What cameras saw would not fit into memory, and its decoding is the larger part there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from torch.utils.data import Dataset


def in_memory(dataset: LeRobotDataset) -> LeRobotDataset | SamplesInMemory:
    """Returns the same samples from memory where the dataset allows it, else the dataset.

    Args:
        dataset: As `datasets.open_dataset` opens it: all episodes, nothing transformed.
    """
    return dataset if dataset.meta.camera_keys or "subtask_index" in dataset.features else SamplesInMemory(dataset)


class SamplesInMemory(Dataset[dict[str, Any]]):
    """All samples of a LeRobotDataset, equal to its own in keys, values, types and padding.

    Args:
        dataset: All episodes of it, without cameras or subtasks.
    """

    def __init__(self, dataset: LeRobotDataset) -> None:
        columns = dataset.hf_dataset.with_format("numpy")[:]
        self._columns = {key: torch.from_numpy(values) for key, values in columns.items()}
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
        tasks = [self._tasks[number] for number in values["task_index"].tolist()]
        rows = zip(*(value.unbind() for value in values.values()), strict=True)
        return [{**dict(zip(values, row, strict=True)), "task": task} for row, task in zip(rows, tasks, strict=True)]
