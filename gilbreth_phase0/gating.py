"""What follows from a checkpoint of a training run: a bundle, its evaluation, the gate's verdict, a name in the store.

```
RUN/bundle/                          the newest policy that was made of a checkpoint
RUN/best/step-00000300/              the best one so far; hard links
RUN/best_model/                      the same; hard links, as those that follow
RUN/checkpoint_5000/                 the policy of every 5000th step
RUN/final_model/                     that of the last step
RUN/evaluations/step-00000300.json   what an evaluation found, what was decided, and what was published
RUN/gate.json                        what the gate remembers
```
All of it can be repeated: what an attempt that was killed in here did not come to, the next one makes up for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.datasets import ENVIRONMENT_FILE, read_environment, write_environment
from gilbreth_phase0.job import Job
from gilbreth_phase0.kept_bundles import BUNDLE, FINAL_MODEL, best_bundle, keep_best, take_bundle
from gilbreth_phase0.publishing import BEST, FINAL, LAST_SEED, Candidate, Trials, publish_policy
from gilbreth_phase0.stop import Stop
from gilbreth_phase0.trials import Stopped, Try, with_all_ranks
from gilbreth_phase0.videos import FOLDER as VIDEOS
from tracking import checkpoints
from tracking.errors import UserError
from tracking.files import read_json, write_json
from tracking.gate import BestRule, Evaluation, Gate, ModelManagement, Verdict
from tracking.gate.best import Outcomes
from tracking.gate.gate import STATE, Confirm
from tracking.gate.rules import check_metrics, metric_name
from tracking.model_management import WEIGHTS
from tracking.store.contents import file_digest

if TYPE_CHECKING:
    from gilbreth_phase0.evaluate import EvaluationResult
    from gilbreth_phase0.policies import Policy
    from gilbreth_phase0.rollout import Episode
    from tracking import ExperimentTracker

# What of an episode counts where a metric decides what is best.
_VALUES: Mapping[str, Callable[[Episode], float]] = {
    "success_rate": lambda episode: float(episode.success),
    "reward_per_step": lambda episode: float(episode.reward / episode.length),
}


@dataclass(frozen=True)
class Gating:
    """What a training run's checkpoints come to.

    Attributes:
        policy: The policy that is trained; its weights are taken from checkpoints.
        policy_type: What its model is called before the datasets' names: LeRobot's name of its type, or `dagger`.
        datasets: The folders of the datasets that it is trained on; the first one names the environment.
        facts: What else the metadata of its models tell.
        seeds: The seeds that select a policy; none for no evaluation.
        rules: What is uploaded, and when.
        best_rule: How the best one is told.
        last_step: The step that training ends with.
        job: This rank and its job.
        tracker: Logs on rank 0.
        milestones: Steps whose policies get a name whether the gate uploads them or not; the last one always does.
        inputs: The models that it was made from, as `name:vN`.
        max_steps: Steps of an episode, in place of the environment's horizon.
        mirror: Whether W&B gets what the gate uploads.
        save_video: Whether the evaluation of the last step is filmed.
        checkpoint_freq: Steps between the bundles that stay; 0 for none.
        eval_freq: Where bundles stay: which of their steps are evaluated, beside the last one and the milestones.
        made: The bundle that is decided about, where it is not RUN/bundle.
    """

    policy: Policy
    policy_type: str
    datasets: Sequence[Path]
    facts: Mapping[str, Any]
    seeds: range
    rules: ModelManagement
    best_rule: BestRule
    last_step: int
    job: Job
    tracker: ExperimentTracker
    milestones: frozenset[int] = frozenset()
    inputs: Sequence[str] = ()
    max_steps: int | None = None
    mirror: bool = True
    save_video: bool = False
    checkpoint_freq: int = 0
    eval_freq: int = 0
    made: Path | None = None

    def consider(self, step: int) -> Stop:
        """Makes the newest checkpoint a bundle and evaluates it; publishes it where the gate says so, and at the end.

        Every rank must call it.

        Args:
            step: The step of the newest checkpoint.

        Returns:
            Why the ranks stopped before the end of the evaluation, or `Stop.NO`.
        """
        checkpoint = self.job.on_main(lambda: self._make_bundle(step))
        if not self.is_decided(step):
            return Stop.NO
        try:
            with_all_ranks(
                self.job,
                self._bundle,
                lambda tries: self.decide(step, checkpoint, tries),
                max_steps=self.max_steps,
                videos=self.job.run_dir / VIDEOS if self.save_video and step == self.last_step else None,
                filmed=self.seeds,
            )
        except Stopped as stopped:
            return stopped.stop
        return Stop.NO

    def consider_start(self, bundle: Path) -> Stop:
        """Evaluates the policy that the run starts from, as that of step 0; every rank must call it.

        Args:
            bundle: Its folder, which stays as it is; it is evaluated where all later ones are.
        """
        self.job.on_main(lambda: self.take_start(bundle))
        try:
            with_all_ranks(self.job, self._bundle, lambda tries: self.decide(0, None, tries), max_steps=self.max_steps)
        except Stopped as stopped:
            return stopped.stop
        return Stop.NO

    def take_start(self, bundle: Path) -> None:
        """Has the policy that the run starts from as the run's own, in the run's environment."""
        take_bundle(bundle, self._bundle)
        write_environment(self._bundle / ENVIRONMENT_FILE, read_environment(self.datasets[0]))

    @property
    def _bundle(self) -> Path:
        return self.made if self.made is not None else self.job.run_dir / BUNDLE

    def is_decided(self, step: int) -> bool:
        """Whether a step is more than one of those whose bundles stay."""
        is_evaluated = self.eval_freq > 0 and step % self.eval_freq == 0
        return not self.checkpoint_freq or is_evaluated or step in {self.last_step, *self.milestones}

    def _make_bundle(self, step: int) -> Path:
        """Makes the policy bundle of the newest checkpoint, on rank 0, and returns the checkpoint."""
        from gilbreth_phase0.policies import save_bundle
        from tracking.consolidate import consolidated_weights

        self.job.check_ownership()
        found = checkpoints.newest_whole(self.job.run_dir / "checkpoints", self.job.say)
        if found is None:
            raise RuntimeError(f"a step was saved, and there is no checkpoint in {self.job.run_dir}")
        save_bundle(self.policy, consolidated_weights(found[0]), read_environment(self.datasets[0]), self._bundle)
        self.keep(step)
        return found[0]

    def keep(self, step: int) -> None:
        """Has the bundle of a step where users and later stages look for it."""
        if self.made is not None:
            take_bundle(self.made, self.job.run_dir / BUNDLE)
        self.job.say(f"policy bundle: {self.job.run_dir / BUNDLE}")
        if self.checkpoint_freq and step % self.checkpoint_freq == 0:
            take_bundle(self._bundle, self.job.run_dir / f"checkpoint_{step}")
        if step == self.last_step:
            take_bundle(self._bundle, self.job.run_dir / FINAL_MODEL)

    def decide(self, step: int, checkpoint: Path | None, tries: Try) -> None:
        """What rank 0 does with the run's bundle.

        Args:
            step: The step that it is of.
            checkpoint: The checkpoint that it was made of; None for the policy that the run started from.
            tries: Evaluates policies.
        """
        record = Record.read(self.job.run_dir, step, self._bundle)
        if record.is_complete:
            return
        gate = Gate(self.rules, self.job.run_dir, self.best_rule)
        record, result = self._evaluate(record, tries) if self.seeds else (record, None)
        verdict = self._consider(gate, step, result, tries)
        self.job.check_ownership()
        if BEST in verdict.aliases and gate.best_step == step:
            if checkpoint is not None:
                checkpoints.mark_best(checkpoint)
            keep_best(self.job.run_dir, step, self._bundle)
        record = record.plus(verdict=asdict(verdict))
        if verdict.upload or step in {self.last_step, *self.milestones}:
            model = self._publish(step, result, verdict, gate, tries)
            if model is None:  # the next attempt tries again
                return
            record = record.plus(model=model)
        record.plus(complete=True).write()

    def _evaluate(self, record: Record, tries: Try) -> tuple[Record, EvaluationResult]:
        """Evaluates the bundle, where no attempt before this one did; the record has it then."""
        from gilbreth_phase0.contenders import TRAINED
        from gilbreth_phase0.evaluate import write_evaluation

        result = record.result()
        if result is None:
            result = tries(self._bundle, self.seeds)
            self.job.check_ownership()
            record = record.plus(**{TRAINED: result.as_json()})
            record.write()
        self.tracker.log_result(result.metrics(), step=record.step)
        self.job.say(f"evaluation on seeds {self.seeds[0]} to {self.seeds[-1]}: {result}")
        if record.step == self.last_step:
            write_evaluation(self.job.run_dir, {TRAINED: result})
        return record, result

    def _consider(self, gate: Gate, step: int, result: EvaluationResult | None, tries: Try) -> Verdict:
        """The gate's verdict; without an evaluation, what the conditions say to that."""
        if result is None:
            faults = tuple(self.rules.faults({}))
            is_best = self.rules.save_best_models and not faults
            return Verdict(not faults, (BEST,) if is_best else (), faults or ("it was not evaluated",))
        evaluation = Evaluation(step, result.metrics(), self._outcomes(result))
        verdict = gate.consider(evaluation, self._confirmation(gate, tries))
        if step == self.last_step and not verdict.upload and not self.rules.faults(evaluation.metrics):
            verdict = Verdict(True, verdict.aliases, (*verdict.reasons, "the last one"))
        self.job.say(f"step {step}: {verdict}{'' if self.mirror else ' (W&B does not get it)'}")
        return verdict

    def _confirmation(self, gate: Gate, tries: Try) -> Confirm | None:
        best = best_bundle(self.job.run_dir, gate.best_step)
        if best is None:
            return None

        def confirm(seeds: range) -> tuple[Outcomes, Outcomes]:
            self.job.say(f"this policy and that of {best.name}, on the fresh seeds {seeds[0]} to {seeds[-1]}:")
            found = (self._outcomes(tries(self._bundle, seeds)), self._outcomes(tries(best, seeds)))
            self.job.check_ownership()
            return found

        return confirm

    def _outcomes(self, result: EvaluationResult) -> Outcomes:
        return outcomes_of(result, self.rules.best_model_metric)

    def _publish(
        self, step: int, result: EvaluationResult | None, verdict: Verdict, gate: Gate, tries: Try
    ) -> str | None:
        """Gives the bundle its name in the model store; the run goes on without that, too."""
        candidate = Candidate(
            run_dir=self.job.run_dir,
            bundle=self._bundle,
            policy=self.policy_type,
            dataset="-".join(folder.name for folder in self.datasets),
            step=step,
            outcomes=self._outcomes(result) if result else {},
            metric=metric_name(self.rules.best_model_metric),
            facts=self._facts(result, verdict, gate),
            inputs=self.inputs,
        )
        trials = Trials(
            on=lambda bundle, seeds: self._outcomes(tries(bundle, seeds)),
            fresh=lambda used: gate.fresh_seeds(len(self.seeds), used),
        )
        aliases = [FINAL] if step == self.last_step else []
        try:
            published, why = publish_policy(
                candidate,
                aliases,
                may_be_best=BEST in verdict.aliases,
                mirror=verdict.upload and self.mirror,
                rule=self.best_rule,
                trials=trials if result else None,
            )
        except (UserError, OSError) as error:
            options = "".join(f" --alias {alias}" for alias in aliases)
            self.job.say(
                f"warning: the policy is not in the model store: {error}\n"
                f"  next: python -m tracking.models publish {self._bundle} {candidate.name}{options}"
            )
            return None
        names = ", ".join(published.version.aliases)
        self.job.say(f"model {published} ({names}) in {published.folder}; best: {why}")
        if not (verdict.upload and self.mirror):
            self.job.say(f"  it stays here; to have it on W&B all the same: python -m tracking.models push {published}")
        return str(published)

    def _facts(self, result: EvaluationResult | None, verdict: Verdict, gate: Gate) -> dict[str, Any]:
        facts: dict[str, Any] = {**self.facts, "gate": list(verdict.reasons)}
        if result is not None:
            facts |= {"success_rate": result.success_rate, "reward_per_step": result.reward_per_step}
            facts[LAST_SEED] = gate.last_seed
        if self.rules.keep_last_n is not None:
            facts["keep_last_n"] = self.rules.keep_last_n
        return facts


