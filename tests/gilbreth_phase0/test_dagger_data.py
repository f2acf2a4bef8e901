"""Roll-outs as datasets, and the roll-outs of a round: cut, kept, counted."""

from __future__ import annotations

import json
from functools import partial

import pytest

from gilbreth_phase0.dagger.aggregate import check_place, stretches, write_dataset
from gilbreth_phase0.dagger.beginning import check_corrections, check_round
from gilbreth_phase0.dagger.collection import Plan, collect
from gilbreth_phase0.dagger.curve import draw, points
from gilbreth_phase0.dagger.rounds import Ledger, Round, evaluated, summarise
from gilbreth_phase0.datasets import open_dataset
from gilbreth_phase0.job import Job
from gilbreth_phase0.train_dagger import Arguments
from gilbreth_phase0.trials import Stopped
from tracking.errors import UserError

from roll_outs import Fails, Toy, made
from tiny_dataset import ENVIRONMENT


def shape(stretch):
    """Source, success, the first action's number at each frame, and who executed it."""
    columns = stretch.columns
    return (
        stretch.source,
        stretch.success,
        columns["action"][:, 0].tolist(),
        columns["intervention"][:, 0].tolist(),
    )


class TestStretches:
    def test_the_policy_s_and_the_expert_s_frames_are_episodes_of_their_own(self):
        """Policy 0 1, expert 2 3 4, policy 5 6, solved: the takeover was handed back, the last stretch solved it."""
        assert [shape(each) for each in stretches(made([0, 0, 1, 1, 1, 0, 0]))] == [
            (0, False, [0, 1], [0, 0]),
            (1, True, [2, 3, 4], [1, 1, 1]),
            (0, True, [5, 6], [0, 0]),
        ]

    def test_a_takeover_that_comes_to_nothing_is_no_success(self):
        assert [shape(each)[:2] for each in stretches(made([0, 1, 1], success=False))] == [(0, False), (1, False)]

    def test_a_relabelled_roll_out_has_the_expert_s_labels_for_every_frame(self):
        assert [shape(each) for each in stretches(made([0, 1, 0], success=False, relabelled=True))] == [
            (0, False, [0], [0]),
            (0, False, [2], [0]),
            (1, True, [100, 101, 102], [0, 1, 0]),
        ]

    def test_nothing_of_a_discarded_one_is_kept(self):
        assert list(stretches(made([0, 1], discarded=True))) == []


class TestDataset:
    def test_it_is_written_once_and_read_back(self, tmp_path):
        root, facts = tmp_path / "it's a run" / "round-01", {"run_id": "r", "round": 1, "roll_outs": "digest"}
        write = partial(write_dataset, root, "r/round-01", ENVIRONMENT, facts=facts)
        kept = write(roll_outs=[made([0, 0, 1, 1, 1]), made([1, 1], seed=5_000_001)])
        assert kept == {"all": 3, "success": 2, "corrections": 2}
        dataset = open_dataset(root, "r/round-01")
        columns = dataset.hf_dataset.with_format("numpy")[:]
        assert columns["source"].reshape(-1).tolist() == [0, 0, 1, 1, 1, 1, 1]
        assert columns["success"].reshape(-1).tolist() == [0, 0, 1, 1, 1, 1, 1]
        assert columns["action"][:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1]
        assert write(roll_outs=[]) == kept  # it is there already
        for other in ({**facts, "roll_outs": "others"}, {**facts, "run_id": "another"}):
            with pytest.raises(UserError, match="--dagger-repo-id"):
                write_dataset(root, "r/round-01", ENVIRONMENT, [], facts=other)
        check_place(root, {"run_id": "r", "round": 1})
        with pytest.raises(UserError, match="--dagger-repo-id"):
            check_place(root, {"run_id": "another", "round": 1})


