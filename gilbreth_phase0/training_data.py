"""What a policy is trained on: the frames of one dataset or of several, as far as they are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gilbreth_phase0.annotations import GROUPS, Annotations, DaggerFilter, Flags, check_columns, read_annotations
from gilbreth_phase0.dataset_differences import Described, check_alike
from gilbreth_phase0.datasets import ANNOTATIONS, open_dataset, open_metadata, read_environment, require_dataset
from gilbreth_phase0.policy_kinds import POLICIES
from gilbreth_phase0.sampling import BatchPlan, make_plan
from tracking.errors import UserError
from tracking.words import many

if TYPE_CHECKING:
    from lerobot.configs.policies import PreTrainedConfig
    from lerobot.datasets.lerobot_dataset import LeRobotDataset, LeRobotDatasetMetadata
    from torch.utils.data import Dataset

    from gilbreth_phase0.environments import EnvironmentArguments

Stats = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Source:
    """A dataset that a policy is trained on.

    Attributes:
        root: The dataset's own folder.
        repo_id: Its name.
        weight: How often each of its frames is drawn in an epoch.
    """

    root: Path
    repo_id: str
    weight: float = 1.0


@dataclass(frozen=True)
class Part:
    """What is kept of one dataset.

    Attributes:
        source: Which one.
        dataset: LeRobot's view of all of it.
        annotations: Its annotations, where it has any.
        lengths: Frames of each episode.
        kept: Which episodes are kept.
        frames: The frames that samples begin at.
    """

    source: Source
    dataset: LeRobotDataset
    annotations: Annotations | None
    lengths: npt.NDArray[np.int64]
    kept: Flags
    frames: npt.NDArray[np.int64]


@dataclass(frozen=True)
class TrainingData:
    """What a policy is trained on.

    Attributes:
        dataset: Its samples, to be asked for one by one or by the batch.
        sources: The datasets.
        sizes: How many of the samples are of each.
        meta: Features of the first dataset, which are those of all.
        stats: Statistics over the frames that are kept.
        environment: What the first dataset was recorded in.
        episodes: How many are kept.
        frames: How many frames these have.
        facts: What the metadata of a model tell of it.
    """

    dataset: Dataset[Any]
    sources: tuple[Source, ...]
    sizes: tuple[int, ...]
    meta: LeRobotDatasetMetadata
    stats: Stats
    environment: EnvironmentArguments
    episodes: int
    frames: int
    facts: Mapping[str, Any]

    @property
    def folders(self) -> tuple[Path, ...]:
        """The datasets' folders."""
        return tuple(source.root for source in self.sources)

    @property
    def names(self) -> tuple[str, ...]:
        """The datasets' names."""
        return tuple(source.repo_id for source in self.sources)

    def plan(self, batch_size: int, seed: int) -> BatchPlan:
        """Plans which samples are trained at which step.

        Args:
            batch_size: Samples of one optimizer step, over all ranks and micro-batches.
            seed: Of the shuffling.
        """
        return make_plan(self.sizes, [source.weight for source in self.sources], batch_size, seed)


def split_names(repo_ids: str) -> list[str]:
    """Reads the names in `--repo-ids a,b`.

    Raises:
        UserError: One is empty or there twice.
    """
    names = [name.strip() for name in repo_ids.split(",")]
    if not all(names) or len(set(names)) < len(names):
        raise UserError(
            f"--repo-ids {repo_ids!r}: expected names of datasets with commas between, each once: lift,extra"
        )
    return names


def read_sources(root: Path, repo_ids: str, weights: str | None = None) -> list[Source]:
    """Reads `--repo-ids a,b --weights 1,3`.

    Args:
        root: The folder that holds the datasets.
        repo_ids: Their names.
        weights: A weight for each; 1 without it.

    Raises:
        UserError: They do not go together, or a dataset is not there.
    """
    names = split_names(repo_ids)
    given = _read_weights(weights, names) if weights is not None else [1.0] * len(names)
    for name in names:
        require_dataset(root / name)
    return [Source(root / name, name, weight) for name, weight in zip(names, given, strict=True)]


def _read_weights(weights: str, names: Sequence[str]) -> list[float]:
    try:
        values = [float(weight) for weight in weights.split(",")]
    except ValueError:
        values = []
    if len(values) != len(names) or not all(math.isfinite(value) and value > 0 for value in values):
        raise UserError(
            f"--weights {weights!r}: expected a number above 0 for each of the {many(len(names), 'dataset')} of"
            f" --repo-ids, as in {','.join(['1'] * (len(names) - 1) + ['3'])}"
        )
    return values