@dataclass(frozen=True)
class Record:
    """What is known of the policy of a step: RUN/evaluations/step-N.json.

    Attributes:
        path: The file.
        step: The step.
        value: What it holds; only what is of the same weights.
    """

    path: Path
    step: int
    value: Mapping[str, Any]

    @classmethod
    def read(cls, run_dir: Path, step: int, bundle: Path) -> Record:
        """Reads what earlier attempts found of exactly these weights."""
        path = run_dir / "evaluations" / f"{checkpoints.step_tag(step)}.json"
        weights = file_digest(bundle / WEIGHTS)
        value = read_json(path) or {}
        return cls(path, step, value if value.get("weights") == weights else {"step": step, "weights": weights})

    @property
    def is_complete(self) -> bool:
        """Whether nothing is left to be done."""
        return bool(self.value.get("complete"))

    def result(self) -> EvaluationResult | None:
        """What the evaluation found, where there was one."""
        from gilbreth_phase0.contenders import TRAINED
        from gilbreth_phase0.evaluate import EvaluationResult
        from gilbreth_phase0.rollout import Episode

        found = self.value.get(TRAINED)
        return EvaluationResult(tuple(Episode(**episode) for episode in found["episodes"])) if found else None

    def plus(self, **facts: Any) -> Record:
        """The same with more in it."""
        return Record(self.path, self.step, {**self.value, **facts})

    def write(self) -> None:
        """Writes it, whole or not at all."""
        self.path.parent.mkdir(exist_ok=True)
        write_json(self.path, dict(self.value))


