"""What sbatch complained about, in words."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.sbatch import refusal

# What Slurm says behind the word, whichever limit it is.
POLICY = "Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)"
LESS = "next: ask for less: --set resources"


@pytest.mark.parametrize(
    ("word", "reason", "way"),
    [
        ("QOSMaxSubmitJobPerUserLimit", "as many of your jobs are queued as QOS, account", "next: wait until one ends"),
        ("AssocGrpSubmitJobsLimit", "as many of your jobs are queued as QOS, account", "next: wait until one ends"),
        ("QOSMaxWallDurationPerJobLimit", "it asks for more than its QOS allows a job (time)", LESS),
        ("QOSMaxNodePerJobLimit", "it asks for more than its QOS allows a job (nodes)", LESS),
        ("QOSMaxGRESPerUser", "you have reached what its QOS allows each user (GPUs)", LESS),
        ("QOSMinGRES", "it asks for less than its QOS demands (GPUs)", "next: ask for more: --set resources"),
        ("AssocGrpCpuLimit", "all jobs of its account together have reached its limit (cores)", LESS),
    ],
)
def test_a_limit_is_named_and_not_only_that_there_is_one(word: str, reason: str, way: str, tmp_path: Path) -> None:
    complaint = f"sbatch: error: {word}\nsbatch: error: Batch job submission failed: {POLICY}\n"
    (tmp_path / "sbatch.err").write_text(complaint)
    said = refusal(tmp_path)
    assert said is not None
    assert said.startswith(f"sbatch refused the job: {reason}")
    assert word in said
    assert way in said


def test_a_limit_without_its_word_is_said_as_slurm_says_it(tmp_path: Path) -> None:
    (tmp_path / "sbatch.err").write_text(f"sbatch: error: Batch job submission failed: {POLICY}\n")
    said = refusal(tmp_path)
    assert said == f"sbatch refused the job: Batch job submission failed: {POLICY}"
