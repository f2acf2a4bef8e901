"""Which frames training sees, of datasets that are written here by hand: frame n holds the number n everywhere."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gilbreth_phase0.environments import EnvironmentArguments
from gilbreth_phase0.policies import make_config
from gilbreth_phase0.policy_kinds import settings_of
from gilbreth_phase0.sampling import BatchPlan, ShardedBatches
from gilbreth_phase0.training_data import Source, TrainingData, open_training_data, read_sources
from tracking.errors import UserError

from tiny_dataset import Written, write_dataset

ALL = ("source", "success", "intervention")
PLAIN = [Written(3), Written(4)]
DAGGER = [
    Written(5, source=0, success=0),
    Written(6, source=1, success=1, relabelled=(2, 3)),
    Written(4, source=1, success=0),
    Written(3, source=0, success=1),
    Written(2, source=1, success=1),
]
"""Frames 0-4, 5-10, 11-14, 15-17, 18-19."""

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("it's data")
    write_dataset(root, "plain", PLAIN, first=100)
    write_dataset(root, "dagger", DAGGER, columns=ALL)
    write_dataset(root, "documented", DAGGER, columns=("source", "success"))
    write_dataset(root, "failed", [Written(4, source=1, success=0)], columns=ALL)
    return root


def opened(root: Path, names: str, dagger_filter: Any = "corrections", **settings: Any) -> TrainingData:
    sources = read_sources(root, names, settings.pop("weights", None))
    policy = settings.pop("policy", "act")
    config = make_config(policy, "cpu", **settings_of(policy, {"action_chunk_size": 4, "n_action_steps": 1} | settings))
    return open_training_data(sources, config, dagger_filter=dagger_filter, say=settings.get("say", lambda _: None))


def frames(data: TrainingData) -> list[int]:
    """The number of the frame that each sample begins at."""
    return [int(data.dataset[index]["action"][0, 0]) for index in range(sum(data.sizes))]


@pytest.mark.parametrize(
    ("dagger_filter", "kept"),
    [
        ("corrections", [*range(5, 11), 18, 19]),
        ("success", [*range(5, 11), *range(15, 20)]),
        ("all", [*range(20)]),
    ],
)
def test_a_filter_keeps_the_episodes_that_it_names(root: Path, dagger_filter: str, kept: list[int]) -> None:
    data = opened(root, "dagger", dagger_filter)
    assert frames(data) == kept
    assert (data.frames, data.facts["dagger_filter"]) == (len(kept), dagger_filter)
    assert frames(opened(root, "plain", dagger_filter)) == [*range(100, 107)], "all of what is not annotated"
    assert not {"source", "success", "intervention"} & data.dataset[0].keys()


def test_the_account(root: Path) -> None:
    said: list[str] = []
    sources = read_sources(root, "plain,dagger", "1,2.5")
    data = open_training_data(sources, make_config("act", "cpu"), say=said.append)
    assert said == [
        "kept of the data (--dagger-filter corrections):",
        "  plain: 2 of 2 episodes, 7 of 7 frames",
        "  dagger: 2 of 5 episodes, 8 of 20 frames, weight 2.5",
        "    expert, success: 2 of 2 episodes, 8 of 8 frames",
        "    expert, failure: 0 of 1 episode, 0 of 4 frames",
        "    policy, success: 0 of 1 episode, 0 of 3 frames",
        "    policy, failure: 0 of 1 episode, 0 of 5 frames",
    ]
    assert (data.episodes, data.frames, data.sizes) == (4, 15, (7, 8))


def padding(data: TrainingData) -> dict[int, str]:
    """Which steps of each frame's chunk are padding: `..##` where the last two are."""
    samples = [data.dataset[index] for index in range(sum(data.sizes))]
    return {
        int(sample["index"]): "".join("#" if pad else "." for pad in sample["action_is_pad"].tolist())
        for sample in samples
    }


def test_no_chunk_goes_on_behind_a_frame_that_the_expert_did_not_execute(root: Path) -> None:
    """GIVEN frames 2 and 3 of the episode 5-10 relabelled THEN what follows from their actions is none of the chunk."""
    corrections = {
        5: "...#",  # 5 and 6 were executed and led to 7, a relabelled frame: its label counts, the state behind not
        6: "..##",
        7: ".###",
        8: ".###",
        9: "..##",  # the episode's end
        10: ".###",
        18: "..##",
        19: ".###",
    }
    assert padding(opened(root, "dagger")) == corrections
    told = padding(opened(root, "dagger", "all"))
    assert {frame: told[frame] for frame in corrections} == corrections
    assert [told[frame] for frame in range(5)] == ["....", "....", "...#", "..##", ".###"], "the policy's own are whole"
    executed = padding(opened(root, "documented"))
    assert [executed[frame] for frame in (5, 6, 7, 8)] == ["....", "....", "....", "...#"], "nothing says otherwise"