def open_training_data(
    sources: Sequence[Source],
    config: PreTrainedConfig,
    *,
    dagger_filter: DaggerFilter = "corrections",
    say: Callable[[str], None] = print,
) -> TrainingData:
    """Opens datasets for training, and says what is kept of them.

    Args:
        sources: The datasets.
        config: Of the policy: which moments belong to a sample. Where chunks of a dataset end within an episode, and
            the policy's loss can be told to leave padding out, it is told so here.
        dagger_filter: Which episodes of annotated datasets are kept; of others all are.
        say: Gets the account, line by line.

    Raises:
        UserError: A dataset is not there or not whole, they differ, or nothing is kept.
    """
    from lerobot.datasets.factory import resolve_delta_timestamps

    described = [
        Described(one.repo_id, open_metadata(one.root, one.repo_id), read_environment(one.root)) for one in sources
    ]
    for one in described:
        check_columns(one.name, one.meta.features)
    check_alike(described, say)
    moments = resolve_delta_timestamps(config, described[0].meta)
    dropped = getattr(config, "drop_n_last_frames", 0)
    parts = [_open_part(source, moments, dropped, dagger_filter) for source in sources]
    _check_kept(parts, _account(parts, dagger_filter, dropped), say)
    if any(part.annotations is not None and part.annotations.relabelled.any() for part in parts):
        mask_padding(config)
    episodes = sum(int(part.kept.sum()) for part in parts)
    frames = sum(int(part.lengths[part.kept].sum()) for part in parts)
    facts: dict[str, Any] = {"dataset_episodes": episodes, "dataset_frames": frames}
    if len(sources) > 1:
        facts |= {"datasets": [one.repo_id for one in sources], "weights": [one.weight for one in sources]}
        facts["datasets_episodes"] = [int(part.kept.sum()) for part in parts]
        facts["datasets_frames"] = [int(part.lengths[part.kept].sum()) for part in parts]
    if any(part.annotations is not None for part in parts):
        facts["dagger_filter"] = dagger_filter
    return TrainingData(
        dataset=_joined(parts),
        sources=tuple(sources),
        sizes=tuple(len(part.frames) for part in parts),
        meta=described[0].meta,
        stats=_stats(parts),
        environment=described[0].environment,
        episodes=episodes,
        frames=frames,
        facts=facts,
    )


def _check_kept(parts: Sequence[Part], account: Sequence[str], say: Callable[[str], None]) -> None:
    """Says what was kept, and refuses what cannot be trained on."""
    if not any(len(part.frames) for part in parts):
        is_filtered = not any(part.kept.any() for part in parts)
        advice = "--dagger-filter all" if is_filtered else "--policy-settings '{\"drop_n_last_frames\": 0}'"
        raise UserError(
            "nothing is left to train on:\n"
            + "\n".join(f"  {line}" for line in account)
            + f"\n  next: {advice}, or other datasets (--repo-ids)"
        )
    if len(parts) > 1 or parts[0].annotations is not None:
        for line in account:
            say(line)
    for part in parts:
        if len(part.frames) and round(part.source.weight * len(part.frames)) == 0:
            raise UserError(
                f"--weights: {part.source.weight:g} of the {many(len(part.frames), 'sample')} of {part.source.repo_id}"
                " is none; leave the dataset out or give it more"
            )


def _joined(parts: Sequence[Part]) -> Dataset[Any]:
    from gilbreth_phase0.samples import ChunkRule, SelectedSamples, in_memory

    rules = [ChunkRule(part.annotations.relabelled) if part.annotations is not None else None for part in parts]
    samples = [in_memory(part.dataset, rule) for part, rule in zip(parts, rules, strict=True)]
    if len(parts) == 1 and len(parts[0].frames) == len(parts[0].dataset):
        return samples[0]
    return SelectedSamples([(each, part.frames) for each, part in zip(samples, parts, strict=True)])


def check_sources(sources: Sequence[Source], say: Callable[[str], None] = print) -> list[Described]:
    """Makes sure that datasets can be trained on together, from what their metadata tell.

    Raises:
        UserError: They differ, or one is annotated by half.
    """
    described = [
        Described(one.repo_id, open_metadata(one.root, one.repo_id), read_environment(one.root)) for one in sources
    ]
    for one in described:
        check_columns(one.name, one.meta.features)
    check_alike(described, say)
    return described


