"""What the batch script decides after srun."""

from pathlib import Path

import pytest

from gilbreth_phase0.attempt import Outcome, begin, claim_requeue, decide, keep, read_attempts
from tracking.files import write_json
from tracking.ownership import AttemptKey, Owner


def checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:08d}"
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text("{}")


def after(run: Path, restart: int, exit_code: int = 137, max_attempts: int = 50, cancelled: bool = False) -> Outcome:
    """Decides as the batch script does, and keeps the record as it does."""
    record = decide(run, exit_code, AttemptKey("7", restart), max_attempts, cancelled)
    keep(run, record)
    return record.outcome


def test_a_crash_is_requeued(tmp_path: Path):
    assert after(tmp_path, 0) is Outcome.REQUEUE
    assert [record.key for record in read_attempts(tmp_path)] == ["7-000"]


def test_a_complete_run_is_done_whatever_the_exit_code(tmp_path: Path):
    write_json(tmp_path / "done.json", {"step": 10})
    assert after(tmp_path, 0, exit_code=1) is Outcome.DONE


@pytest.mark.parametrize(("exit_code", "cancelled"), [(2, False), (143, True), (137, True)])
def test_refused_input_and_a_cancelled_job_end(tmp_path: Path, exit_code: int, cancelled: bool):
    assert after(tmp_path, 0, exit_code=exit_code, cancelled=cancelled) is Outcome.END


def test_an_attempt_that_requeued_itself_is_not_requeued_again(tmp_path: Path):
    assert claim_requeue(tmp_path, AttemptKey("7", 0))
    assert after(tmp_path, 0, exit_code=255) is Outcome.END
    checkpoint(tmp_path, 100)
    assert after(tmp_path, 1) is Outcome.REQUEUE, "the next attempt is another one"


def test_attempts_without_progress_end(tmp_path: Path):
    checkpoint(tmp_path, 100)
    assert [after(tmp_path, restart) for restart in range(3)] == [Outcome.REQUEUE, Outcome.REQUEUE, Outcome.END]


def test_two_attempts_that_come_to_no_checkpoint_end(tmp_path: Path):
    assert [after(tmp_path, restart) for restart in range(2)] == [Outcome.REQUEUE, Outcome.END]


def test_what_is_collected_is_progress(tmp_path: Path):
    """GIVEN a run that is killed while it rolls a policy out THEN it goes on as long as roll-outs are made."""
    rollouts = tmp_path / "rounds" / "01" / "rollouts"
    rollouts.mkdir(parents=True)
    for restart in range(3):
        (rollouts / f"seed-{restart}.npz").touch()
        assert after(tmp_path, restart) is Outcome.REQUEUE
    (rollouts / ".seed-9.npz.tmp").touch()
    assert after(tmp_path, 3) is Outcome.REQUEUE, "one attempt may be unlucky"
    assert after(tmp_path, 4) is Outcome.END
    write_json(rollouts.parent / "round.json", {})
    assert after(tmp_path, 5) is Outcome.REQUEUE
    assert [record.collected for record in read_attempts(tmp_path)] == [1, 2, 3, 3, 3, 4]


def test_jobs_of_a_chain_are_counted_like_requeues(tmp_path: Path):
    """GIVEN jobs that hand on to each other WHEN two in a row make no progress THEN the chain ends, with the reason."""
    records = []
    for job, step in ((7, 100), (8, 200), (9, 200), (10, 200)):
        if not (tmp_path / "checkpoints" / f"step-{step:08d}").exists():
            checkpoint(tmp_path, step)
        records.append(decide(tmp_path, 0, AttemptKey(str(job), 0), 50, cancelled=False))
        keep(tmp_path, records[-1])
    assert [record.outcome for record in records] == [Outcome.REQUEUE] * 3 + [Outcome.END]
    assert records[0].reason == "planned stop, newest checkpoint at step 100"
    assert records[-1].reason == "2 attempts in a row made no progress from step 200"


