"""`bc` jobs in a real Slurm, disturbed in every way that clusters know, against an undisturbed one.

Whatever happens, a run ends by itself with exactly the configured steps, its journal holds each once, it has one run
id, and its weights are those of the undisturbed run, bit for bit: same seed, ranks and threads, on CPUs.
"""

import subprocess
import sys
from pathlib import Path

import pytest

from launch.lab import Lab
from tracking import checkpoints

from support import wait_until
from training_jobs import BcRun, submit_bc
from wandb_file import read_offline_run

pytestmark = [pytest.mark.slurm, pytest.mark.train, pytest.mark.sim, pytest.mark.timeout(900)]

STEPS = 100
SAVE_FREQ = 20


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five demonstrations."""
    root = tmp_path_factory.mktemp("demonstrations") / "data"
    command = ["-m", "gilbreth_phase0.collect", "--repo-id", "lift", "--root", str(root), "--episodes", "5"]
    subprocess.run([sys.executable, *command], check=True, timeout=300, capture_output=True)
    return root


@pytest.fixture(scope="module")
def undisturbed(lab: Lab, data: Path, tmp_path_factory: pytest.TempPathFactory) -> BcRun:
    run = submit_bc(lab, tmp_path_factory.mktemp("undisturbed"), data, STEPS)
    run.wait_until_done()
    check_whole(run, STEPS)
    assert len(run.journal().segments) == 1
    return run


def check_whole(run: BcRun, steps: int) -> None:
    """GIVEN a run that is done THEN nothing of it is missing and nothing is there twice."""
    journal = run.journal()
    assert [row.step for row in journal.rows if "loss/total" in row.data] == list(range(1, steps + 1))
    assert [row.n for row in journal.rows] == list(range(len(journal.rows)))
    assert journal.end is not None and (journal.end.state, journal.end.exit_code) == ("finished", 0)
    newest = checkpoints.newest_whole(run.run_dir / "checkpoints", print)
    assert newest is not None and newest[1].step == steps
    ids = {segment.run_id for segment in journal.segments} | {newest[1].run_id}
    assert len(ids) == 1, "one W&B run, however many attempts"
    folders = sorted((run.run_dir / "wandb").glob("offline-run-*"))
    assert len(folders) == 1, "the documented `wandb sync` must find one folder, the whole run"
    offline = read_offline_run(folders[0])
    assert [row["train/step"] for row in offline.history] == [row.step for row in journal.rows]
    assert [row["loss/total"] for row in offline.history] == [row.data["loss/total"] for row in journal.rows]


def check_equal(run: BcRun, undisturbed: BcRun) -> None:
    assert run.weights() == undisturbed.weights()
    losses, expected = ([row.data["loss/total"] for row in one.journal().rows] for one in (run, undisturbed))
    assert losses == expected


def test_scontrol_requeue(lab: Lab, data: Path, undisturbed: BcRun, tmp_path: Path):
    run = submit_bc(lab, tmp_path, data, STEPS)
    run.wait_for_step(SAVE_FREQ * 3 // 2)
    run.slurm("scontrol", "requeue", run.job_id)
    run.wait_until_done()
    check_whole(run, STEPS)
    check_equal(run, undisturbed)
    assert len(run.journal().segments) == 2


def test_sigkill_of_a_rank_between_two_checkpoints(lab: Lab, data: Path, undisturbed: BcRun, tmp_path: Path):
    run = submit_bc(lab, tmp_path, data, STEPS)
    run.wait_for_step(SAVE_FREQ * 3 // 2)
    run.kill_rank(1)
    run.wait_until_done()
    check_whole(run, STEPS)
    check_equal(run, undisturbed)
    first, last = run.attempts()
    assert (first["outcome"], last["outcome"]) == ("requeue", "done")
    resumed = run.journal().segments[1].resumed_step
    assert resumed is not None and resumed >= SAVE_FREQ, "only the work since the last checkpoint is lost"


def test_power_cut_of_a_node(lab: Lab, data: Path, undisturbed: BcRun, tmp_path: Path):
    """Two nodes with a task each; the node of rank 1 loses its power."""
    run = submit_bc(lab, tmp_path, data, STEPS, "resources.nodes=2", "resources.gpus_per_node=1")
    run.wait_for_step(SAVE_FREQ * 3 // 2)
    nodes = run.slurm("squeue", "--noheader", "--jobs", run.job_id, "--format=%N").strip()
    lost = run.slurm("scontrol", "show", "hostnames", nodes).split()[1]
    lab.kill_node(lost)
    try:
        run.wait_until_done()
    finally:
        lab.start_node(lost)
    check_whole(run, STEPS)
    check_equal(run, undisturbed)
    assert len(run.journal().segments) == 2


def test_a_time_limit_that_the_work_does_not_fit(lab: Lab, data: Path, undisturbed: BcRun, tmp_path: Path):
    """As many steps as this machine does in about 70 s, with a limit of a minute, for two runs at once: one may be
    requeued, the other is a chain of jobs. Each has one rank, so that neither takes the other's core."""
    rows = undisturbed.journal().rows
    seconds_per_step = (rows[-1].time - rows[0].time) / (len(rows) - 1)
    steps = round(70 / seconds_per_step)
    settings = ["bc.save_freq=200", "bc.log_interval=1", "resources.gpus_per_node=1"]
    short = [*settings, "resources.time=1", "resources.signal_seconds=20"]
    whole = submit_bc(lab, tmp_path / "whole", data, steps, *settings)
    whole.wait_until_done(600)
    requeued = submit_bc(lab, tmp_path / "requeued", data, steps, *short)
    chain = submit_bc(lab, tmp_path / "chain", data, steps, *short, "cluster.requeue=false")
    requeued.wait_until_done(600)
    chain.wait_until_all_done(600)
    for run in (requeued, chain):
        check_whole(run, steps)
        check_equal(run, whole)
        journal = run.journal()
        assert len(journal.segments) >= 3
        starts = [segment.resumed_step or 0 for segment in journal.segments]
        assert starts == sorted(set(starts)), "each segment makes progress"
        states = run.slurm("sacct", "--noheader", "--duplicates", f"--name={run.run_dir.name}", "--format=State")
        assert "TIMEOUT" not in states
        stops = [record for record in run.attempts() if "planned stop" in str(record["reason"])]
        assert len(stops) == len(journal.segments) - 1, "every stop was at a step boundary, before the limit"
    assert len({record["key"] for record in chain.attempts()}) == len(chain.journal().segments)
    assert all(str(record["key"]).endswith("-000") for record in chain.attempts()), "no job was requeued"


def test_scancel_ends_a_run_and_does_not_requeue_it(lab: Lab, data: Path, tmp_path: Path):
    run = submit_bc(lab, tmp_path, data, STEPS)
    run.wait_for_step(SAVE_FREQ * 3 // 2)
    run.slurm("scancel", run.job_id)
    wait_until(lambda: run.state() == "CANCELLED", 60, "the end of the cancelled job", interval=0.2)
    assert run.slurm("squeue", "--noheader", "--jobs", run.job_id, "--states=PENDING,RUNNING") == ""
    assert not (run.run_dir / "done.json").exists()
    newest = checkpoints.newest_whole(run.run_dir / "checkpoints", print)
    assert newest is not None and newest[1].step >= SAVE_FREQ, "what a checkpoint had is kept"