def can_leave_padding_out(policy_type: str) -> bool:
    """Whether it is known of a policy that padded steps of a chunk can be kept out of its loss."""
    return policy_type in POLICIES


def mask_padding(config: PreTrainedConfig) -> None:
    """Keeps padded steps of a chunk out of a policy's loss.

    Raises:
        UserError: The policy has them in its loss whatever is asked for.
    """
    kind = POLICIES.get(config.type)
    if kind is not None and kind.loss_mask is not None:
        setattr(config, kind.loss_mask, True)
    elif kind is None:
        raise UserError(
            f"a dataset holds relabelled frames, whose chunks end early, and {config.type} is not known to leave what"
            f" follows out of its loss. Expected one of {', '.join(POLICIES)}"
        )


def _open_part(
    source: Source, moments: dict[str, list[float]] | None, dropped: int, dagger_filter: DaggerFilter
) -> Part:
    dataset = open_dataset(source.root, source.repo_id, moments)
    annotations = read_annotations(source.repo_id, dataset)
    starts, ends = (np.asarray(dataset.meta.episodes[f"dataset_{end}_index"]) for end in ("from", "to"))
    kept = annotations.kept(dagger_filter) if annotations is not None else np.ones(len(starts), dtype=np.bool_)
    ranges = [np.arange(start, end - dropped) for start, end in zip(starts[kept], ends[kept], strict=True)]
    frames = np.concatenate(ranges) if ranges else np.zeros(0, dtype=np.int64)
    return Part(source, dataset, annotations, ends - starts, kept, frames)


def _account(parts: Sequence[Part], dagger_filter: DaggerFilter, dropped: int) -> list[str]:
    """What was kept, by dataset, source and success."""
    lines = [f"kept of the data (--dagger-filter {dagger_filter}):"]
    for part in parts:
        weight = f", weight {part.source.weight:g}" if part.source.weight != 1 else ""
        lines.append(f"  {part.source.repo_id}: {_counted(part, np.ones(len(part.kept), dtype=np.bool_))}{weight}")
        if part.annotations is not None:
            groups = ((name, part.annotations.group(*key)) for key, name in GROUPS.items())
            lines += [f"    {name}: {_counted(part, group)}" for name, group in groups if group.any()]
    if dropped:
        begun, there = (
            sum(len(part.frames) for part in parts),
            sum(int(part.lengths[part.kept].sum()) for part in parts),
        )
        lines.append(f"  {begun:,} of the {there:,} frames begin a sample: not the last {dropped} of an episode")
    return lines


def _counted(part: Part, group: Flags) -> str:
    kept = group & part.kept
    return (
        f"{kept.sum():,} of {many(int(group.sum()), 'episode')},"
        f" {part.lengths[kept].sum():,} of {many(int(part.lengths[group].sum()), 'frame')}"
    )


def _stats(parts: Sequence[Part]) -> Stats:
    """Statistics over what is kept: LeRobot's own where that is one whole dataset, else joined from its parts."""
    from lerobot.datasets.compute_stats import aggregate_stats

    pieces = [piece for part in parts for piece in _pieces(part)]
    joined = pieces[0] if len(pieces) == 1 else aggregate_stats(pieces)
    return {key: values for key, values in joined.items() if key not in ANNOTATIONS}


def _pieces(part: Part) -> list[Stats]:
    """The statistics of a dataset or, where not all of it is kept, of each episode that is."""
    if part.kept.all():
        return [part.dataset.meta.stats]
    return [_episode_stats(row) for row in _episode_rows(part)]


def _episode_rows(part: Part) -> list[dict[str, Any]]:
    from lerobot.datasets.utils import load_nested_dataset

    # LeRobot's `meta.episodes` leaves the statistics out.
    episodes = load_nested_dataset(part.dataset.root / "meta" / "episodes")
    columns = [name for name in episodes.column_names if name.startswith("stats/")]
    rows: list[dict[str, Any]] = episodes.select_columns(columns).select(np.flatnonzero(part.kept)).to_list()
    return rows


def _episode_stats(row: Mapping[str, Any]) -> Stats:
    """The statistics of an episode, from its columns `stats/FEATURE/STATISTIC`."""
    stats: Stats = {}
    for name, value in row.items():
        _, feature, statistic = name.split("/")
        stats.setdefault(feature, {})[statistic] = np.array(value)
    return stats
