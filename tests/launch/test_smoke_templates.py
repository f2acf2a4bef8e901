"""The five smoke tests: as scripts for sbatch, as a stage of launch.submit, and as real jobs in the lab."""

from __future__ import annotations

import dataclasses
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest

from launch.config import ROOT, resolve
from launch.lab import Lab
from launch.render import batch_script
from launch.spec import make_spec
from tracking.errors import UserError
from tracking.files import read_json

from golden_scripts import assert_golden
from rank_pairs import rank_environment
from support import wait_until
from training_jobs import submit

TEMPLATES = ROOT / "job_templates"
SMOKE = {int(path.name[:2]): path for path in TEMPLATES.glob("0*_smoke_*.sh")}
NAMES = {level: re.findall("--job-name=(.*)", path.read_text())[0] for level, path in SMOKE.items()}
LEVELS = sorted(SMOKE)
PASSED = {
    1: "PASSED: {steps} steps on one CPU, saved and loaded, ",
    2: "PASSED: {steps} steps of DDP on 2 ranks, gradients and weights equal, ",
    3: "PASSED: {steps} steps on 2 rank(s), ZeRO stage 1, saved and resumed at step {half}, ",
    4: "PASSED: {steps} steps on 8 rank(s), ZeRO stage 1, saved and resumed at step {half}, ",
    5: "PASSED: {steps} steps on 2 rank(s), ZeRO stage 1, saved and resumed at step {half}, ",
}


def options(script: str) -> dict[str, str]:
    """What the `#SBATCH` lines of a script ask for."""
    return dict(re.findall(r"^#SBATCH --([a-z-]+)=?(.*)$", script, re.MULTILINE))


def rendered(level: int, *settings: str) -> str:
    """What launch.submit hands to sbatch, at a fixed time and place."""
    fixed = [f"smoke.level={level}", "cluster.account=mylab", "cluster.run_root=/scratch/me/runs", *settings]
    spec = make_spec(resolve("smoke", "gilbreth", fixed), datetime(2025, 1, 2, 3, 4, 5), Path("/home/me/project"))
    spec = dataclasses.replace(spec, python="/home/me/project/.venv/bin/python")
    return batch_script(spec, [str(spec.run_dir)])


def test_there_are_five() -> None:
    assert LEVELS == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("level", LEVELS)
def test_golden_script_of_the_stage(level: int) -> None:
    assert_golden(f"smoke_{level}", rendered(level))


@pytest.mark.parametrize("level", LEVELS)
def test_both_ways_ask_for_the_same(level: int) -> None:
    own, stage = options(SMOKE[level].read_text()), options(rendered(level))
    assert stage.pop("mem") == f"{50 * 1024}M"
    assert own.pop("mem") == "50G"
    elsewhere = {"job-name", "output", "partition", "account", "qos", "comment"}
    assert {key: value for key, value in own.items() if key not in elsewhere} == {
        key: value for key, value in stage.items() if key not in elsewhere
    }
    assert not [value for value in own.values() if "$" in value], "Slurm would not expand it"
    assert own["signal"] == "USR2@60"


def test_what_a_level_asks_for_gives_way_to_the_profile_and_to_the_user() -> None:
    lab = resolve("smoke", "lab", ["smoke.level=4", "resources.nodes=2"]).resources
    assert (lab.nodes, lab.gpus_per_node, lab.exclusive, lab.time) == (2, 2, True, 60)
    assert (lab.cpus_per_task, lab.memory_gb) == (1, 4), "the profile's"
    assert resolve("smoke", "gilbreth", ["resources.gpus_per_node=1"]).resources.gpus_per_node == 1
    assert resolve("smoke", "local", ["smoke.level=1"]).resources.gpus_per_node == 0, "the profile's"


def test_a_level_that_there_is_not_is_refused() -> None:
    with pytest.raises(UserError, match=r"smoke\.level=6: expected one of 1, 2, 3, 4, 5"):
        resolve("smoke", "lab", ["smoke.level=6"])


@pytest.mark.parametrize("path", sorted(TEMPLATES.glob("*.sh")), ids=lambda path: path.name)
def test_bash_can_read_it(path: Path) -> None:
    subprocess.run(["bash", "-n", path], check=True)


