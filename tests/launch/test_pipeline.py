"""Pipelines without Slurm: the plan, what is refused, the record, and what is done for one that stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import Formatter
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from launch.config import ROOT, resolve
from launch.jobs.folders import find_runs
from launch.jobs.view import look_at
from launch.pipeline import record as records
from launch.pipeline.__main__ import app
from launch.pipeline.decisions import Seen, changes, decide, next_run
from launch.pipeline.gates import GateView, look_at_gate, new_gate, script
from launch.pipeline.handoff import ROLES
from launch.pipeline.plan import Step, read_conditions
from launch.pipeline.record import Record, StepRecord
from launch.pipeline.submitting import Pipeline, mend, steps_of, submit_all
from launch.pipeline.tables import status
from launch.preflight import findings
from launch.slurm import JobState
from launch.submission import StoppedError
from tracking.errors import UserError
from tracking.files import read_json, write_atomic, write_json
from tracking.sync.scan import find

THREE, FOUR = ["collect", "bc", "eval"], ["collect", "bc", "dagger", "eval"]


def make(folder: Path, *settings: str, stages: list[str] = THREE, conditions: dict[str, Any] | None = None) -> Record:
    given = [
        f"cluster.run_root={json.dumps(str(folder / 'runs'))}",
        f"cluster.data_root={json.dumps(str(folder / 'data'))}",
    ]
    return Record("mine", "lab", stages, [*given, "cluster.node_local=[]", *settings], conditions or {})


def errors(steps: list[Step]) -> list[str]:
    return [one.what for step in steps for one in findings(step.config, step.spec) if one.level == "error"]


def test_stages_hand_on_by_name(tmp_path: Path) -> None:
    collect, bc, evaluation = steps_of(make(tmp_path, "collect.repo_id=cubes", "bc.resources.time=0:30:00"))
    assert bc.config.arguments["repo_ids"] == "cubes"
    assert evaluation.config.arguments["policies"] == ["act-cubes:mine"]
    assert (collect.product.folder, bc.product.model) == (tmp_path / "data" / "cubes", "act-cubes")
    assert (bc.spec.name, bc.spec.resources.time, collect.spec.resources.time) == ("mine-bc", 30, 60)
    assert errors([collect, bc, evaluation]) == []


def test_a_model_of_several_datasets_has_the_name_that_its_program_gives_it(tmp_path: Path) -> None:
    names = ("lift,extra", "lift, extra", "lab/lift,extra")
    steps = [steps_of(make(tmp_path, f"bc.repo_ids={given}", stages=["bc", "eval"])) for given in names]
    assert {bc.product.model for bc, _ in steps} == {"act-lift-extra"}


def test_dagger_takes_data_and_policy_and_eval_takes_all_policies(tmp_path: Path) -> None:
    _, _, dagger, evaluation = steps_of(make(tmp_path, "collect.repo_id=cubes", stages=FOUR))
    given = [dagger.config.arguments[key] for key in ("repo_ids", "policy_artifact", "from_checkpoint")]
    assert given == ["cubes", "act-cubes:mine", None]
    assert [(one.stage, one.argument) for one in dagger.takes] == [("collect", "repo_ids"), ("bc", "policy_artifact")]
    assert evaluation.config.arguments["policies"] == ["act-cubes:mine", "dagger-cubes:mine"]
    assert [one.stage for one in evaluation.takes] == ["bc", "dagger"]
    assert dagger.product.model == "dagger-cubes"
    assert errors([dagger, evaluation]) == []


def test_a_policy_that_is_set_by_hand_is_alone(tmp_path: Path) -> None:
    """THEN none is handed on beside it, in whichever argument it stands; one of the pipeline's is still its stage's."""
    by_hand = ["dagger.from_checkpoint=/elsewhere/bundle", "eval.policy=dagger-lift:mine"]
    _, _, dagger, evaluation = steps_of(make(tmp_path, *by_hand, stages=FOUR))
    assert (dagger.config.arguments["policy_artifact"], [one.stage for one in dagger.takes]) == (None, ["collect"])
    assert (evaluation.config.arguments["policies"], [one.stage for one in evaluation.takes]) == ([], ["dagger"])
    assert [one.partition(":")[0] for one in errors([dagger, evaluation])] == [
        "dagger.from_checkpoint='/elsewhere/bundle'"
    ]


def test_the_table_names_arguments_that_there_are() -> None:
    for stage, role in ROLES.items():
        given = resolve(stage, "lab", []).arguments
        named = {role.dataset, role.episodes, role.evaluation} - {None}
        named |= {name for _, name, _, _ in Formatter().parse(role.model or "") if name}
        assert named <= given.keys(), stage


def test_what_is_uploaded_is_said_of_one_stage(tmp_path: Path) -> None:
    """THEN it is one of the things that a run was asked for: other rules make it another run."""
    given = "bc.model_management.upload_conditions.min_success_rate=0.6"
    before, after = (steps_of(make(tmp_path, *settings))[1] for settings in ([], [given]))
    (tmp_path / "config.yaml").write_text(before.config.dump("mine-bc"))
    assert changes(before, tmp_path) == []
    assert changes(after, tmp_path) == ["model_management.upload_conditions"]


def test_what_no_stage_makes_is_missing_all_the_same(tmp_path: Path) -> None:
    """THEN an order in which nothing is made before it is needed is refused, and so is a dataset set by hand."""
    assert any("dataset 'lift' is not in" in one for one in errors(steps_of(make(tmp_path, stages=["bc", "eval"]))))
    assert any("eval.policy is not set" in one for one in errors(steps_of(make(tmp_path, stages=["eval", "bc"]))))
    by_hand = steps_of(make(tmp_path, "bc.repo_ids=elsewhere"))
    assert by_hand[1].takes == ()
    assert any("dataset 'elsewhere' is not in" in one for one in errors(by_hand))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no stages are given"),
        (["bcc"], "Did you mean 'bc'?"),
        (["bc", "bc"], "given 2 times"),
        (["collect", "bc", "--name=best"], "means something else"),
        (["collect", "bc", "--name=v3"], "means something else"),
        (["collect", "bc", "--name=it's"], "cannot be part of a path"),
        (["collect", "bc", "--min=bc.success=1"], "unknown metric 'success'"),
        (["collect", "bc", "--min=collect.success_rate=1"], "unknown stage that evaluates in this pipeline 'collect'"),
        (["collect", "bc", "--min=bc.success_rate=high"], "expected STAGE.METRIC=NUMBER"),
        (["collect", "bc", "--min=bc.success_rate=1", "--max=bc.success_rate=0"], "at least 1 and at most 0"),
        (["collect", "bc", "--min=bc.success_rate=1", "--set=bc.eval_episodes=0"], "nothing is evaluated"),
        (["collect", "bc", "--set=eval.episodes=2"], "unknown key 'eval.episodes'"),
        (["collect", "bc", "--set=gate.time=2"], "unknown key 'gate.time'"),
        (["collect", "bc", "--set=bc.stepz=2"], "Did you mean 'bc."),
        (["collect", "bc", "--set=name=x"], "use --name"),
        (["collect", "bc", "--set=bc.cluster.run_root=/elsewhere"], "need one cluster.run_root"),
        (["collect", "bc", "--cluster=local"], "a pipeline needs a queue"),
        (["--resume=nobody"], "there is no pipeline in"),
        (["bc", "--resume=mine"], "leave out the stages"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GILBRETH_LAB", str(tmp_path / "no-lab"))
    place = [] if any("--cluster" in one for one in arguments) else ["--cluster=lab"]
    done = CliRunner().invoke(app, ["run", *arguments, *place, f"--root={tmp_path / 'runs'}"])
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())
    assert not (tmp_path / "runs").exists()


def test_the_script_of_a_gate(tmp_path: Path) -> None:
    """GIVEN a run root with an odd name THEN every value is quoted."""
    wanted = read_conditions({"min": ["bc.success_rate=0.5"], "max": ["bc.success_rate=0.9"]}, THREE)
    step = steps_of(make(tmp_path / "it's", "gate.resources.memory_gb=8", conditions=wanted))[1]
    text = script(step, new_gate(step, "mine"), "mine")
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    assert "#SBATCH --job-name=mine-bc-gate\n" in text and "#SBATCH --mem=8192M\n" in text
    assert "#SBATCH --time=00:15:00\n" in text
    assert " --min=success_rate=0.5 --max=success_rate=0.9 --model=act-lift\n" in text
    runs = str(tmp_path / "it's" / "runs").replace("'", "'\"'\"'")
    assert f"run='{runs}/mine-bc'\n" in text


def test_a_record_is_not_taken_for_a_run(tmp_path: Path) -> None:
    record = make(tmp_path)
    record.steps["bc"] = StepRecord("mine-bc", "12", {"collect": "mine-collect"}, new_gate(steps_of(record)[1], "mine"))
    records.write(tmp_path / "runs", record)
    with records.claimed(tmp_path / "runs", "mine"), pytest.raises(UserError, match="another command is at"):
        claim = f"with record.claimed(Path({str(tmp_path / 'runs')!r}), 'mine'): pass"
        program = f"from pathlib import Path\nfrom launch.pipeline import record\n{claim}"
        other = [sys.executable, "-c", program]
        done = subprocess.run(other, cwd=ROOT, capture_output=True, text=True, check=False)
        raise UserError(done.stderr)
    again = records.read(tmp_path / "runs", "mine")
    assert again is not None and again.steps == record.steps
    assert find_runs([tmp_path / "runs"]) == []
    assert list(find([tmp_path / "runs"])) == []


# What is done for a pipeline that stopped.


@pytest.fixture
def stopped(tmp_path: Path) -> Callable[..., tuple[Record, list[Seen]]]:
    """A pipeline in which each stage is a run's word and a gate's word."""

    def build(*words: tuple[str, str], conditions: dict[str, Any] | None = None) -> tuple[Record, list[Seen]]:
        record = make(tmp_path, conditions=conditions)
        seen = []
        for step, (word, gate) in zip(steps_of(record), words, strict=True):
            own = StepRecord(step.spec.name, "12", {one.stage: f"mine-{one.stage}" for one in step.takes})
            own.gate = replace(new_gate(step, "mine"), job_id="13") if gate != "none" else None
            step.spec.run_dir.mkdir(parents=True, exist_ok=True)
            write_json(
                step.spec.run_dir / "submission.json", {"state": "submitted", "job_id": None, "stage": step.stage}
            )
            write_atomic(step.spec.run_dir / "config.yaml", step.config.dump(step.spec.name))
            record.steps[step.stage] = own
            (view,), _ = look_at(find_runs([step.spec.run_dir]), 0.0)
            seen.append(Seen(step.stage, own, replace(view, word=word), GateView(gate, "", "13")))
        return record, seen

    return build


def actions(record: Record, seen: list[Seen]) -> list[str]:
    return [one.action for one in decide(steps_of(record), seen)]


def test_a_new_pipeline_is_submitted_whole(tmp_path: Path) -> None:
    seen = [Seen(stage, None, None, GateView("none")) for stage in THREE]
    assert actions(make(tmp_path), seen) == ["new", "new", "new"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([("done", "passed")] * 3, ["skip", "skip", "skip"]),
        ([("done", "passed"), ("runs", "waits"), ("waits", "waits")], ["skip", "leave", "leave"]),
        ([("done", "passed"), ("failed", "failed"), ("cancelled", "ended")], ["skip", "again", "again"]),
        ([("done", "passed"), ("failed", "failed"), ("stuck", "waits")], ["skip", "again", "again"]),
        ([("done", "passed"), ("done", "failed"), ("cancelled", "ended")], ["skip", "gate", "again"]),
        ([("done", "passed"), ("runs", "failed"), ("cancelled", "ended")], ["skip", "gate", "again"]),
        ([("runs", "none"), ("waits", "none"), ("waits", "none")], ["gate", "again", "again"]),
        ([("failed", "failed"), ("cancelled", "ended"), ("cancelled", "ended")], ["again", "again", "again"]),
    ],
)
def test_what_is_done_for_one_that_stopped(
    words: list[tuple[str, str]], expected: list[str], stopped: Callable[..., tuple[Record, list[Seen]]]
) -> None:
    assert actions(*stopped(*words)) == expected


def test_other_settings_are_another_run_there_and_behind(stopped: Callable[..., tuple[Record, list[Seen]]]) -> None:
    record, seen = stopped(("done", "passed"), ("done", "passed"), ("done", "passed"))
    record.settings.append("bc.resources.time=3:00:00")
    assert actions(record, seen) == ["skip", "skip", "skip"], "what Slurm is asked for is no other training"
    record.settings.append("bc.training_steps=7")
    skipped, bc, evaluation = decide(steps_of(record), seen)
    assert (skipped.action, bc.action, evaluation.action) == ("skip", "new", "new")
    assert (bc.run, bc.why, evaluation.run) == ("mine-bc-2", "bc.training_steps changed", "mine-eval-2")
    assert evaluation.why == "bc has a new run"
    assert [step.spec.name for step in steps_of(record, [skipped, bc, evaluation])] == [
        *("mine-collect", "mine-bc-2", "mine-eval-2")
    ]
    assert next_run("mine-bc-9") == "mine-bc-10"


def test_other_conditions_are_another_gate(stopped: Callable[..., tuple[Record, list[Seen]]]) -> None:
    record, seen = stopped(("done", "passed"), ("done", "passed"), ("cancelled", "ended"))
    record.conditions = read_conditions({"min": ["bc.success_rate=0.5"], "max": []}, THREE)
    assert actions(record, seen) == ["skip", "gate", "again"]


def test_what_runs_is_not_changed(stopped: Callable[..., tuple[Record, list[Seen]]]) -> None:
    record, seen = stopped(("done", "passed"), ("runs", "waits"), ("waits", "waits"))
    record.settings.append("bc.training_steps=7")
    with pytest.raises(UserError, match=r"bc runs now \(mine-bc\), and bc.training_steps was changed"):
        actions(record, seen)
    seen[1] = replace(seen[1], view=replace(seen[1].view, word="unknown"))
    with pytest.raises(UserError, match="nobody can tell"):
        actions(record, seen)
    record, seen = stopped(("done", "passed"), ("ends", "ended"), ("cancelled", "ended"))
    with pytest.raises(UserError, match="mine-bc is being stopped"):
        actions(record, seen)


def test_a_gate_is_what_it_decided_else_what_its_job_is(tmp_path: Path) -> None:
    gate = replace(new_gate(steps_of(make(tmp_path))[1], "mine"), folder=str(tmp_path / "gate"))
    assert look_at_gate(gate, tmp_path, {}).word == "unknown"
    gate.job_id = "13"
    assert look_at_gate(gate, tmp_path, {"13": JobState("13", "PENDING")}).word == "waits"
    assert look_at_gate(gate, tmp_path, {"13": JobState("13", "CANCELLED")}).word == "ended"
    (tmp_path / "gate" / "links").mkdir(parents=True)
    write_json(tmp_path / "gate" / "links" / "15.json", {"job_id": "15", "after": "13", "time": 1})
    known = {"13": JobState("13", "COMPLETED"), "15": JobState("15", "RUNNING")}
    assert look_at_gate(gate, tmp_path, known) == GateView("runs", "", "15")
    verdict = {"gate": "of-an-earlier-one", "passed": True, "faults": [], "good": ["the bundle loads"], "model": None}
    write_json(tmp_path / "promotion.json", verdict)
    assert look_at_gate(gate, tmp_path, known).word == "runs"
    write_json(tmp_path / "promotion.json", verdict | {"gate": gate.key})
    assert look_at_gate(gate, tmp_path, known) == GateView("passed", "the bundle loads", "15")


def test_the_screen_of_a_pipeline_that_stopped(stopped: Callable[..., tuple[Record, list[Seen]]]) -> None:
    record, seen = stopped(("done", "passed"), ("done", "failed"), ("cancelled", "ended"))
    seen[1] = replace(seen[1], gate=GateView("failed", "success_rate is 0.2, at least 0.5 is asked for", "13"))
    console = Console(width=80)
    with console.capture() as captured:
        console.print(status(record, seen, " --cluster lab --root /runs"))
    shown = captured.get()
    assert "bc: gate failed: success_rate is 0.2, at least 0.5 is asked for" in " ".join(shown.split())
    assert "not begun" in shown
    assert "python -m launch.pipeline run --resume mine --cluster lab --root /runs" in " ".join(shown.split())
    assert max(map(len, shown.splitlines())) <= 80


def test_the_screen_ends_with_the_policies_on_the_same_seeds(
    stopped: Callable[..., tuple[Record, list[Seen]]], tmp_path: Path
) -> None:
    record, seen = stopped(*[("done", "passed")] * 3)
    run = tmp_path / "runs" / "mine-eval"
    first = {"successes": 61, "trials": 100, "interval_95": [0.512, 0.7], "mean_length": 120.4}
    against = {"policy": "act-lift:mine", "better": 30, "worse": 2, "p": 1e-7, "p_holm": 2.46e-7}
    second = {"successes": 89, "trials": 100, "interval_95": [0.81, 0.94], "mean_length": 60.0, "against": against}
    write_json(run / "evaluation.json", {"act-lift:mine": first, "dagger-lift:mine": second})
    write_json(run / "done.json", {"step": 100})
    (view,), _ = look_at(find_runs([run]), 0.0)
    seen[2] = replace(seen[2], view=view)
    console = Console(width=80)
    with console.capture() as captured:
        console.print(status(record, seen, ""))
    lines = [" ".join(line.split()) for line in captured.get().splitlines()]
    assert lines[-4].startswith("eval: the policies on the same 100 seeds")
    assert lines[-2:] == [
        "act-lift:mine 61/100 51-70 % 120",
        "dagger-lift:mine 89/100 81-94 % 60 +30 -2, p 2.5e-07",
    ]
    write_json(run / "evaluation.json", {"trained": first})
    with console.capture() as captured:
        console.print(status(record, seen, ""))
    assert "same" not in captured.get()


def test_a_command_that_was_killed_leaves_its_jobs_to_the_next(tmp_path: Path) -> None:
    """GIVEN it died between sbatch and its record THEN stage and gate have the jobs that Slurm gave them."""
    record = make(tmp_path)
    collect = steps_of(record)[0]
    gate = replace(new_gate(collect, "mine"), folder=str(tmp_path / "gate"))
    record.steps["collect"] = StepRecord("mine-collect", None, {}, gate)
    collect.spec.run_dir.mkdir(parents=True)
    write_json(collect.spec.run_dir / "submission.json", {"state": "adopted", "job_id": "76"})
    (tmp_path / "gate").mkdir()
    (tmp_path / "gate" / f".submission-{gate.key}").touch()
    (tmp_path / "gate" / "sbatch.out").write_text("Submitted batch job 77\n")
    mend(tmp_path / "runs", record)
    own = read_json(tmp_path / "runs" / "pipelines" / "mine" / "pipeline.json")["steps"]["collect"]
    assert (own["job_id"], own["gate"]["job_id"], own["gate"]["key"]) == ("76", "77", gate.key)

    # One that died before sbatch was called has no gate yet.
    own_gate = record.steps["collect"].gate
    assert own_gate is not None
    own_gate.job_id = None
    (tmp_path / "gate" / "sbatch.out").unlink()
    mend(tmp_path / "runs", record)
    assert record.steps["collect"].gate is None


def test_ctrl_c_in_the_middle_says_what_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN stages that are queued already THEN what was not submitted is named, and the command that goes on."""

    def press(path: Path, content: str) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("launch.submission.write_atomic", press)
    record = make(tmp_path)
    steps = steps_of(record)
    seen = [Seen(step.stage, None, None, GateView("none")) for step in steps]
    with pytest.raises(StoppedError) as error:
        submit_all(Pipeline(tmp_path / "runs", record, steps, decide(steps, seen), seen))
    assert str(error.value).splitlines() == [
        "interrupted: collect was not submitted; what was queued before it stays",
        "  next: python -m launch.pipeline run --resume mine",
        "        python -m launch.pipeline cancel mine",
    ]
    assert not steps[0].spec.run_dir.exists()
