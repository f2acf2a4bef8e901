"""Who acts when: the state machine, and each gate."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import binomtest, chisquare

from gilbreth_phase0.dagger.gates import (
    BetaMixing,
    EnsembleGate,
    OracleGate,
    Patience,
    RandomGate,
    View,
    beta,
    calibrated,
)
from gilbreth_phase0.dagger.machine import TRANSITIONS, Event, Interventions, State, TransitionError
from gilbreth_phase0.dagger.rollout import roll_out


class Line:
    """x goes up by what is done; the expert's action takes it back to 0, the policy's is 1."""

    def __init__(self, horizon):
        self.arguments = SimpleNamespace(horizon=horizon)

    def reset(self, seed):
        self.x, self.steps = 0.0, 0
        return self._seen(), {}

    def step(self, action):
        self.x, self.steps = self.x + float(action[0]), self.steps + 1
        is_over = self.steps == self.arguments.horizon
        return self._seen(), -self.x, False, is_over, {"is_success": False}

    def _seen(self):
        return {"agent_pos": np.float32([self.x]), "environment_state": np.float32([self.x])}


class Up:
    """The policy: plans five steps ahead, and says how often it had to look."""

    def __init__(self):
        self.queue, self.looks = [], 0

    def reset(self):
        self.queue = []

    def action(self, observation):
        if not self.queue:
            self.queue, self.looks = [1.0] * 5, self.looks + 1
        return np.float32([self.queue.pop()] + [0] * 6)


class Back:
    def action(self, observation):
        return np.float32([-observation["agent_pos"][0]] + [0] * 6)


def play(gate, horizon=200, seed=0, budget=None):
    return roll_out(Line(horizon), Up(), Back(), gate, seed=seed, budget=budget)


def view(state=State.POLICY, *, since=100, steps_left=100, reward=0.0, proposal=0.0, label=0.0):
    actions = [np.full(7, value, dtype=np.float32) for value in (proposal, label)]
    return View(state, since, steps_left, {}, reward, *actions)


class TestMachine:
    def test_every_pair_of_a_state_and_an_event_is_in_the_table_or_refused(self):
        for state in State:
            for event in Event:
                machine = Interventions(state=state)
                if (state, event) in TRANSITIONS:
                    machine.apply(event)
                    assert machine.state is TRANSITIONS[state, event]
                else:
                    with pytest.raises(TransitionError, match=event.value):
                        machine.apply(event)

    def test_it_says_when_somebody_else_acts(self):
        machine = Interventions()
        assert [machine.apply(each) for each in (None, Event.TAKE_OVER, None, Event.HAND_BACK, Event.SETTLED)] == [
            *(False, True, False, True, False)
        ]
        assert machine.takeovers == 1

    def test_beyond_the_budget_the_policy_goes_on(self):
        machine = Interventions(budget=1)
        for event in (Event.TAKE_OVER, Event.HAND_BACK, Event.SETTLED, Event.TAKE_OVER):
            machine.apply(event)
        assert machine.state is State.POLICY
        assert (machine.takeovers, machine.is_spent) == (1, True)


class TestBetaMixing:
    def test_states_and_labels_are_those_of_the_known_answer(self):
        """GIVEN a line on which the expert goes back to 0 and the policy one up
        WHEN they are mixed with β = 0.3 over 20 roll-outs of 200 steps
        THEN the expert acts at a share β of the steps, stretches of the policy are geometric with that, x is the number
        of steps since the expert acted, and every frame has the expert's label for its x.

        The share's exact binomial test and the stretches' chi-square test each have a false-alarm rate of 1 in 10,000
        by the draw of the seeds, which are fixed. A gate that mixes with 0.35 is found by both.
        """
        share, found = 0.3, [play(BetaMixing(0.3), seed=seed) for seed in range(20)]
        by_expert = np.concatenate([each.by_expert for each in found])
        assert binomtest(int(by_expert.sum()), len(by_expert), share).pvalue > 1e-4
        assert binomtest(int(by_expert.sum()), len(by_expert), 0.35).pvalue < 1e-4
        gaps = np.concatenate([np.diff(np.flatnonzero(each.by_expert)) for each in found])
        assert gaps_p_value(gaps, share) > 1e-4
        assert gaps_p_value(gaps, 0.35) < 1e-4
        for each in found:
            x, expected = each.agent_pos[:, 0], 0.0
            for step in range(each.length):
                assert x[step] == expected
                expected = 0.0 if each.by_expert[step] else expected + 1
            np.testing.assert_array_equal(each.labels[:, 0], -x)
            np.testing.assert_array_equal(each.executed[:, 0], np.where(each.by_expert, -x, 1))
            assert each.expert_frames == each.length

    def test_it_is_the_same_from_the_same_seed_alone(self):
        gate = BetaMixing(0.5)
        first = play(gate, seed=3)
        play(gate, seed=4)
        np.testing.assert_array_equal(play(gate, seed=3).by_expert, first.by_expert)

    @pytest.mark.parametrize(
        ("schedule", "expected"), [("linear", [0.75, 0.5, 0.25, 0]), ("exponential", [0.5, 0.25, 0.125, 0.0625])]
    )
    def test_how_it_falls_over_the_rounds(self, schedule, expected):
        assert [beta(schedule, number, 4) for number in (1, 2, 3, 4)] == expected


class TestRandomGate:
    def test_it_takes_over_at_its_frequency_and_for_its_time(self):
        """The exact binomial test has a false-alarm rate of 1 in 10,000 by the draw of the seeds, which are fixed."""
        gate = RandomGate(0.1, Patience(takeover=4, settle=3))
        found = [play(gate, seed=seed) for seed in range(20)]
        takeovers = sum(each.takeovers for each in found)
        lengths = np.concatenate([stretch_lengths(each.by_expert) for each in found])
        assert set(lengths[lengths != 4]) <= {1, 2, 3}  # cut off by the end alone
        assert (lengths == 4).sum() >= takeovers - len(found)
        asked = (
            sum(int((~each.by_expert).sum()) for each in found) - 3 * takeovers
        )  # three steps of each are for settling
        assert binomtest(takeovers, asked, 0.1).pvalue > 1e-4

    def test_the_budget_is_kept(self):
        assert play(RandomGate(0.5), budget=2).takeovers == 2

    def test_no_more_takeovers_than_none(self):
        assert play(RandomGate(0.5), budget=0).takeovers == 0


class TestOracleGate:
    def test_disagreement(self):
        gate = OracleGate(disagreement=0.5, window=3)
        gate.begin(0)
        events = [gate.event(view(proposal=0.0, label=0.6)) for _ in range(3)]
        assert events == [None, None, Event.TAKE_OVER]

    def test_one_step_of_disagreement_is_not_enough(self):
        gate = OracleGate(disagreement=0.5, window=3)
        gate.begin(0)
        assert [gate.event(view(label=value)) for value in (0, 1.0, 0, 0)] == [None] * 4

    def test_no_progress(self):
        gate = OracleGate(no_progress=3)
        gate.begin(0)
        assert [gate.event(view(reward=value)) for value in (0.1, 0.2, 0.2, 0.1, 0.2)] == [*[None] * 4, Event.TAKE_OVER]

    def test_near_the_end_it_takes_over_and_keeps(self):
        gate = OracleGate(near_timeout=30)
        gate.begin(0)
        assert gate.event(view(steps_left=31)) is None
        assert gate.event(view(steps_left=30)) is Event.TAKE_OVER
        assert [gate.event(view(State.TAKEOVER, steps_left=left)) for left in range(29, 0, -1)] == [None] * 29

    def test_it_hands_back_where_both_agree_and_not_before_its_time(self):
        gate = OracleGate(agreement=0.2, window=2, patience=Patience(takeover=5, settle=2))
        gate.begin(0)
        events = [gate.event(view(State.TAKEOVER, since=since, label=0.1)) for since in range(6)]
        assert events == [*[None] * 5, Event.HAND_BACK]
        assert [gate.event(view(State.HANDED_BACK, since=since, label=2.0)) for since in (0, 1)] == [
            None,
            Event.SETTLED,
        ]


class TestEnsembleGate:
    def test_doubt_is_the_deviation_of_the_policies(self):
        gate = EnsembleGate([Back(), Back()], threshold=0.0)
        gate.begin(0)
        seen = {"agent_pos": np.float32([3.0])}
        asked = View(State.POLICY, 0, 9, seen, 0.0, np.float32([1.0] + [0] * 6), None)
        assert gate.event(asked) is Event.TAKE_OVER
        assert gate.doubts == [pytest.approx(np.std([1, -3, -3]) / 7)]

    def test_the_threshold_gives_the_wanted_switch_rate(self):
        """Takeovers of 4 steps with 2 to settle: 100 roll-outs of 50 steps with known doubts."""
        doubts = np.random.default_rng(0).random((100, 50))
        patience = Patience(takeover=4, settle=2)
        for wanted in (0.01, 0.05, 0.1):
            threshold = calibrated(doubts.tolist(), wanted, patience)
            rates = []
            for bound in (threshold, np.nextafter(threshold, 0)):
                takeovers = steps = 0
                for each in doubts:
                    step = 0
                    while step < 50:
                        steps += 1
                        takeovers += each[step] > bound
                        step += 6 if each[step] > bound else 1
                rates.append(takeovers / steps)
            assert rates[0] <= wanted < rates[1]


class TestRollOut:
    def test_queued_actions_are_dropped_when_somebody_else_acts(self):
        class TakesTwoSteps:
            needs_label, relabels = False, False

            def begin(self, seed):
                self.steps = 0

            def event(self, seen):
                self.steps += 1
                return {3: Event.TAKE_OVER, 5: Event.HAND_BACK}.get(self.steps)

        policy = Up()
        found = roll_out(Line(8), policy, Back(), TakesTwoSteps(), seed=0)
        np.testing.assert_array_equal(found.by_expert, [0, 0, 1, 1, 0, 0, 0, 0])
        # Before the first step; in each step of the takeover, to be compared; and after the hand-back.
        assert policy.looks == 4
        np.testing.assert_array_equal(found.agent_pos[:, 0], [0, 1, 2, 0, 0, 1, 2, 3])
        assert np.isnan(found.labels[0]).all()

    def test_it_comes_back_from_its_file_as_it_was(self, tmp_path):
        found = play(RandomGate(0.2), horizon=20)
        found.write(tmp_path / "one.npz")
        again = type(found).read(tmp_path / "one.npz")
        assert (again.seed, again.takeovers, again.success) == (found.seed, found.takeovers, found.success)
        np.testing.assert_array_equal(again.executed, found.executed)
        np.testing.assert_array_equal(again.labels, found.labels)


def gaps_p_value(gaps, share):
    """Of the steps from one of the expert's to the next: 1 to 9, and 10 or more."""
    expected = np.array([share * (1 - share) ** (k - 1) for k in range(1, 10)])
    counts = np.array([*((gaps == k).sum() for k in range(1, 10)), (gaps >= 10).sum()])
    return chisquare(counts, len(gaps) * np.array([*expected, 1 - expected.sum()])).pvalue


def stretch_lengths(flags):
    """Lengths of the stretches of True."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], flags.astype(int), [0]])))
    return edges[1::2] - edges[::2]