def test_steps_of_a_chunk_in_the_past_follow_the_same_rule(root: Path) -> None:
    """Diffusion's chunk begins one step before the newest observation: frame 7 was reached by 6, frame 8 not by 7."""
    settings = {"policy": "diffusion", "down_dims": [8, 16], "drop_n_last_frames": 0}
    told = padding(opened(root, "dagger", **settings))
    assert (told[5], told[7], told[8], told[9], told[10]) == ("#...", "..##", "#.##", "#..#", "..##")


def test_last_frames_of_an_episode_begin_no_sample(root: Path) -> None:
    """Of Diffusion's chunk of 4 with 1 executed and 2 seen, 2 frames are dropped; an episode of 2 has none left."""
    data = opened(root, "dagger,plain", policy="diffusion", down_dims=[8, 16])
    assert [int(data.dataset[index]["index"]) for index in range(6)] == [5, 6, 7, 8, 0, 3], "counted in each dataset"
    newest = [int(data.dataset[index]["observation.state"][-1, 0]) for index in range(7)]
    assert newest == [5, 6, 7, 8, 100, 103, 104]
    assert (data.sizes, data.frames) == ((4, 3), 15)


def test_a_batch_over_several_datasets_comes_in_the_order_in_which_it_was_asked_for(root: Path) -> None:
    data = opened(root, "plain,dagger")
    asked = [14, 0, 7, 6, 0, 8]
    got = data.dataset.__getitems__(asked)
    assert [int(sample["action"][0, 0]) for sample in got] == [19, 100, 5, 106, 100, 6]
    assert len(torch.utils.data.default_collate(got)["action"]) == 6


def test_statistics_are_of_what_is_kept(root: Path) -> None:
    """Every number of frame n is n: 100-106 of the one dataset, 5-10 and 18-19 of the other."""
    data = opened(root, "plain,dagger")
    numbers = np.array([*range(100, 107), *range(5, 11), 18, 19], dtype=np.float64)
    assert data.stats.keys() >= {"action", "observation.state", "observation.environment_state"}
    for key, size in (("action", 7), ("observation.state", 43)):
        stats = data.stats[key]
        assert stats["count"].tolist() == [15]
        assert np.allclose(stats["mean"], np.full(size, numbers.mean()), rtol=1e-6)
        assert np.allclose(stats["std"], np.full(size, numbers.std()), rtol=1e-5)
        assert (stats["min"].tolist(), stats["max"].tolist()) == ([5.0] * size, [106.0] * size)
    assert not {"source", "success", "intervention"} & data.stats.keys()
    whole = opened(root, "plain")
    assert np.array_equal(whole.stats["action"]["std"], whole.meta.stats["action"]["std"]), "LeRobot's, as they are"


def test_one_whole_dataset_is_planned_as_ever(root: Path) -> None:
    data = opened(root, "plain")
    assert data.plan(4, 3) == BatchPlan(7, 4, 3)
    assert type(data.plan(4, 3)) is BatchPlan
    assert data.facts == {"dataset_episodes": 2, "dataset_frames": 7}


def test_a_resumed_run_of_weighted_datasets_sees_what_an_undisturbed_one_sees(root: Path) -> None:
    data = opened(root, "plain,dagger", weights="1,2.5")
    plan = data.plan(6, 9)
    whole = list(ShardedBatches(plan, 1, 2, 1, last_step=12))
    later = plan.going_on(7, plan.position(7))
    assert whole[7:] == list(ShardedBatches(later, 1, 2, 1, first_step=7, last_step=12))
    assert plan.samples == 7 + 20
    drawn = np.bincount(np.concatenate([plan.batch(step) for step in range(9)]), minlength=15)  # 54 are two epochs
    assert (drawn[:7].tolist(), drawn[7:].sum()) == ([2] * 7, 40)