def test_shellcheck_has_nothing_to_say() -> None:
    command = [
        Path(sys.executable).with_name("shellcheck"),
        "--external-sources",
        "--exclude=SC1091",
        *sorted(TEMPLATES.glob("*.sh")),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_without_sbatch_it_says_how_it_is_started(tmp_path: Path) -> None:
    environ = {name: value for name, value in os.environ.items() if name != "SLURM_SUBMIT_DIR"}
    done = subprocess.run(["bash", SMOKE[1]], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "submit this file with sbatch" in done.stderr


def run_template(level: int, folder: Path, commands: Path, **environ: str) -> str:
    """Runs Slurm's copy of a template, as submitted from a folder, with stubs of Slurm's commands."""
    commands.mkdir()
    for name, body in {"srun": 'echo "srun in $PWD: ${*: -5}"; exit 4', "scontrol": "exit 1"}.items():
        (commands / name).write_text(f"#!/bin/bash\n{body}\n")
        (commands / name).chmod(0o755)
    script = commands / "slurm_script"
    script.write_bytes(SMOKE[level].read_bytes())
    given = {"SLURM_SUBMIT_DIR": str(folder), "SLURM_JOB_ID": "7", "PATH": f"{commands}:/usr/bin:/bin", **environ}
    done = subprocess.run(["bash", script], cwd="/", env=given, capture_output=True, text=True, check=False)
    assert done.returncode == 4, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project folder with an odd name, the templates and a Python that does nothing."""
    root = tmp_path / "it's a root"
    (root / "gilbreth_phase0").mkdir(parents=True)
    shutil.copytree(TEMPLATES, root / "job_templates")
    (root / "gilbreth_phase0" / "job_templates").symlink_to("../job_templates")
    (root / ".venv" / "bin").mkdir(parents=True)
    (root / ".venv" / "bin" / "python").write_text("#!/bin/bash\nexit 1\n")
    (root / ".venv" / "bin" / "python").chmod(0o755)
    return root


@pytest.mark.parametrize("folder", [".", "gilbreth_phase0"])
@pytest.mark.parametrize("level", LEVELS)
def test_the_root_is_found_from_both_folders(level: int, folder: str, project: Path, tmp_path: Path) -> None:
    said = run_template(level, project / folder, tmp_path / "commands")
    run = f"runs/{NAMES[level]}-7"
    assert f"srun in {project}: gilbreth_phase0.smoke --level {level} --run-dir {run}" in said


def test_modules_come_first_and_then_conda(project: Path, tmp_path: Path) -> None:
    """GIVEN names of modules and of an environment WHEN a template runs THEN they are loaded before its tasks start."""
    base = tmp_path / "conda base"
    (base / "etc" / "profile.d").mkdir(parents=True)
    (base / "etc" / "profile.d" / "conda.sh").write_text('conda() { echo "conda $*"; PATH="$BASE/bin:$PATH"; }\n')
    (base / "bin").mkdir()
    (base / "bin" / "python").symlink_to("/bin/false")
    said = run_template(
        1,
        project,
        tmp_path / "commands",
        GILBRETH_MODULES="external anaconda",
        GILBRETH_CONDA_ENV="my env",
        BASE=str(base),
        **{
            "BASH_FUNC_module%%": '() { echo "module $*"; }',
            "BASH_FUNC_conda%%": '() { echo "$BASE"; }',
        },
    )
    lines = said.splitlines()
    assert lines[:3] == ["module purge", "module load external anaconda", "conda activate my env"]
    assert lines[3].startswith("srun in ")


@dataclass(frozen=True)
class Ended:
    """A job of the lab that is over."""

    state: str
    exit_code: str
    log: str
    run_dir: Path


def lab_environment(lab: Lab) -> dict[str, str]:
    """A user's shell: no rank of anything, no network, one thread a task."""
    environ = {**rank_environment(), **lab.variables(), "SBATCH_ACCOUNT": "lab"}
    return {name: value for name, value in environ.items() if name not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def scontrol(lab: Lab, job_id: str) -> dict[str, str]:
    command = ["scontrol", "--oneliner", "show", "job", job_id]
    said = subprocess.run(command, env=lab.environment(), capture_output=True, text=True, check=True).stdout
    return dict(part.split("=", 1) for part in said.split() if "=" in part)


def is_over(lab: Lab, job_id: str) -> bool:
    return scontrol(lab, job_id)["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")


class Jobs:
    """Jobs of the lab that run at once: waiting for one is waiting for all."""

    def __init__(self, lab: Lab, folder: Path) -> None:
        self.lab, self.folder = lab, folder
        self.waiting: dict[str, tuple[str, Path, Path]] = {}

    def sbatch(self, name: str, level: int, *arguments: str) -> None:
        """Submits a template as it is: odd levels from the root, even ones from gilbreth_phase0/."""
        folder = ROOT if level % 2 else ROOT / "gilbreth_phase0"
        command = ["sbatch", "--parsable", *arguments, f"job_templates/{SMOKE[level].name}"]
        environ = lab_environment(self.lab)
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=True)
        job_id = done.stdout.strip()
        run = ROOT / "runs" / f"{NAMES[level]}-{job_id}"
        self.waiting[name] = (job_id, folder / "logs" / f"{NAMES[level]}_{job_id}.out", run)

    def launch(self, name: str, level: int, *settings: str) -> None:
        given = {"smoke.level": level, "cluster.run_root": self.folder, "tracking.mode": "offline", "smoke.steps": 8}
        run = submit(self.lab, "smoke", given, *settings)
        self.waiting[name] = (run.job_id, run.log, run.run_dir)

    def ended(self, timeout: float) -> dict[str, Ended]:
        for name, (job_id, _, _) in self.waiting.items():
            wait_until(lambda job_id=job_id: is_over(self.lab, job_id), timeout, f"the end of {name}", interval=0.5)
        ended = {}
        for name, (job_id, log, run) in self.waiting.items():
            facts = scontrol(self.lab, job_id)
            ended[name] = Ended(facts["JobState"], facts["ExitCode"], log.read_text(), run)
        return ended

    def wipe(self) -> None:
        for job_id, log, run in self.waiting.values():
            subprocess.run(["scancel", job_id], env=self.lab.environment(), check=False, capture_output=True)
            shutil.rmtree(run, ignore_errors=True)
            if log.parent.parent.name == "logs":
                shutil.rmtree(log.parent)
            else:
                log.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def ended(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Ended]]:
    """All smoke tests in both ways, and two that must fail, at once; four whole nodes come last, or others wait."""
    jobs = Jobs(lab, tmp_path_factory.mktemp("smoke") / "it's a folder")
    try:
        for level in (5, 3, 2, 1):
            jobs.sbatch(f"sbatch-{level}", level)
            jobs.launch(f"submit-{level}", level)
        jobs.sbatch("one rank", 2, "--ntasks-per-node=1", "--gpus-per-node=1")
        jobs.launch("one node", 4, "resources.nodes=1", "resources.exclusive=false")
        jobs.sbatch("sbatch-4", 4)
        jobs.launch("submit-4", 4)
        yield jobs.ended(540)
    finally:
        jobs.wipe()


@pytest.mark.slurm
@pytest.mark.timeout(900)
@pytest.mark.parametrize("way", ["sbatch", "submit"])
@pytest.mark.parametrize("level", LEVELS)
def test_it_passes_in_the_lab(level: int, way: str, ended: dict[str, Ended]) -> None:
    job, steps = ended[f"{way}-{level}"], 40 if way == "sbatch" else 8
    assert (job.state, job.exit_code) == ("COMPLETED", "0:0"), job.log
    assert PASSED[level].format(steps=steps, half=steps // 2) in job.log
    assert "on CPUs: no GPU was tested" in job.log
    assert "rank(s) have met over gloo on CPUs (PyTorch sees no GPU here)" in job.log
    assert f"done: the run is complete (step {steps})" in job.log
    assert "requeue:" not in job.log, "at the first attempt"
    assert read_json(job.run_dir / "done.json")["step"] == steps
    if level == 4:
        assert len(set(re.findall(r"2 on (node\d)", job.log))) == 4
        assert "NCCL_IB_DISABLE=0" in job.log
        assert "8 shard(s) of the optimizer" in job.log
        assert "ok      every rank sees the files of every other: 8 files" in job.log


@pytest.mark.slurm
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("job", "check", "seen", "fix"),
    [
        ("one rank", "there are 2 ranks or more", "1 rank (rank 0 on node", "sbatch --ntasks-per-node=2; with"),
        ("one node", "the ranks are on several nodes", "all 2 on one (every rank)", "sbatch --nodes=4; with"),
    ],
)
def test_a_check_that_does_not_hold_ends_the_job(
    job: str, check: str, seen: str, fix: str, ended: dict[str, Ended]
) -> None:
    over = ended[job]
    assert (over.state, over.exit_code) == ("FAILED", "2:0"), over.log
    assert "PASSED" not in over.log
    *_, last = over.log.rpartition("error: FAILED: ")
    assert last.splitlines()[0] == check
    assert last.splitlines()[1].startswith(f"  seen: {seen}")
    assert last.splitlines()[2].startswith(f"  fix:  {fix}")
    assert last.splitlines()[3].startswith("end: "), "and nothing is requeued"
    assert "Traceback" not in over.log


@pytest.mark.slurm
@pytest.mark.parametrize("folder", [ROOT, ROOT / "gilbreth_phase0"])
def test_slurm_takes_the_scripts_as_they_are(folder: Path, lab: Lab) -> None:
    for path in SMOKE.values():
        command = ["sbatch", "--test-only", f"job_templates/{path.name}"]
        environ = {**lab_environment(lab), "SBATCH_PARTITION": "a100-80gb"}
        done = subprocess.run(command, cwd=folder, env=environ, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "to start at" in done.stderr
    assert (folder / "logs").is_dir()
