"""What a command that was killed while it submitted has left, where this command cannot deal with it."""

from __future__ import annotations

import dataclasses
import os
import shlex
import subprocess
from pathlib import Path

import pytest

from launch import intent as intents
from launch.intent import new_intent
from launch.submission import pick_up, resumed
from tracking.errors import UserError
from tracking.files import write_json
from tracking.sync.claims import Holder

from launch_jobs import probe_job

ELSEWHERE = Holder("submit", "other-login", "another-boot/pid:[1]", 1, 1, 0.0)


@pytest.mark.parametrize("cluster", ["local", "generic"])
def test_what_cannot_be_asked_for_says_where_it_is_and_how_it_is_dropped(
    cluster: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN a submission of another host, or of a Slurm that is gone, THEN the command that is named ends the wait."""
    root = tmp_path / "it's here"
    monkeypatch.setenv("SLURM_CONF", "/gone/slurm.conf")
    config, spec = probe_job(root, cluster)
    intents.begin(dataclasses.replace(new_intent(config, spec), holder=ELSEWHERE, host="other-login"))
    (intent,) = intents.open_intents(root / "runs")
    os.utime(intent.path, (0, 0))
    monkeypatch.delenv("SLURM_CONF")
    again = dataclasses.replace(spec, name=f"{spec.name}-2")
    with pytest.raises(UserError, match="next: the same command there; or for another run beside it") as error:
        pick_up(config, again)
    said = str(error.value).splitlines()[0]
    assert "on other-login" in said
    assert ("with SLURM_CONF=/gone/slurm.conf" in said) == (cluster == "generic")
    subprocess.run(shlex.split(said.rpartition("for certain: ")[2]), check=True)
    assert pick_up(config, again) is None


def test_what_another_user_submits_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """GIVEN a run root of a group WHEN a command of one died THEN the commands of the others say and do nothing."""
    config, spec = probe_job(tmp_path, "generic", "name=mine")
    intent = dataclasses.replace(new_intent(config, spec), holder=None, uid=os.getuid() + 1, user="ann")
    intents.begin(intent)
    spec.run_dir.mkdir(parents=True)
    write_json(spec.run_dir / "submission.json", {"state": "submitting", "job_id": None, "key": intent.key})
    spec.log_dir.mkdir(parents=True)
    assert pick_up(*probe_job(tmp_path, "generic")) is None
    assert capsys.readouterr().out == ""
    assert (spec.run_dir / "submission.json").exists()
    assert spec.log_dir.exists()
    with pytest.raises(UserError, match="mine is being submitted by ann"):
        resumed(spec.run_dir, lambda: None)
    assert [one.user for one in intents.open_intents(tmp_path / "runs")] == ["ann"]


def test_a_run_root_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot read .*: File name too long\n  next: another one: --set cluster.run_root"
    ):
        intents.open_intents(tmp_path / ("x" * 256))