class TestCollection:
    @pytest.fixture
    def job(self, tmp_path):
        job = Job.start(tmp_path / "run", "cpu")
        yield job
        job.close()

    def plan(self, tmp_path, budget=None, workers=1, count=6):
        return Plan(tmp_path / "rollouts", range(5_000_001, 5_000_001 + count), budget, workers)

    @pytest.mark.parametrize(("budget", "expected"), [(None, [1, 2, 3, 4, 5, 6]), (6, [1, 2, 3]), (8, [1, 2, 3, 2])])
    @pytest.mark.parametrize("workers", [0, 2])
    def test_takeovers_count_in_the_order_of_the_seeds(self, tmp_path, job, budget, expected, workers):
        """GIVEN roll-outs with 1, 2, 3, … takeovers THEN the budget ends the round exactly, with any number of them."""
        plan = self.plan(tmp_path, budget, workers)
        seeds = collect(job, plan, Toy)
        assert [each.takeovers for each in plan.roll_outs(seeds)] == expected
        assert len(list(plan.folder.glob("*.npz"))) == len(expected)

    def test_what_a_killed_attempt_has_left_is_not_made_again(self, tmp_path, job):
        plan = self.plan(tmp_path)
        plan.folder.mkdir()
        kept = made([1, 1, 1], seed=5_000_002)
        kept.write(plan.file(5_000_002))
        (plan.folder / ".seed-5000003.npz.tmp").write_bytes(b"half a roll-out")
        seeds = collect(job, plan, Toy)
        assert [each.length for each in plan.roll_outs(seeds)] == [3, 3, 7, 9, 11, 13]
        digest = plan.digest(seeds)
        assert collect(job, plan, Fails) == seeds  # nothing is left to be made
        assert plan.digest(seeds) == digest
        plan.file(5_000_004).unlink()
        with pytest.raises(FileNotFoundError):
            list(plan.roll_outs(seeds))

    def test_what_a_worker_refuses_ends_the_round(self, tmp_path, job):
        with pytest.raises(UserError, match="no seed 5000001"):
            collect(job, self.plan(tmp_path), Fails)

    def test_a_stop_is_told_and_the_rest_is_made_afterwards(self, tmp_path, job):
        plan = self.plan(tmp_path)
        job.stop._on_signal(12, None)
        with pytest.raises(Stopped):
            collect(job, plan, Toy)
        there = len(list(plan.folder.glob("*.npz")))
        assert 1 <= there < 6


def a_round(**facts):
    values = {"number": 1, "roll_outs": 4, "discarded": 0, "takeovers": 2, "expert_frames": 9, "policy_frames": 100}
    return Round(**{**values, "expert_executed": 9, "solved": 2, "solved_alone": 1, "kept": 2, **facts})


class TestRounds:
    def test_a_round_is_summed_up(self):
        found = summarise(
            3,
            iter([made([0, 0, 1]), made([0, 0], success=False), made([0]), made([1], discarded=True)]),
        )
        assert found == Round(3, 3, 1, 1, 1, 5, 1, solved=2, solved_alone=1, spent=2)
        assert found.switch_rate == 0.2

    def test_a_gate_that_never_asks_is_said(self):
        arguments = dagger_arguments(gate="ensemble")
        with pytest.raises(UserError, match=r"failed in 2 of 4(.|\n)*--switch-rate"):
            check_round(a_round(takeovers=0, expert_frames=0), arguments)
        check_round(a_round(takeovers=0, expert_frames=0, solved=4), arguments)  # there is nothing to correct

    def test_an_expert_that_solves_nothing_is_said(self):
        with pytest.raises(UserError, match="of 2 takeovers, none solved the task"):
            check_corrections(a_round(kept=0), dagger_arguments())

    def test_the_cost_curve(self, tmp_path):
        ledger = Ledger(tmp_path)
        (tmp_path / "evaluations").mkdir()
        start = {"trained": {"successes": 3, "trials": 10}}
        (tmp_path / "evaluations" / "step-00000000.json").write_text(json.dumps(start))
        for number in (1, 2):
            ledger.folder(number).mkdir(parents=True)
            ledger.write(evaluated(a_round(number=number), 3 * number, 10))
        found = points(tmp_path, ledger.rounds())
        assert [(each.round, each.expert_frames, each.successes) for each in found] == [
            (0, 0, 3),
            (1, 9, 3),
            (2, 18, 6),
        ]
        (line, *_), *_ = draw(found).axes[0].containers
        assert line.get_xdata().tolist() == [0, 9, 18]
        assert line.get_ydata().tolist() == [30, 30, 60]


def dagger_arguments(**given):
    return Arguments(run_dir="run", repo_ids="lift", policy_artifact="act-lift:best", **given)
