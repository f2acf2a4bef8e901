"""One attempt owns a run: a node that comes back from a network partition must not write over its successor."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from tracking.errors import UserError
from tracking.files import read_json, write_json


class OwnershipLostError(UserError):
    """A later attempt has taken the run; whatever this process still holds must not be written."""

    exit_code = 3


@dataclass(frozen=True)
class AttemptKey:
    """Names one attempt of a job: Slurm keeps the job id over a requeue and counts the restarts."""

    job_id: str
    restart_count: int

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> AttemptKey:
        """Reads the attempt from Slurm's variables, submitit's local ones, or makes one for a plain process."""
        job_id = environ.get("SLURM_JOB_ID") or environ.get("SUBMITIT_LOCAL_JOB_ID")
        return cls(job_id or f"process-{os.getpid()}", int(environ.get("SLURM_RESTART_COUNT", "0")))

    def __str__(self) -> str:
        """`1234-000`: also the name of the attempt's record."""
        return f"{self.job_id}-{self.restart_count:03d}"


def owner_of(run_dir: Path) -> AttemptKey | None:
    """The attempt that holds a run now; None where none has claimed it yet."""
    token = read_json(run_dir / "owner.json")
    return AttemptKey(str(token["job_id"]), int(token["restart_count"])) if token else None


@dataclass(frozen=True)
class Owner:
    """The attempt that holds a run.

    Attributes:
        run_dir: The run folder.
        token: What `owner.json` must still hold for this attempt to write.
    """

    run_dir: Path
    token: dict[str, str | int | float]

    @classmethod
    def claim(cls, run_dir: Path, attempt: AttemptKey | None = None) -> Owner:
        """Takes the run for this attempt; an earlier owner's next `check` fails.

        Args:
            run_dir: An existing run folder.
            attempt: Who takes it; from the environment when None.
        """
        attempt = attempt or AttemptKey.from_environment()
        token = {**asdict(attempt), "host": os.uname().nodename, "pid": os.getpid(), "time": time.time()}
        write_json(run_dir / "owner.json", token)
        return cls(run_dir, token)

    @property
    def attempt(self) -> str:
        """The attempt's name, as in `AttemptKey`."""
        return str(AttemptKey(str(self.token["job_id"]), int(self.token["restart_count"])))

    def check(self) -> None:
        """Makes sure that this attempt may still write.

        Raises:
            OwnershipLostError: Another attempt has claimed the run since.
        """
        holder = read_json(self.run_dir / "owner.json")
        if holder != self.token:
            raise OwnershipLostError(
                f"{self.run_dir} now belongs to attempt {holder and holder.get('job_id')}"
                f" (restart {holder and holder.get('restart_count')}), not to this process"
                f" ({self.token['job_id']}, restart {self.token['restart_count']}); it writes nothing more"
            )
