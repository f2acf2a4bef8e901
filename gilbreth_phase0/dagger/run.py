"""A run of DAgger on all ranks: its rounds, each resumable."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gilbreth_phase0 import training
from gilbreth_phase0.arguments import names
from gilbreth_phase0.behind import Behind
from gilbreth_phase0.checkpointer import Restored
from gilbreth_phase0.dagger import beginning
from gilbreth_phase0.dagger.aggregate import write_dataset
from gilbreth_phase0.dagger.asking import make_gate, make_worker
from gilbreth_phase0.dagger.collection import Plan, collect
from gilbreth_phase0.dagger.curve import show_curve
from gilbreth_phase0.dagger.rounds import Ledger, Round, evaluated, spent, summarise
from gilbreth_phase0.gating import Gating, Record
from gilbreth_phase0.job import Job
from gilbreth_phase0.kept_bundles import BUNDLE, take_bundle
from gilbreth_phase0.policies import Policy, load_bundle, make_policy
from gilbreth_phase0.stop import Stop
from gilbreth_phase0.training_arguments import (
    eval_workers,
    make_tracker,
    make_trainer,
    prepare,
    read_management,
    selection_seeds,
)
from gilbreth_phase0.training_data import Source, TrainingData, mask_padding, open_training_data
from gilbreth_phase0.trials import Stopped
from tracking import checkpoints

if TYPE_CHECKING:
    from gilbreth_phase0.train_dagger import Arguments
    from tracking import ExperimentTracker


@dataclass
class DaggerRun:
    """One rank of a run of DAgger.

    Attributes:
        arguments: The program's.
        job: This rank and its job.
        tracker: Logs on rank 0.
        start: What the run began from.
    """

    arguments: Arguments
    job: Job
    tracker: ExperimentTracker
    start: beginning.Start

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.job.run_dir)

    @classmethod
    def begin(cls, arguments: Arguments, job: Job) -> DaggerRun:
        """Begins or continues a run; every rank must call it.

        Raises:
            UserError: The policy, the datasets, the environment and the expert do not go together.
        """
        ledger = Ledger(job.run_dir)
        start = job.on_main(lambda: beginning.begin(arguments, ledger))
        tracker = make_tracker(
            arguments,
            job,
            Restored(step=checkpoints.newest_step(job.run_dir / "checkpoints")),
            model=start.policy_type,
            objective="dagger",
            datasets=names(arguments.repo_ids),
        )
        job.on_main(lambda: beginning.record_uses(start, job.run_dir) if tracker.is_active() else None)
        return cls(arguments, job, tracker, start)

    def run(self) -> Stop:
        """Does the rounds that are left.

        Returns:
            Why the ranks stopped before the end, or `Stop.NO`.
        """
        try:
            if self.job.on_main(lambda: self.ledger.read(1)) is None:
                self._evaluate_start()
            for number in range(1, self.arguments.rounds + 1):
                found = self.job.on_main(partial(self.ledger.read, number)) or self._collect(number)
                if not found.expert_frames:
                    self._pass_on(found)
                elif not found.is_trained:
                    self._train(found)
                if self.job.on_main(self._left) == 0:
                    self.job.say(f"all {self.arguments.num_interventions} takeovers are spent")
                    break
        except Stopped as stopped:
            return stopped.stop
        return Stop.NO

    def complete(self) -> None:
        """Ends the run for good."""
        trained = self.job.on_main(lambda: [each.number for each in self.ledger.rounds() if each.is_trained])
        step = max(trained, default=0) * self.arguments.training_steps
        self.job.on_main(lambda: self._keep_evaluation(step))
        training.complete(self.job, self.tracker, step)

    def hand_on(self, stop: Stop) -> None:
        """Ends this attempt after a stop. Does not return."""
        training.hand_on(self.job, self.tracker, stop)

    def _keep_evaluation(self, step: int) -> None:
        """Writes RUN/evaluation.json of the last policy, also where the run ends before its last round."""
        from gilbreth_phase0.contenders import TRAINED
        from gilbreth_phase0.evaluate import write_evaluation

        self.job.check_ownership()
        result = Record.read(self.job.run_dir, step, self.job.run_dir / BUNDLE).result()
        if result is not None:
            write_evaluation(self.job.run_dir, {TRAINED: result})

    def _left(self) -> int | None:
        """Takeovers that the rounds to come may have; None for any number."""
        total = self.arguments.num_interventions
        return total - spent(self.ledger.rounds()) if total else None

    def _share(self, number: int) -> int | None:
        """Takeovers of one round: what is left is shared out over the rounds that are."""
        left = self._left()
        return None if left is None else -(-left // (self.arguments.rounds - number + 1))

    def _evaluate_start(self) -> None:
        """Evaluates the policy that is to be corrected, which is the first candidate for the best one."""
        first = self._policy_of(1)
        gating = self._gating(load_bundle(first), {}, 0)
        if self.arguments.eval_episodes:
            _raise(gating.consider_start(first))
        else:
            self.job.on_main(lambda: gating.take_start(first))

    def _policy_of(self, number: int) -> Path:
        """The policy that a round rolls out."""
        return self.ledger.folder(number) / "policy"

    def _pass_on(self, found: Round) -> None:
        """Has the next round roll out the same policy from other starts: in this one there was nothing to correct."""
        self.job.say(f"the policy solved all {found.roll_outs} roll-outs alone: there is nothing to correct")
        following = self._policy_of(found.number + 1)
        if found.number < self.arguments.rounds and not self.job.on_main(following.exists):
            self.job.on_main(lambda: take_bundle(self._policy_of(found.number), following))

    def _collect(self, number: int) -> Round:
        """Rolls the policy out with interventions and makes a dataset of that."""
        arguments, job = self.arguments, self.job
        # Rounds that train nothing have their steps too: what is logged at a step twice is lost to a later attempt.
        step = (number - 1) * arguments.training_steps
        first = arguments.rollout_seed + (number - 1) * arguments.episodes
        is_recorded = arguments.expert == "recorded"
        if is_recorded:
            found = job.on_main(lambda: beginning.recorded_round(arguments))
        else:
            job.say(f"round {number} of {arguments.rounds}: {arguments.episodes} roll-outs, gate {arguments.gate}")
            gate = job.on_main(lambda: make_gate(arguments, self.start, self.ledger, number))
            worker = make_worker(self.start, self._policy_of(number), gate)
            plan = Plan(
                self.ledger.folder(number) / "rollouts",
                range(first, first + arguments.episodes),
                job.on_main(lambda: self._share(number)),
                0 if self.start.person is not None else arguments.rollout_workers,
            )
            seeds = collect(job, plan, worker)
            found = job.on_main(lambda: self._aggregate(number, plan, seeds))
        self.tracker.log_metrics(found.metrics(), step=step)
        job.say(_words(found))
        job.on_main(lambda: self._keep(found))
        return found

    def _aggregate(self, number: int, plan: Plan, seeds: list[int]) -> Round:
        """Makes a dataset of a round's roll-outs, where there is something to learn in them."""
        self.job.check_ownership()
        found = summarise(number, plan.roll_outs(seeds))
        beginning.check_round(found, self.arguments)
        if not found.expert_frames:
            return found
        name = self._dataset(number)
        facts = {
            "run": self.job.run_dir.name,
            "run_id": self.start.token,
            "round": number,
            "seeds": [seeds[0], seeds[-1]],
            "expert": self.arguments.expert,
            "gate": self.arguments.gate,
            "initial_policy": str(self.start),
            "roll_outs": plan.digest(seeds),
        }
        kept = write_dataset(
            self.arguments.root / name,
            name,
            self.start.environment,
            plan.roll_outs(seeds),
            facts=facts,
            check_ownership=self.job.check_ownership,
        )
        return dataclasses.replace(found, dataset=name, kept=kept[self.arguments.dagger_filter])

    def _keep(self, found: Round) -> None:
        beginning.check_corrections(found, self.arguments)
        self.job.check_ownership()
        # What the record says is not logged again.
        self.tracker.flush()
        self.ledger.write(found)

    def _dataset(self, number: int) -> str:
        return f"{self.arguments.dagger_repo_id or self.job.run_dir.name}/round-{number:02d}"

    def _train(self, found: Round) -> None:
        """Trains on everything so far, evaluates, and lets the gate decide."""
        from lerobot.utils.random_utils import set_seed

        arguments, steps = self.arguments, self.arguments.training_steps
        first, last = (found.number - 1) * steps, found.number * steps
        set_seed(arguments.seed)
        policy = load_bundle(self._policy_of(found.number), self.job.device)
        data = self._data(policy, found.number)
        if arguments.from_scratch:
            policy = make_policy(policy.config, data.meta, data.stats)
        prepared = prepare(arguments, self.job, policy, first)
        total = arguments.rounds * steps
        trainer = make_trainer(
            arguments,
            self.job,
            policy,
            data,
            prepared=prepared,
            tracker=self.tracker,
            first_step=first,
            steps_of_run=total,
        )
        is_last = found.number == arguments.rounds or self.job.on_main(self._left) == 0
        gating = self._gating(policy, data.facts, last, is_last=is_last)
        with Behind(gating, eval_workers(arguments), trainer) as behind:
            _raise(trainer.run(behind.consider, is_behind=behind.is_behind))
            _raise(behind.finish(last))
        self.job.on_main(lambda: self._trained(found, last))

    def _trained(self, found: Round, step: int) -> None:
        self.job.check_ownership()
        bundle = self.job.run_dir / BUNDLE
        result = Record.read(self.job.run_dir, step, bundle).result()
        if found.number < self.arguments.rounds:
            take_bundle(bundle, self._policy_of(found.number + 1))
        counts = (result.successes, len(result.episodes)) if result is not None else (None, None)
        done = evaluated(found, *counts)
        rounds = [*self.ledger.rounds()[: found.number - 1], done]
        cost = {"dagger/expert_frames_total": sum(each.expert_frames for each in rounds)}
        self.tracker.log_metrics(cost, step=step)
        show_curve(self.job.run_dir, rounds, self.tracker, step)
        self.tracker.flush()
        self.ledger.write(done)

    def _data(self, policy: Policy, number: int) -> TrainingData:
        """Everything that the policy of a round is trained on."""
        arguments = self.arguments
        sources = list(self.start.sources(arguments))
        rounds = [self.job.agreed(self.ledger.read(each)) for each in range(1, number + 1)]
        sources += [
            Source(arguments.root / name, name, arguments.correction_weight)
            for name in _datasets(rounds, names(arguments.corrections))
        ]
        config = policy.config
        if hasattr(config, "drop_n_last_frames"):
            # Of corrections, which are short, little would be left: their ends stay, and padding is not learnt from.
            config.drop_n_last_frames = 0
            mask_padding(config)
        return open_training_data(sources, config, dagger_filter=arguments.dagger_filter, say=self.job.say)

    def _gating(self, policy: Policy, facts: Mapping[str, Any], step: int, *, is_last: bool = False) -> Gating:
        arguments, rounds = self.arguments, self.ledger.rounds()
        own = {
            "policy": self.start.policy_type,
            "initial_policy": str(self.start),
            "round": len(rounds),
            "expert_frames": sum(each.expert_frames for each in rounds),
            "interventions": spent(rounds),
        }
        return Gating(
            policy=policy,
            policy_type="dagger",
            datasets=[source.root for source in self.start.sources(arguments)],
            facts={**facts, **own},
            seeds=selection_seeds(arguments),
            rules=read_management(arguments, self.job.run_dir),
            best_rule=arguments.best_rule,
            last_step=step if is_last else arguments.rounds * arguments.training_steps,
            job=self.job,
            tracker=self.tracker,
            milestones=frozenset({step} if step else ()),
            inputs=self.start.inputs,
            max_steps=arguments.max_steps or None,
            mirror=arguments.use_wandb,
            save_video=arguments.save_video,
        )


def _datasets(rounds: Iterable[Round | None], recorded: list[str]) -> list[str]:
    return [*(each.dataset for each in rounds if each is not None and each.dataset is not None), *recorded]


def _raise(stop: Stop) -> None:
    if stop is not Stop.NO:
        raise Stopped(stop)


def _words(found: Round) -> str:
    discarded = f" ({found.discarded} more discarded)" if found.discarded else ""
    return (
        f"round {found.number}: {found.roll_outs} roll-outs{discarded}, {found.solved} solved,"
        f" {found.solved_alone} of them without help; {found.takeovers} takeovers, {found.expert_frames} frames of the"
        f" expert (switch rate {found.switch_rate:.3f}), {found.kept} episodes of it kept"
    )
