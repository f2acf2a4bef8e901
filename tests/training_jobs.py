"""Real `bc` jobs in the lab: submitted as a user submits them, disturbed, and compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from launch.lab import Lab
from tracking import Journal, read_journal
from tracking.files import read_json

from support import wait_until

ROOT = Path(__file__).parents[1]
LAUNCH = [sys.executable, "-m", "launch.submit"]


@dataclass(frozen=True)
class BcRun:
    """One run in the lab, of the stage `bc` where nothing else is said."""

    lab: Lab
    run_dir: Path
    log: Path
    job_id: str

    def slurm(self, *command: str) -> str:
        """Runs a Slurm client command and returns what it prints."""
        environment = {**os.environ, **self.lab.environment()}
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout

    def journal(self) -> Journal:
        return read_journal(self.run_dir)

    def step(self) -> int:
        """The last step in the journal."""
        return max((row.step for row in self.journal().rows), default=0)

    def state(self) -> str:
        return self.slurm("squeue", "--noheader", "--states=all", "--jobs", self.job_id, "--format=%T").strip()

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: self.step() >= step, 180, f"step {step}")

    def wait_until_done(self, timeout: float = 300) -> None:
        """Waits for the done record, then for Slurm to agree that the job is over."""
        self.wait_until(self._done, timeout, "the done record")
        self.wait_until(lambda: self.state() == "COMPLETED", 60, "the job's end")

    def wait_until_all_done(self, timeout: float = 300) -> None:
        """Waits for the done record of a chain of jobs, then for the last of them to leave the queue."""
        mine = ("squeue", "--noheader", f"--name={self.run_dir.name}", "--format=%i %T")
        self.wait_until(lambda: (self.run_dir / "done.json").is_file() or not self.slurm(*mine), timeout, "the chain")
        assert (self.run_dir / "done.json").is_file(), "no job is left to go on"
        self.wait_until(lambda: not self.slurm(*mine), 60, "the end of the last job")

    def _done(self) -> bool:
        over = self.state() in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT")
        done = (self.run_dir / "done.json").is_file()  # asked last: the job may have ended meanwhile
        assert done or not over, "the job is over"
        return done

    def wait_until(self, predicate: Callable[[], object], timeout: float, what: str) -> None:
        """Waits for something of the run; says what Slurm and the log say where it does not come."""
        try:
            wait_until(predicate, timeout, f"{what} of job {self.job_id}", interval=0.2)
        except AssertionError as error:
            text = self.log.read_text()[-6000:] if self.log.exists() else "(no log)"
            raise AssertionError(f"{error}; Slurm says {self.state()}; the log ends:\n{text}") from None

    def pid_of_rank(self, rank: int) -> int:
        """The pid of a task of the job, as this machine sees it."""
        wanted = {
            f"SLURM_JOB_ID={self.job_id}",
            f"SLURM_PROCID={rank}",
            f"SLURM_CONF={self.lab.environment()['SLURM_CONF']}",
        }
        found = []
        for entry in Path("/proc").glob("[0-9]*"):
            try:
                environment = set((entry / "environ").read_bytes().decode(errors="replace").split("\0"))
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if wanted <= environment and b"submitit.core._submit" in command:
                found.append(int(entry.name))
        assert found, f"no process of rank {rank} of job {self.job_id}"
        return min(found)  # its children are younger

    def kill_rank(self, rank: int) -> None:
        os.kill(self.pid_of_rank(rank), signal.SIGKILL)

    def weights(self) -> bytes:
        return (self.run_dir / "bundle" / "model.safetensors").read_bytes()

    def attempts(self) -> list[dict[str, object]]:
        """Records of the attempts, in the order in which they ended."""
        found = [read_json(path) for path in (self.run_dir / "attempts").glob("*.json")]
        return sorted(found, key=lambda record: record["time"])


def submit_bc(lab: Lab, folder: Path, data: Path, steps: int, *settings: str) -> BcRun:
    """Submits `bc` to the lab by the documented command, with a small policy and every step logged."""
    given = {
        "cluster.run_root": folder / "runs",
        "cluster.data_root": data,
        "bc.training_steps": steps,
        "bc.eval_episodes": 0,
        "bc.log_interval": 1,
        "bc.save_freq": 20,
    }
    return submit(lab, "bc", given, *settings)


def submit(lab: Lab, stage: str, given: Mapping[str, object], *settings: str) -> BcRun:
    """Submits a stage to the lab by the documented command."""
    arguments = [
        f"--set={key}={json.dumps(str(value))}" if isinstance(value, Path) else f"--set={key}={value}"
        for key, value in given.items()
    ]
    arguments += [f"--set={setting}" for setting in settings]
    answer = subprocess.run(
        [*LAUNCH, f"--stage={stage}", "--cluster=lab", *arguments],
        env={**os.environ, **lab.environment()},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert answer.returncode == 0, answer.stderr
    said = dict(line.split(maxsplit=1) for line in answer.stdout.splitlines())
    job_id = said["job"].split()[0]
    return BcRun(lab, Path(said["in"]), Path(said["logs"]) / f"{job_id}_0_log.out", job_id)
