"""The programs as a user starts them, for `learning.py`: each run once, in a folder that says what it is.

What is there already, complete, is not done again: a campaign that was killed goes on.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

# A small ACT, as launch/stages/bc.yaml has it.
SMALL = json.dumps(
    {
        **{"dim_model": 64, "n_heads": 4, "dim_feedforward": 256},
        **{"n_encoder_layers": 1, "n_decoder_layers": 1, "use_vae": False},
    }
)
TRAINING = [
    *("--batch-size=64", "--lr=1e-3", "--weight-decay=1e-6", "--warmup-steps=50", "--num-workers=0"),
    *("--eval-freq=0", "--eval-episodes=0", "--save-freq=1000", "--device=cpu", "--no-use-wandb"),
]
ROOT = Path(__file__).resolve().parents[1]
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)


@dataclass(frozen=True)
class Task:
    """Where policies are trained.

    Attributes:
        name: robosuite's.
        start_range: Objects start within ± this of the table's centre, m.
        horizon: Steps of an episode.
        perturbation: Standard deviation of the noise on executed actions.
    """

    name: str
    start_range: float
    horizon: int
    perturbation: float = 0.0

    @property
    def slug(self) -> str:
        """Its part of a folder's name."""
        noise = f"-noise{self.perturbation:g}" if self.perturbation else ""
        return f"{self.name.lower()}{round(100 * self.start_range):02d}{noise}"


@dataclass(frozen=True)
class Campaign:
    """A folder of runs.

    Attributes:
        root: Where.
        episodes: Seeds that every policy is reported on.
    """

    root: Path
    episodes: int

    def demonstrations(self, task: Task, count: int, first_seed: int = 0) -> str:
        """Records demonstrations and returns the dataset's name."""
        name = f"{task.slug}-{count}" + (f"-from{first_seed}" if first_seed else "")
        self._python(
            *("gilbreth_phase0.collect", f"--repo-id={name}", f"--root={self.root / 'data'}", f"--episodes={count}"),
            *(f"--seed={first_seed}", f"--task={task.name}", f"--start-range={task.start_range}"),
            *(f"--horizon={task.horizon}", f"--perturbation={task.perturbation}", "--num-workers=1"),
        )
        return name

    def lengths(self, dataset: str) -> list[int]:
        """Frames of each episode of a dataset."""
        import pandas

        files = sorted((self.root / "data" / dataset / "meta" / "episodes").rglob("*.parquet"))
        return [int(length) for file in files for length in pandas.read_parquet(file)["length"]]

    def bc(self, datasets: Sequence[str], steps: int, seed: int) -> Path:
        """Trains by behaviour cloning and returns the bundle."""
        run = self.root / "runs" / f"bc-{'+'.join(datasets)}-{steps}-s{seed}"
        self._python(
            *("gilbreth_phase0.train_policy", f"--run-dir={run}", f"--root={self.root / 'data'}", "--policy=act"),
            *(f"--repo-ids={','.join(datasets)}", f"--training-steps={steps}", f"--seed={seed}"),
            *(f"--policy-settings={SMALL}", "--action-chunk-size=10", "--n-action-steps=5", "--max-steps=0", *TRAINING),
        )
        return run / "bundle"

    def dagger(self, name: str, policy: Path, dataset: str, seed: int, *flags: str) -> Path:
        """Corrects a policy by DAgger and returns the run's folder."""
        run = self.root / "runs" / f"dagger-{name}-{policy.parent.name}"
        self._python(
            *("gilbreth_phase0.train_dagger", f"--run-dir={run}", f"--root={self.root / 'data'}"),
            *(f"--from-checkpoint={policy}", f"--repo-ids={dataset}", f"--seed={seed}", "--rollout-workers=1"),
            *("--max-steps=0", *TRAINING, *flags),
        )
        return run

    def successes(self, bundle: Path, first_seed: int | None = None) -> list[bool]:
        """Evaluates a policy on the reported seeds, or on fresh ones from a seed on; the order is theirs."""
        path = bundle.parent / f"{bundle.name}-on-{self.episodes}{f'-from-{first_seed}' if first_seed else ''}"
        starts = ["--starts=fresh", f"--seed={first_seed}"] if first_seed else []
        self._python(
            *("gilbreth_phase0.evaluate", f"--policy={bundle}", f"--episodes={self.episodes}", "--num-workers=1"),
            *(f"--run-dir={path}", *starts),
        )
        found = next(iter(json.loads((path / "evaluation.json").read_text()).values()))
        return [episode["success"] for episode in found["episodes"]]

    def _python(self, module: str, *arguments: str) -> None:
        run_dir = next(
            (Path(one.removeprefix("--run-dir=")) for one in arguments if one.startswith("--run-dir=")), None
        )
        if run_dir is not None and (run_dir / "done.json").is_file():
            return
        self.root.mkdir(parents=True, exist_ok=True)
        # One thread each: with more of them than cores, all wait for each other.
        own = {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "GILBRETH_STORE": str(self.root / "store")}
        with (self.root / "log.txt").open("a") as log:
            command = [sys.executable, "-m", module, *arguments]
            ended = subprocess.run(command, env={**os.environ, **own}, stdout=log, stderr=log, cwd=ROOT, check=False)
        if ended.returncode != 0:
            raise SystemExit(f"{module} failed with {ended.returncode}: see {self.root / 'log.txt'}")


def adopt_workers() -> None:
    """Makes this process the parent of workers whose own parent ends, so that their CPU time is counted here."""
    ctypes.CDLL(None, use_errno=True).prctl(_SUBREAPER, 1, 0, 0, 0)


def cpu_hours() -> float:
    """CPU time of all processes that were started and have ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return (used.ru_utime + used.ru_stime) / 3600
