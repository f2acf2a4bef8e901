"""Pipelines in the lab's Slurm: gates that pass and fail, and taking up what stopped."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from launch.config import ROOT
from launch.lab import Lab
from launch.pipeline.gates import jobs_of, new_gate, submit_gate
from launch.pipeline.record import Record
from launch.pipeline.submitting import steps_of
from launch.places import in_lab
from tracking.files import read_json
from tracking.models.lineage import lineage
from tracking.store import Store

from support import wait_until
from tiny_dataset import SMALL, make_tiny_dataset

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.sim, pytest.mark.timeout(900)]

TINY = [
    *("cluster.node_local=[]", "tracking.mode=offline", "resources.gpus_per_node=0", "resources.tasks_per_node=1"),
    *("collect.episodes=3", "bc.training_steps=20", "bc.save_freq=10", "bc.batch_size=8", "bc.eval_episodes=1"),
    *("dagger.rounds=1", "dagger.episodes=2", "dagger.rollout_workers=1", "dagger.training_steps=10"),
    *("dagger.batch_size=8", "dagger.eval_episodes=1", "dagger.max_steps=70", "dagger.near_timeout=60"),
    *("eval.episodes=2", "eval.num_workers=1", "eval.max_steps=20", "gate.resources.gpus_per_node=0"),
    *(f"bc.policy_settings.{key}={json.dumps(value)}" for key, value in SMALL.items()),
]


class Pipelines:
    """The command, in processes of its own, in a run root with an odd name."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.environment = {**os.environ, **lab.environment(), "COLUMNS": "80"}
        self.environment.pop("GILBRETH_STORE", None)
        self.runs = folder / "it's my runs"
        self.data = folder / "data"

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "launch.pipeline", *arguments, "--cluster=lab", f"--root={self.runs}"],
            env=self.environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=180,
        )

    def start(self, name: str, stages: list[str], *arguments: str) -> str:
        return self.must("run", *stages, f"--name={name}", *self.settings(stages), *arguments)

    def settings(self, stages: list[str]) -> list[str]:
        """Those of stages that are not in the pipeline are refused there."""
        given = [*TINY, f"cluster.data_root={json.dumps(str(self.data))}"]
        others = {"collect", "bc", "dagger", "eval"} - set(stages)
        return [f"--set={one}" for one in given if one.split(".")[0] not in others]

    def killed(self, name: str, moment: Callable[[], object], *arguments: str) -> None:
        """Starts one and kills the command at a moment."""
        command = [sys.executable, "-m", "launch.pipeline", "run", *arguments, f"--name={name}", "--cluster=lab"]
        process = subprocess.Popen(
            [*command, f"--root={self.runs}"], env=self.environment, cwd=ROOT, stdout=subprocess.DEVNULL
        )
        try:
            wait_until(moment, 120, "the moment", interval=0.002)
        finally:
            process.kill()
            process.wait()

    def must(self, *arguments: str) -> str:
        done = self.command(*arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def record(self, name: str) -> dict[str, Any]:
        return read_json(self.runs / "pipelines" / name / "pipeline.json")

    def verdict(self, name: str, stage: str) -> dict[str, Any] | None:
        """What the present gate behind a stage has found."""
        step = self.record(name)["steps"][stage]
        found = read_json(self.runs / step["run"] / "promotion.json")
        return found if found is not None and found["gate"] == step["gate"]["key"] else None

    def slurm(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, check=True, timeout=60
        ).stdout

    def queue(self, name: str) -> list[str]:
        """Jobs of a pipeline that are queued."""
        lines = self.slurm("squeue", "--noheader", "--format=%j|%i|%T|%r").splitlines()
        return [line for line in lines if line.startswith(f"{name}-")]

    def wait_for(self, name: str, *stages: str) -> None:
        def state() -> str:
            logs = [path.read_text()[-1500:] for path in (ROOT / "logs").glob(f"{name}-*/**/*.out")]
            return "\n".join([*self.queue(name), *logs])

        def decided() -> bool:
            return all(self.verdict(name, stage) for stage in stages) and not self.queue(name)

        try:
            wait_until(decided, 600, "the gates", interval=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{state()}") from None


@pytest.fixture(scope="module")
def pipelines(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Pipelines:
    assert not in_lab()
    return Pipelines(lab, tmp_path_factory.mktemp("pipelines"))


def job(pipelines: Pipelines, name: str, stage: str) -> str:
    return pipelines.record(name)["steps"][stage]["job_id"]


def test_four_stages_with_gates_that_fail_and_pass(pipelines: Pipelines) -> None:
    """GIVEN two pipelines at once, one with a condition that none can meet, THEN one comes to its end by the names that
    its own gates gave, and the other ends at the gate, says why, leaves nothing queued, and goes on after the fix."""
    mine, other = f"good-{os.getpid()}", f"bad-{os.getpid()}"
    four = ["collect", "bc", "dagger", "eval"]
    said = pipelines.start(mine, four, "--min=bc.reward_per_step=0", "--min=eval.success_rate=0")
    assert f"new run: {mine}-bc" in said
    again = pipelines.must("run", "--resume", mine)
    assert again.count("left alone") == 4
    make_tiny_dataset(pipelines.data, "other")
    pipelines.start(other, ["bc", "eval"], "--set=bc.repo_ids=other", "--min=bc.reward_per_step=1000")
    pipelines.wait_for(other, "bc")

    failed = pipelines.command("status", other)
    assert failed.returncode == 1
    assert "at least 1000 is asked for" in " ".join(failed.stdout.split())
    assert not (pipelines.runs / f"{other}-eval" / "owner.json").exists()
    store = Store(pipelines.runs.parent / "models")
    assert other not in store.state("act-other").aliases
    log = (ROOT / "logs" / f"{other}-gates").glob("bc-*/*.out")
    assert [
        line for path in log for line in path.read_text().splitlines() if line.startswith("failed: reward_per_step")
    ]

    # The fix: the run of bc stays as it is, and eval starts in the folder that it had.
    before = {stage: job(pipelines, other, stage) for stage in ("bc", "eval")}
    said = pipelines.must("run", "--resume", other, "--min=bc.reward_per_step=0")
    assert [line.split()[1] for line in said.splitlines()[1:3]] == ["gate", "same"]
    pipelines.wait_for(other, "bc", "eval")
    assert "all gates passed" in pipelines.must("status", other)
    after = {stage: job(pipelines, other, stage) for stage in ("bc", "eval")}
    assert [before[stage] == after[stage] for stage in before] == [True, False]
    assert read_json(pipelines.runs / f"{other}-eval" / "done.json")["policy"] == "act-other:v0"

    pipelines.wait_for(mine, *four)
    shown = pipelines.must("status", mine)
    assert max(map(len, shown.splitlines()[:6])) <= 80
    assert "all gates passed" in shown
    assert f"act-lift:{mine} is act-lift:v0" in " ".join(shown.split())
    assert store.state("act-lift").aliases[mine] == 0
    made = store.state("dagger-lift")
    assert made.aliases[mine] == made.aliases["final"]
    done = read_json(pipelines.runs / f"{mine}-eval" / "done.json")
    assert done["policy"] == f"act-lift:v0, dagger-lift:v{made.aliases[mine]}"
    # It ends with both policies on the same seeds, and the later one goes back to the demonstrations.
    assert [line.split()[0] for line in shown.splitlines()[-2:]] == [f"act-lift:{mine}", f"dagger-lift:{mine}"]
    origin = lineage(store, f"dagger-lift:v{made.aliases[mine]}")
    assert [one.name for one in origin.origins] == ["lift", f"{mine}-dagger/round-01", "act-lift:v0"]
    assert [str(one) for one in origin.origins[2].origins] == ["dataset lift: 3 demonstrations, 79 frames"]
    assert pipelines.must("run", "--resume", mine).count("skipped") == 4


def test_a_command_that_was_killed_and_a_pipeline_that_is_cancelled(pipelines: Pipelines) -> None:
    """GIVEN the command was killed after the first job WHEN it is given again THEN no stage and no gate has two."""
    name = f"killed-{os.getpid()}"
    make_tiny_dataset(pipelines.data, "killed")
    given = ["bc", "eval", *pipelines.settings(["bc", "eval"]), "--set=bc.repo_ids=killed"]
    script = ROOT / "logs" / f"{name}-bc" / "sbatch.out"
    pipelines.killed(name, lambda: script.is_file() and script.read_text(), *given)
    said = pipelines.must("run", "--resume", name)
    print(said)
    names = sorted(line.split("|")[0] for line in pipelines.queue(name))
    assert names == sorted(f"{name}-{one}" for one in ("bc", "bc-gate", "eval", "eval-gate"))
    assert "cancelled 4 jobs" in pipelines.must("cancel", name)
    wait_until(lambda: not pipelines.queue(name), 60, "an empty queue", interval=0.3)
    assert pipelines.command("status", name).returncode == 1
    assert pipelines.must("run", "--resume", name, "--dry-run").count("same run, again") == 2


@pytest.mark.parametrize("done", [True, False])
def test_a_gate_waits_for_the_last_job_of_a_run(
    done: bool, lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a run of two jobs WHEN the first ends THEN the gate goes behind the second, and who waits for it too."""
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    name = f"chain-{done}-{os.getpid()}"
    settings = [f"cluster.run_root={json.dumps(str(tmp_path / 'runs'))}", *TINY[:4], "gate.resources.gpus_per_node=0"]
    (step,) = steps_of(Record(name, "lab", ["eval"], [*settings, "eval.policy=x", "cluster.requeue=false"], {}))
    run = step.spec.run_dir
    run.mkdir(parents=True)
    end = shlex.join(["cp", str(tmp_path / "done"), str(run / "done.json")]) if done else "exit 1"
    (tmp_path / "done").write_text('{"step": 3}')

    def queue(*arguments: str) -> str:
        given = [*arguments, f"--output={tmp_path}/%j.out", "--mem=100M"]
        return slurm("sbatch", "--parsable", *given).strip()

    def slurm(*command: str) -> str:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout

    first = queue(f"--job-name={step.spec.name}", "--hold", "--wrap=exit 1")
    second = queue(f"--job-name={step.spec.name}", f"--dependency=afterany:{first}", "--hold", f"--wrap={end}")
    gate = replace(new_gate(step, name), folder=str(tmp_path / "gate"))
    gate.job_id = submit_gate(step, gate, name, [first], None)
    behind = queue(f"--dependency=afterok:{gate.job_id},afterany:{first}", "--kill-on-invalid-dep=yes", "--wrap=true")
    slurm("scontrol", "release", first)
    wait_until(lambda: len(jobs_of(gate)) == 2, 120, "the second gate", interval=0.3)
    followed = f"afterok:{jobs_of(gate)[1]}("
    waits_for = ("squeue", "--noheader", f"--jobs={behind}", "--format=%E")
    wait_until(lambda: slurm(*waits_for).startswith(followed), 60, "who waits to follow the gate", interval=0.3)
    slurm("scontrol", "release", second)
    mine = ("squeue", "--noheader", f"--jobs={','.join([first, second, behind, *jobs_of(gate)])}", "--format=%i")
    wait_until(lambda: not slurm(*mine), 120, "an empty queue", interval=0.3)
    verdict = read_json(run / "promotion.json")
    assert (verdict["gate"], verdict["passed"], verdict["job_id"]) == (gate.key, done, jobs_of(gate)[1])
    assert done or verdict["faults"] == ["the run is not complete: no attempt of it has ended by itself"]
    ended = slurm("squeue", "--noheader", "--states=all", f"--jobs={behind}", "--format=%T").strip()
    assert ended == ("COMPLETED" if done else "CANCELLED")
