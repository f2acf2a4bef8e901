"""Preflight against a real Slurm: what it refuses, Slurm refuses too."""

from __future__ import annotations

import shutil
import subprocess
from datetime import datetime
from pathlib import Path

import pytest

from launch.config import resolve
from launch.lab import Lab
from launch.preflight import findings, report_findings
from launch.preflight.dependencies import ask_for, dependency_findings
from launch.preflight.script.lint import lint
from launch.spec import make_spec

from support import wait_until

pytestmark = pytest.mark.slurm


@pytest.fixture
def slurm(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Lab:
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    for name in ("SBATCH_ACCOUNT", "SBATCH_PARTITION", "SBATCH_QOS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-key")
    return lab


def slurm_says(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def asked(tmp_path: Path, *settings: str) -> dict[str, str]:
    """What is said to a profile that knows nothing of the cluster: all comes from Slurm."""
    base = [f"cluster.run_root={tmp_path}/runs", "cluster.node_local=[]", "resources.memory_gb=4"]
    config = resolve("smoke", "generic", [*base, "resources.cpus_per_task=1", *settings])
    spec = make_spec(config, datetime.now(), tmp_path)
    return {finding.rule: finding.what for finding in findings(config, spec, live=True)}


def sbatch(*arguments: str) -> str:
    """Asks Slurm whether it would take a job; empty where it would."""
    done = slurm_says("sbatch", "--test-only", "--time=1", *arguments, "--wrap=hostname")
    return "" if done.returncode == 0 else done.stderr


CASES: dict[str, tuple[list[str], list[str], str]] = {
    "partition-unknown": (["cluster.partition=shrt"], ["-p", "shrt"], "no such partition, but a100-80gb, short"),
    "account-unknown": (["cluster.account=labb"], ["-A", "labb"], "not one of your accounts on Slurm's 'lab' (lab"),
    "qos-unknown": (["cluster.qos=standbye"], ["-q", "standbye"], "no such QOS"),
    "gpus-node": (["resources.gpus_per_node=5"], ["--gpus-per-node=5"], "a node of Slurm's 'lab' has 4"),
    "cpus-node": (["resources.cpus_per_task=9"], ["-c17"], "= 18 cores: a node of partition 'a100-80gb'"),
    "memory-node": (["resources.memory_gb=251"], ["--mem=251G"], "has 250 GiB for jobs"),
    "nodes-partition": (["resources.nodes=5"], ["-N5"], "may have 4"),
    "time-partition": (
        ["cluster.partition=short", "resources.time=11"],
        ["-p", "short", "-t11"],
        "'short' of Slurm's 'lab' allows 00:10:00",
    ),
}
"""By rule: what a stage sets, the same for sbatch, and a part of what is said."""


def test_what_the_live_cluster_refuses(slurm: Lab, tmp_path: Path) -> None:
    assert asked(tmp_path) == {}
    for rule, (settings, arguments, words) in CASES.items():
        said = asked(tmp_path, *settings)
        assert rule in said and words in said[rule], (rule, said)
        assert sbatch(*arguments), f"Slurm takes what {rule} refuses"
    assert sbatch("-N4", "--gpus-per-node=4", "-c16", "--mem=250G") == ""


def test_a_partition_that_is_closed_or_not_for_everybody(slurm: Lab, tmp_path: Path) -> None:
    def update(*changes: str) -> None:
        assert slurm_says("scontrol", "update", "PartitionName=short", *changes).returncode == 0

    to_short = ["cluster.partition=short", "resources.time=5"]
    assert asked(tmp_path, *to_short) == {}
    try:
        update("State=DRAIN")
        assert "partition-down" in asked(tmp_path, *to_short) and sbatch("-p", "short")
        update("State=UP", "AllowQos=standby")
        assert "qos-partition" in asked(tmp_path, *to_short, "cluster.qos=normal") and sbatch("-p", "short", "-qnormal")
        update("AllowQos=ALL", "DenyAccounts=lab")
        assert "account-partition" in asked(tmp_path, *to_short), "the default account counts"
        assert sbatch("-p", "short")
    finally:
        update("State=UP", "AllowQos=ALL", "DenyAccounts=")


def test_a_qos_whose_limits_a_job_is_over_holds_it_for_ever(slurm: Lab, tmp_path: Path) -> None:
    def limits(time: str, gpus: str) -> None:
        change = ("set", f"maxwall={time}", f"maxtresperuser=gres/gpu={gpus}")
        assert slurm_says("sacctmgr", "-i", "modify", "qos", "standby", *change).returncode == 0

    def reason_of(*arguments: str) -> str:
        log = "--output=/dev/null"
        job = slurm_says("sbatch", "--parsable", "-q", "standby", "--mem=1G", log, *arguments, "--wrap=hostname").stdout
        try:
            reasons = ["squeue", "--noheader", f"--jobs={job.strip()}", "--format=%r"]
            return wait_until(lambda: slurm_says(*reasons).stdout.strip().replace("None", ""), 30, "a reason")
        finally:
            slurm_says("scancel", job.strip())

    try:
        limits("00:30:00", "6")
        said = asked(tmp_path, "cluster.qos=standby", "resources.time=31")
        assert said["time-qos"] == "resources.time=00:31:00: QOS 'standby' of Slurm's 'lab' allows 00:30:00"
        assert reason_of("-t31") == "QOSMaxWallDurationPerJobLimit"
        said = asked(tmp_path, "cluster.qos=standby", "resources.nodes=4", "resources.time=30")
        assert "= 8 GPUs: QOS 'standby' of Slurm's 'lab' gives a user 6" in said["gpus-qos"]
        assert reason_of("-t30", "-N4", "--gpus-per-node=2") == "QOSMaxGRESPerUser"
    finally:
        limits("-1", "-1")


def test_a_dependency_that_can_never_hold(slurm: Lab, tmp_path: Path) -> None:
    def run(script: str) -> str:
        log = f"--output={tmp_path}/%j.out"
        done = slurm_says("sbatch", "--parsable", "--time=1", "--mem=100M", log, f"--wrap={script}")
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def said(dependency: str) -> list[str]:
        return [finding.what for finding in dependency_findings(dependency, ask_for(dependency))]

    failed, good, waits = run("exit 3"), run("true"), run("sleep 600")
    try:
        wait_until(lambda: said(f"afterok:{failed}") and said(f"afternotok:{good}"), 60, "the jobs' ends", interval=0.5)
        assert said(f"afterok:{failed}") == [f"dependency afterok:{failed}: job {failed} is FAILED"]
        assert said(f"afternotok:{good}") == [f"dependency afternotok:{good}: job {good} is COMPLETED"]
        for fine in (f"afterok:{good}:{waits}", f"afterany:{failed}", f"afterok:{failed}?afterok:{waits}", "singleton"):
            assert said(fine) == [], fine
        assert said("afterok:7999999") == ["dependency afterok:7999999: Slurm knows no job 7999999"]
        assert [finding.rule for finding in dependency_findings("afterok:7999999", {})] == ["dependency-unknown"]

        text = f"#!/bin/bash\n#SBATCH --time=1 -p shrt\n#SBATCH -d afterok:{failed}\nhostname\n"
        found = {finding.rule: finding.line for finding in lint(text, tmp_path, live=True)}
        assert found == {"partition-unknown": 2, "dependency": 3}
    finally:
        slurm_says("scancel", waits)


def test_what_the_linter_claims_of_slurm_is_so(slurm: Lab, tmp_path: Path) -> None:
    """GIVEN scripts with late, unexpanded and bare options WHEN Slurm runs them THEN it does what the rules say."""
    programs = {
        "late": "#!/bin/bash\necho hi\n#SBATCH --time=1\n",
        "variable": "#!/bin/bash\n#SBATCH --time=1 --output=$HOME/x.out\n",
        "bare": f"#!/bin/bash\n#SBATCH --time=1 --export=NONE\n{shutil.which('srun')} bash -c 'echo a task ran'\n",
    }
    jobs = {}
    for name, text in programs.items():
        (tmp_path / f"{name}.sh").write_text(text)
        log = [] if name == "variable" else [f"--output={tmp_path}/{name}.out"]
        done = slurm_says(
            "sbatch", "--parsable", "--mem=100M", f"--chdir={tmp_path}", *log, str(tmp_path / f"{name}.sh")
        )
        assert done.returncode == 0, done.stderr
        jobs[name] = done.stdout.strip()

    def shown(name: str) -> str:
        return slurm_says("scontrol", "--oneliner", "show", "job", jobs[name]).stdout

    assert "TimeLimit=00:10:00" in shown("late"), "the partition's default, not the script's minute"
    wait_until(lambda: "JobState=FAILED" in shown("variable"), 60, "the job without a log", interval=0.5)
    assert f"StdOut={tmp_path}/$HOME/x.out" in shown("variable") and "ExitCode=0:53" in shown("variable")
    wait_until(lambda: "JobState=FAILED" in shown("bare"), 60, "the job without a PATH", interval=0.5)
    assert "bash: No such file or directory" in (tmp_path / "bare.out").read_text()


def test_slurm_that_is_silent_is_said_and_stops_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("WANDB_API_KEY", "s3cret-key")
    config = resolve("smoke", "generic", [f"cluster.run_root={tmp_path}/runs", "cluster.node_local=[]"])
    report_findings(config, make_spec(config, datetime.now(), tmp_path), live=True)
    shown = capsys.readouterr().err
    assert "warning slurm-silent  Slurm did not tell its partitions" in shown
    assert shown.endswith("preflight: 1 warning\n")