def outcomes_of(result: EvaluationResult, metric: str) -> dict[int, float]:
    """What came out on each seed, in the metric that decides."""
    value = _VALUES[metric_name(metric)]
    return {episode.seed: value(episode) for episode in result.episodes}


def metrics() -> dict[str, list[str]]:
    """The metrics of an evaluation (`measured`), and which of them may decide what is best (`deciding`)."""
    from gilbreth_phase0.evaluate import summary
    from gilbreth_phase0.rollout import Episode

    measured = summary([Episode(seed=0, success=True, length=1, reward=0.0)]).metrics()
    return {"measured": list(measured), "deciding": list(_VALUES)}


def check_rules(rules: ModelManagement) -> None:
    """Refuses rules about what no evaluation measures.

    Raises:
        UserError: Names the metric, and those that there are.
    """
    check_metrics(rules, **metrics())


def check_seeds(run_dir: Path, rules: ModelManagement, seeds: range) -> None:
    """Refuses to go on with other seeds than those that the run's best policy was tried on.

    Raises:
        UserError: Says which those are.
    """
    if not seeds or not (run_dir / STATE).is_file():
        return
    known = Gate(rules, run_dir).best_seeds
    if known and known != list(seeds):
        raise UserError(
            f"--eval-seed {seeds[0]} --eval-episodes {len(seeds)}: the best policy of this run so far was tried on the"
            f" {len(known)} seeds from {known[0]} on, and others must be tried on the same\n"
            f"  next: --eval-seed {known[0]} --eval-episodes {len(known)}"
        )