def test_progress_goes_on(tmp_path: Path):
    for restart in range(6):
        checkpoint(tmp_path, 100 * (restart + 1))
        assert after(tmp_path, restart) is Outcome.REQUEUE


def test_attempts_are_bounded(tmp_path: Path):
    outcomes = []
    for restart in range(3):
        checkpoint(tmp_path, 100 * (restart + 1))
        outcomes.append(after(tmp_path, restart, max_attempts=3))
    assert outcomes == [Outcome.REQUEUE, Outcome.REQUEUE, Outcome.END]


@pytest.mark.parametrize(("exit_code", "owner_restart"), [(3, 0), (137, 1)])
def test_an_attempt_that_lost_its_run_does_not_requeue_its_successor(
    tmp_path: Path, exit_code: int, owner_restart: int
):
    """GIVEN a node that comes back from a partition THEN its `scontrol requeue` must not end the job that took over."""
    Owner.claim(tmp_path, AttemptKey("7", owner_restart))
    assert after(tmp_path, 0, exit_code=exit_code) is Outcome.END


def test_an_attempt_that_crashed_before_it_took_the_run_is_requeued(tmp_path: Path):
    Owner.claim(tmp_path, AttemptKey("7", 0))
    assert after(tmp_path, 1) is Outcome.REQUEUE


def test_planned_stops_without_progress_end_too(tmp_path: Path):
    """An evaluation that does not fit the time limit would be begun again for ever."""
    checkpoint(tmp_path, 100)
    assert [claim_requeue(tmp_path, AttemptKey("7", restart)) for restart in range(3)] == [True, True, False]
    record = decide(tmp_path, 1, AttemptKey("7", 2), 50, cancelled=False)
    assert (record.outcome, record.reason) == (Outcome.END, "2 attempts in a row made no progress from step 100")


def test_attempts_that_left_no_record_are_bounded(tmp_path: Path):
    """GIVEN jobs of a chain that are killed with their batch scripts THEN the bound holds, progress or not."""
    for job in (7, 8):
        assert begin(tmp_path, AttemptKey(str(job), 0), 2) is None
        checkpoint(tmp_path, 100 * job)
    ended = begin(tmp_path, AttemptKey("9", 0), 2)
    assert ended is not None
    assert ended.reason == "2 attempts have been made, 2 are allowed"
    first = read_attempts(tmp_path)[0]
    assert (first.key, first.outcome) == ("7-000", Outcome.REQUEUE)
    assert first.reason == "attempt 7-000 was cut off, newest checkpoint at step 700"


def test_a_cut_off_attempt_among_others_goes_on(tmp_path: Path):
    assert begin(tmp_path, AttemptKey("7", 0), 50) is None
    assert begin(tmp_path, AttemptKey("8", 0), 50) is None
    checkpoint(tmp_path, 100)
    assert decide(tmp_path, 0, AttemptKey("8", 0), 50, cancelled=False).outcome is Outcome.REQUEUE
    # The same attempt, asked again by a batch script that was interrupted, is not one before it.
    assert begin(tmp_path, AttemptKey("8", 0), 50) is None


def test_a_job_behind_one_that_has_ended_the_run_does_not_begin(tmp_path: Path):
    """GIVEN a job that decided at its time limit, too late to cancel the next one THEN that one ends by itself."""
    (tmp_path / "links").mkdir()
    write_json(tmp_path / "links" / "8.json", {"job_id": "8", "after": "7", "time": 1})
    assert begin(tmp_path, AttemptKey("7", 0), 1) is None
    assert after(tmp_path, 0, max_attempts=1) is Outcome.END
    ended = begin(tmp_path, AttemptKey("8", 0), 1)
    assert ended is not None
    assert ended.reason == "1 attempts have been made, 1 are allowed"
    # Who takes the run up by hand submits a job that comes after none.
    assert begin(tmp_path, AttemptKey("9", 0), 1) is None