def test_a_mask_in_the_loss_is_asked_for_where_chunks_end_early(root: Path) -> None:
    def masks(name: str) -> bool:
        config = make_config("diffusion", "cpu", **settings_of("diffusion", {"n_action_steps": 14}))
        open_training_data(read_sources(root, name), config, dagger_filter="all", say=lambda _: None)
        return bool(config.do_mask_loss_for_padding)

    assert (masks("plain"), masks("documented"), masks("dagger")) == (False, False, True)


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("failed", ["nothing is left to train on", "expert, failure: 0 of 1 episode", "--dagger-filter all"]),
        ("plain,,dagger", ["--repo-ids 'plain,,dagger'", "each once"]),
        ("plain,plain", ["--repo-ids 'plain,plain'", "each once"]),
        ("plain,lfit", ["no dataset at ", "lfit"]),
    ],
)
def test_what_cannot_be_trained_on(root: Path, names: str, words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        opened(root, names)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("weights", ["1", "1,0", "1,-2", "1,nan", "1,two", "1,2,3", ""])
def test_weights_that_are_none(root: Path, weights: str) -> None:
    with pytest.raises(UserError, match=r"--weights .*a number above 0 for each of the 2 datasets .* as in 1,3"):
        read_sources(root, "plain,dagger", weights)


def test_a_weight_that_draws_nothing(root: Path) -> None:
    with pytest.raises(UserError, match=r"0\.01 of the 7 samples of plain is none"):
        opened(root, "plain,dagger", weights="0.01,1")


def test_datasets_that_differ_are_refused_with_what_differs(root: Path, tmp_path: Path) -> None:
    stacked = EnvironmentArguments(task="Stack", horizon=20, control_hz=10)
    sources = [
        Source(root / "plain", "plain"),
        Source(write_dataset(tmp_path, "stacked", [Written(2)], environment=stacked), "stacked"),
    ]
    with pytest.raises(UserError) as error:
        open_training_data(sources, make_config("act", "cpu"))
    rows = [line.split() for line in str(error.value).splitlines()[1:-1]]
    assert rows == [
        ["plain", "stacked"],
        ["observation.environment_state", "shape", "(10,)", "(23,)"],
        ["observation.environment_state", "names", "0:", "cube_pos.0", "0:", "cubeA_pos.0"],
        ["frames", "a", "second", "20", "10"],
        ["task", "Lift", "Stack"],
        ["control_hz", "20", "10"],
    ]
    assert max(map(len, str(error.value).splitlines())) <= 80


def test_a_version_of_robosuite_only_warns(root: Path, tmp_path: Path) -> None:
    older = EnvironmentArguments(horizon=20, robosuite_version="1.5.0")
    said: list[str] = []
    folder = write_dataset(tmp_path, "older", [Written(3)], environment=older)
    open_training_data(
        [Source(root / "plain", "plain"), Source(folder, "older")], make_config("act", "cpu"), say=said.append
    )
    assert said[0] == "warning: recorded with different versions of robosuite: plain with 1.5.1, older with 1.5.0"


def test_annotations_that_are_none(root: Path, tmp_path: Path) -> None:
    half = write_dataset(tmp_path, "half", [Written(3)], columns=("source",))
    odd = write_dataset(tmp_path, "odd", [Written(3, success=2)], columns=ALL)
    with pytest.raises(UserError, match=r"dataset half has the column 'source' and not 'success'"):
        open_training_data([Source(half, "half")], make_config("act", "cpu"))
    with pytest.raises(UserError, match=r"dataset odd: the column 'success' holds 2; expected 0 and 1"):
        open_training_data([Source(odd, "odd")], make_config("act", "cpu"))
    # What was two episodes is one now.
    joined = write_dataset(tmp_path, "joined", [Written(3), Written(3, source=0)], columns=ALL)
    change_episodes(joined)
    with pytest.raises(UserError, match=r"dataset joined: 'source' changes within episode 0"):
        open_training_data([Source(joined, "joined")], make_config("act", "cpu"))


def change_episodes(folder: Path) -> None:
    """Makes one episode of all."""
    import pandas

    table = next((folder / "meta" / "episodes").glob("*/*.parquet"))
    rows = pandas.read_parquet(table)
    first = rows.iloc[[0]].assign(dataset_to_index=rows["dataset_to_index"].max(), length=rows["length"].sum())
    first.to_parquet(table)
    info = json.loads((folder / "meta" / "info.json").read_text())
    (folder / "meta" / "info.json").write_text(json.dumps(info | {"total_episodes": 1}))
