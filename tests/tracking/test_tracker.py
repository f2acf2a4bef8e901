"""The tracker as a training loop uses it; the child behind it runs the real W&B client."""

from __future__ import annotations

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracking import ExperimentTracker, UserError, read_journal
from tracking.identity import read_identity
from tracking.sync.child.status import read_status

from runs import TAGS, children_on, history_of, offline_folders, rows_of
from support import wait_until
from wandb_file import read_offline_run


@pytest.fixture(autouse=True)
def no_wandb_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_", "SUBMITIT_"))] + ["RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")


class TestWithoutAnything:
    """Disabled and on other ranks: nothing is created, and every call returns what it otherwise would."""

    @pytest.mark.parametrize(
        ("environ", "arguments"),
        [
            ({}, {"enabled": False}),
            ({}, {"mode": "disabled"}),
            ({"WANDB_MODE": "disabled"}, {}),
            ({"RANK": "1", "WORLD_SIZE": "2"}, {}),
            ({"SLURM_PROCID": "3"}, {}),
        ],
    )
    def test_calls_do_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environ: dict[str, str], arguments: dict[str, Any]
    ) -> None:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.chdir(tmp_path)

        with ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run", **arguments) as tracker:
            tracker.log_metrics({"x": object()}, 1)
            tracker.log_training_step(0.5, 10, 8)
            tracker.log_config({"a": 1})
            tracker.flush()
            assert (tracker.get_run_id(), tracker.get_run_url(), tracker.get_run_dir()) == (None, None, None)
            assert not tracker.is_active()
        assert list(tmp_path.iterdir()) == []

    def test_a_loss_is_not_read_on_other_ranks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RANK", "1")

        class Loss:
            def item(self) -> float:
                raise AssertionError("the device was read")

        ExperimentTracker(tags=TAGS, log_interval=1).log_training_step(Loss(), 1, 8)


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"tags": {"model": "act"}}, "tags lack dataset, objective, experiment_group"),
            ({"mode": "ofline"}, "unknown mode 'ofline'. Did you mean 'offline'?"),
            ({"log_interval": 0}, "at least 1, not 0"),
        ],
    )
    def test_a_wrong_argument(self, tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(UserError) as error:
            ExperimentTracker(run_dir=tmp_path / "run", **arguments)
        assert message in str(error.value)
        assert not (tmp_path / "run").exists()

    def test_a_wrong_wandb_mode(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_MODE", "on")
        with pytest.raises(UserError, match="unknown WANDB_MODE 'on'"):
            ExperimentTracker(tags=TAGS)
        assert not ExperimentTracker(tags=TAGS, mode="disabled").is_active()

    def test_the_id_of_another_run(self, tmp_path: Path) -> None:
        (tmp_path / "run.json").write_text(
            json.dumps({"run_id": "aaaa1111", "run_name": "n", "project": "p", "entity": None, "created": 1.0})
        )
        with pytest.raises(UserError, match=r"resume_id 'bbbb2222' is not the run in .*'aaaa1111'"):
            ExperimentTracker(tags=TAGS, run_dir=tmp_path, resume_id="bbbb2222")
        assert list(tmp_path.glob("journal-*")) == []

    @pytest.mark.parametrize("content", ["{", '{"run": 1}', "[]"])
    def test_a_broken_run_file(self, tmp_path: Path, content: str) -> None:
        (tmp_path / "run.json").write_text(content)
        with pytest.raises(UserError, match=r"run\.json does not describe a run|is not valid JSON"):
            ExperimentTracker(tags=TAGS, run_dir=tmp_path)

    def test_a_run_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be written: Not a directory"):
            ExperimentTracker(tags=TAGS, run_dir=tmp_path / "file" / "run")


@pytest.mark.wandb
class TestRun:
    def test_every_row_reaches_wandbs_folder(self, weird_tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        run_dir = weird_tmp_path / "it's a run"
        tracker = ExperimentTracker(
            project="p",
            config={"lr": 1e-4, "hf_token": "x"},
            tags=TAGS,
            run_dir=run_dir,
            name='a "name"',
            log_interval=5,
        )
        for step in range(1, 21):
            tracker.log_training_step(np.float32(1 / step), step, 8, ar=0.5)
        tracker.log_metrics({"eval": {"success": np.int64(3), "ok": True}, "note": "text", "empty": None}, 20)
        tracker.log_metrics({"loss/total": math.nan, "x": math.inf, "bad": object(), "_step": 3}, 21)
        tracker.log_metrics({"x": 1}, 3)
        tracker.log_config({"later": 2})
        tracker.finish()

        (folder,) = offline_folders(run_dir)
        run = read_offline_run(folder)
        assert (run.run_id, run.name, run.project) == (tracker.get_run_id(), 'a "name"', "p")
        assert run.tags == ["model:act", "dataset:lift", "objective:bc", "experiment_group:demo"]
        assert run.step_metrics == {"*": "train/step"}
        assert (run.exit_code, run.preempting) == (0, False)
        assert {key: run.config[key] for key in ("lr", "hf_token", "later")} == {
            "lr": 1e-4, "hf_token": "[redacted]", "later": 2
        }  # fmt: skip
        assert run.config["metadata"]["slurm"] is None
        assert json.dumps(history_of(folder), sort_keys=True) == json.dumps(rows_of(run_dir), sort_keys=True)
        assert [row["train/step"] for row in run.history] == [5, 10, 15, 20, 20, 21, 3]
        assert run.history[4]["eval/success"] == 3
        assert not (run_dir / "wandb" / "building").exists()
        printed = capfd.readouterr()
        assert "[ExperimentTracker] Offline mode. Run 'wandb sync' to upload later.\n  wandb sync " in printed.out
        assert "loss/total is nan at step 21" in printed.err
        assert "bad is left out: a object is not a metric" in printed.err
        assert "_step is left out: the name is W&B's own" in printed.err

    def test_the_printed_command_names_the_folder(
        self, weird_tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        tracker = ExperimentTracker(tags=TAGS, run_dir=weird_tmp_path)
        tracker.finish()
        command = capfd.readouterr().out.split("upload later.\n")[1].split("\n[Exp")[0].strip()
        assert command.startswith("wandb sync ")
        shown = subprocess.run(
            ["bash", "-c", command.replace("wandb sync", "printf '%s\\0'", 1)], capture_output=True, check=True
        )
        assert shown.stdout.decode().split("\0")[:-1] == [str(offline_folders(weird_tmp_path)[0])]

    def test_a_resumed_run_is_one_run(self, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
        """GIVEN a segment that logged past its checkpoint WHEN it is resumed THEN each step is there once, in order."""
        run_id = None
        for first, last in ((1, 15), (11, 30), (21, 40)):
            tracker = ExperimentTracker(
                tags=TAGS, run_dir=tmp_path, log_interval=1, resume_id=run_id, resumed_step=first - 1 or None
            )
            run_id = tracker.get_run_id()
            for step in range(first, last + 1):
                tracker.log_metrics({"loss/total": 1 / step, "x": step}, step)
            tracker.finish(state="preempted" if last < 40 else None)

        (folder,) = offline_folders(tmp_path)
        assert [row["train/step"] for row in history_of(folder)] == list(range(1, 41))
        assert history_of(folder) == rows_of(tmp_path)
        assert read_offline_run(folder).run_id == run_id
        assert read_offline_run(folder).exit_code == 0
        assert len(list((tmp_path / "wandb" / "superseded").iterdir())) == 2
        assert [segment.resumed_step for segment in read_journal(tmp_path).segments] == [None, 10, 20]
        out = capfd.readouterr().out
        assert "10 values up to step 15 were in the journal already and were not logged again." in out
        assert "20 values up to step 30 were in the journal already" in out

    def test_another_configuration_is_recorded_as_a_difference(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        for rate in (0.1, 0.2, 0.2):
            tracker = ExperimentTracker(tags=TAGS, run_dir=tmp_path, config={"lr": rate, "seed": 1})
            tracker.log_metrics({"x": rate}, 1)
            tracker.finish()
        assert capfd.readouterr().out.count("The configuration differs") == 1
        config = read_offline_run(offline_folders(tmp_path)[0]).config
        assert (config["lr"], config["seed"]) == (0.2, 1)
        assert config["segments"]["1"]["config_changes"] == {"lr": {"before": 0.1, "now": 0.2}}
        assert "config_changes" not in config["metadata"] | config["segments"]["2"]

    def test_a_preempted_segment_is_marked_and_closed_within_seconds(self, tmp_path: Path) -> None:
        tracker = ExperimentTracker(tags=TAGS, run_dir=tmp_path)
        tracker.log_metrics({"x": 1}, 1)
        wait_until(lambda: read_status(tmp_path), 30, "the child's first word")
        began = time.monotonic()
        tracker.finish(state="preempted")
        assert time.monotonic() - began < 5
        run = read_offline_run(offline_folders(tmp_path)[0])
        assert (run.preempting, run.exit_code) == (True, 143)
        status = read_status(tmp_path)
        assert status is not None
        assert (status.state, status.rows, status.folder) == ("done", 1, str(offline_folders(tmp_path)[0]))

    def test_without_run_dir_the_documented_places_are_used(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        monkeypatch.chdir(tmp_path)
        first = ExperimentTracker(tags=TAGS)
        first.log_metrics({"x": 1}, 1)
        first.finish()
        (run_dir,) = (tmp_path / "runs").iterdir()
        assert run_dir.name.startswith("act_bc_lift_")
        assert run_dir.name.endswith("_nogit")
        assert len(offline_folders(tmp_path)) == 1
        assert f"  wandb sync ./wandb/offline-run-*-{first.get_run_id()}*\n" in capfd.readouterr().out

        again = ExperimentTracker(tags=TAGS, resume_id=first.get_run_id())
        again.log_metrics({"x": 2}, 2)
        again.finish()
        assert again.get_run_dir() == run_dir
        assert [row["x"] for row in history_of(offline_folders(tmp_path)[0])] == [1, 2]

    def test_wandb_dir_decides_where_wandbs_folder_is(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
        monkeypatch.setenv("WANDB_PROJECT", "theirs")
        monkeypatch.setenv("WANDB_RUN_ID", "zzzz9999")
        ExperimentTracker(tags=["a", "b"], run_dir=tmp_path / "run").finish()
        run = read_offline_run(offline_folders(tmp_path / "elsewhere")[0])
        assert (run.project, run.tags) == ("theirs", ["a", "b"])
        monkeypatch.setenv("WANDB_ENTITY", "them")
        ExperimentTracker(tags=TAGS, run_dir=tmp_path / "a").finish()
        ExperimentTracker(tags=TAGS, run_dir=tmp_path / "b", project="mine", entity="me").finish()
        identities = [read_identity(tmp_path / name) for name in ("a", "b")]
        assert [(run.project, run.entity) for run in identities if run] == [("theirs", "them"), ("mine", "me")]
        assert run.run_id != "zzzz9999"
        assert not (tmp_path / "run" / "wandb").exists()

    def test_a_folder_that_wandb_cannot_write_costs_nothing_but_wandb(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "file"))
        tracker = ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run")
        tracker.log_metrics({"x": 1}, 1)
        tracker.finish()
        assert len(read_journal(tmp_path / "run").rows) == 1
        out = capfd.readouterr().out
        assert "W&B's folder was not written: W&B's folder cannot be written" in out
        assert f"  python -m tracking.sync run {tmp_path / 'run'}\n" in out
        status = read_status(tmp_path / "run")
        assert status is not None
        assert "next: set WANDB_DIR" in str(status.error)

    def test_the_owner_check_stops_a_flush(self, tmp_path: Path) -> None:
        def refuse() -> None:
            raise UserError("job 7 owns this run")

        tracker = ExperimentTracker(tags=TAGS, run_dir=tmp_path, before_flush=refuse)
        with pytest.raises(UserError, match="job 7 owns"):
            tracker.flush()
        tracker.finish(exit_code=1)

    def test_of_two_trackers_on_one_folder_the_later_one_wins(
        self, tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        first = ExperimentTracker(tags=TAGS, run_dir=tmp_path)
        first.log_metrics({"x": 1}, 1)
        second = ExperimentTracker(tags=TAGS, run_dir=tmp_path)
        second.log_metrics({"x": 2}, 2)
        first.log_metrics({"x": -2}, 2)
        first.flush()
        assert not first.is_active()
        assert "Another process continues this run (journal-001.jsonl)" in capfd.readouterr().out
        first.finish()
        second.finish()
        assert first.get_run_id() == second.get_run_id()
        (folder,) = offline_folders(tmp_path)
        assert [row["x"] for row in history_of(folder)] == [1, 2]

    def test_an_exception_ends_the_run_as_crashed(self, tmp_path: Path) -> None:
        with pytest.raises(ZeroDivisionError), ExperimentTracker(tags=TAGS, run_dir=tmp_path):
            _ = 1 / 0
        end = read_journal(tmp_path).end
        assert end is not None
        assert (end.state, end.exit_code) == ("crashed", 1)
        assert read_offline_run(offline_folders(tmp_path)[0]).exit_code == 1


_TRAIN = """
import signal, sys, time
from pathlib import Path
from tracking import ExperimentTracker
tags = {"model": "act", "dataset": "lift", "objective": "bc", "experiment_group": "demo"}
tracker = ExperimentTracker(tags=tags, run_dir=Path(sys.argv[1]), log_interval=1)
first, last = int(sys.argv[2]), int(sys.argv[3])
stop = []
signal.signal(signal.SIGUSR1, lambda number, frame: stop.append(number))
print("ready", flush=True)
for step in range(first, last + 1):
    tracker.log_training_step(1 / step, step, 8)
    if stop:
        began = time.monotonic()
        tracker.finish(state="preempted")
        print("closed in", time.monotonic() - began)
        sys.exit(143)
    time.sleep(0.002)
tracker.finish()
"""


def start_training(run_dir: Path, first: int, last: int) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _TRAIN, str(run_dir), str(first), str(last)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    while process.stdout.readline().strip() != "ready":
        assert process.poll() is None
    return process


@pytest.mark.wandb
class TestKilled:
    @pytest.mark.parametrize("seed", [1, 2, 3])
    def test_sigkill_at_any_moment_loses_nothing_that_was_logged(self, tmp_path: Path, seed: int) -> None:
        """GIVEN training killed at a random moment WHEN it is resumed THEN W&B holds each step once."""
        process = start_training(tmp_path, 1, 100_000)
        time.sleep(random.Random(seed).uniform(0.0, 0.9))
        process.kill()
        process.wait()
        killed_at = len(read_journal(tmp_path).rows)

        wait_until(lambda: not children_on(tmp_path), 30, "the child to end by itself")
        (folder,) = offline_folders(tmp_path)
        assert read_offline_run(folder).exit_code == 1
        assert history_of(folder) == rows_of(tmp_path)

        resumed = start_training(tmp_path, 1, killed_at + 20)
        assert resumed.wait(60) == 0
        (folder,) = offline_folders(tmp_path)
        assert [row["train/step"] for row in history_of(folder)] == list(range(1, killed_at + 21))
        assert history_of(folder) == rows_of(tmp_path)
        assert read_offline_run(folder).exit_code == 0

    def test_the_stop_protocol_closes_the_run_as_preempted_within_a_second(self, tmp_path: Path) -> None:
        """GIVEN a handler that sets a flag and Slurm's signal to training and child THEN the run ends as preempted."""
        process = start_training(tmp_path, 1, 100_000)
        wait_until(lambda: read_status(tmp_path), 30, "the child's first word")
        for pid in [*children_on(tmp_path), process.pid]:
            os.kill(pid, signal.SIGUSR1)
        output, _ = process.communicate(timeout=30)
        assert process.returncode == 143
        assert float(output.split("closed in ")[1].split()[0]) < 2
        run = read_offline_run(offline_folders(tmp_path)[0])
        assert (run.preempting, run.exit_code) == (True, 143)
        assert history_of(offline_folders(tmp_path)[0]) == rows_of(tmp_path)

    @pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
    def test_a_signal_to_every_process_of_the_job_loses_nothing(self, tmp_path: Path, number: signal.Signals) -> None:
        """GIVEN Slurm's signal to the whole step, W&B's service too THEN the child still writes the whole run."""
        process = start_training(tmp_path, 1, 100_000)
        wait_until(lambda: read_status(tmp_path), 30, "the child's first word")
        (child,) = children_on(tmp_path)
        service = [int(pid) for pid in Path(f"/proc/{child}/task/{child}/children").read_text().split()]
        assert service
        for pid in [child, *service, process.pid]:
            os.kill(pid, number)
        assert process.wait(10) == -number

        wait_until(lambda: not children_on(tmp_path), 30, "the child to end by itself")
        (folder,) = offline_folders(tmp_path)
        assert history_of(folder) == rows_of(tmp_path)
        assert read_offline_run(folder).exit_code == 1

    def test_a_child_killed_with_its_node_leaves_the_earlier_folder_alone(self, tmp_path: Path) -> None:
        """GIVEN a published segment and a second one that dies with its child THEN one whole folder stands."""
        assert start_training(tmp_path, 1, 10).wait(60) == 0
        (published,) = offline_folders(tmp_path)
        process = start_training(tmp_path, 11, 100_000)
        wait_until(lambda: (status := read_status(tmp_path)) and status.segment == 1, 30, "the second child")
        for pid in [*children_on(tmp_path), process.pid]:
            os.kill(pid, signal.SIGKILL)
        process.wait()
        assert offline_folders(tmp_path) == [published]

        child = [sys.executable, "-m", "tracking.sync.child", str(tmp_path), "--wandb-dir", str(tmp_path)]
        subprocess.run(child, check=True, timeout=60)
        (folder,) = offline_folders(tmp_path)
        assert folder != published
        assert history_of(folder) == rows_of(tmp_path)
        assert not (tmp_path / "wandb" / "building").exists()


def test_importing_it_is_cheap() -> None:
    code = "import sys, tracking; tracking.ExperimentTracker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "wandb", "git", "numpy", "pydantic"} & set(done.stdout.split())
