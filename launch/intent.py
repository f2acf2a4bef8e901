"""What is being submitted, recorded before Slurm is asked, so that a crash between the two can be mended.

```
RUN_ROOT/.submitting/
  NAME~NONCE.000.json   what is submitted, and by which process; gone once the run's own record stands
  NAME~NONCE.001.json   the same in the hands of a later command, because that process is dead
```
A group may share a run root: what another user submits is his own affair, because Slurm is asked for one's own jobs.
A process of this host is asked for by its number. One on another host counts as dead when its record is older than any
submission takes, by the clock of the disk: the clocks of two hosts are never compared.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from launch.config import Config
from launch.questions import user_name
from launch.spec import JobSpec
from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import beside, read_json
from tracking.redact import redact_arguments
from tracking.sync.claims import Holder

FOLDER = ".submitting"
"""Where intents stand in a run root."""

_FORM = re.compile(r"(?P<stem>.+~[0-9a-f]+)\.(?P<number>\d{3})\.json")
# Longer than a submission takes, sbatch's own time limit included.
_DEAD_S = 300.0
_LEFT_S = 3600.0


@dataclass(frozen=True)
class Intent:
    """A submission that is under way, or was when its process died.

    Attributes:
        name: The run.
        nonce: Tells this submission from another one of the same name.
        run_dir: The run folder.
        log_dir: The log folder.
        executor: `slurm` or `local`.
        cluster: The profile.
        slurm: `SLURM_CONF` of the submitting process: which Slurm can be asked.
        request: Digest of all that was asked for; the same request again is the same submission.
        arguments: The command line behind `launch.submit`, to submit it again.
        time: When it began, seconds since the epoch.
        holder: Who is at it; None where Slurm did not answer, and the next command has to look.
        number: How often it was taken over.
        unanswered: Whether Slurm's answer was lost, so that it may still list the job later.
        uid: Whose it is.
        user: The name of that user.
        host: Where it was begun.
    """

    name: str
    nonce: str
    run_dir: Path
    log_dir: Path
    executor: str
    cluster: str
    slurm: str | None
    request: str
    arguments: tuple[str, ...]
    time: float
    holder: Holder | None
    number: int = 0
    unanswered: bool = False
    uid: int = field(default_factory=os.getuid)
    user: str = field(default_factory=user_name)
    host: str = field(default_factory=lambda: os.uname().nodename)

    @property
    def is_own(self) -> bool:
        """Whether this user submits it."""
        return self.uid == os.getuid()

    @property
    def key(self) -> str:
        """What the job carries in its comment."""
        return f"gilbreth:{self.name}:{self.nonce}"

    @property
    def path(self) -> Path:
        """Where it is recorded."""
        return self.run_dir.parent / FOLDER / f"{self.name}~{self.nonce}.{self.number:03d}.json"

    @property
    def log_mark(self) -> Path:
        """Tells that the log folder was made for this submission."""
        return self.log_dir / f".submission-{self.nonce}"

    @property
    def has_logs(self) -> bool:
        """Whether the log folder is there, and this submission's own."""
        return self.log_mark.exists()

    @property
    def command(self) -> str:
        """The command that submits it again."""
        return shlex.join(["python", "-m", "launch.submit", *self.arguments])

    @property
    def is_under_way(self) -> bool:
        """Whether its process lives; on another host, whether it may."""
        alive = self.holder.is_alive() if self.holder is not None else False
        return age(self.path) < _DEAD_S if alive is None else alive


def new_intent(config: Config, spec: JobSpec, arguments: Sequence[str] | None = None) -> Intent:
    """Makes the intent to submit a job by this process; nothing is written.

    Args:
        config: The configuration.
        spec: Its job.
        arguments: What follows `launch.submit` in a command that submits the same; None is this process's own.
    """
    return Intent(
        name=spec.name,
        nonce=secrets.token_hex(4),
        run_dir=spec.run_dir,
        log_dir=spec.log_dir,
        executor=spec.cluster.executor,
        cluster=spec.cluster.name,
        slurm=os.environ.get("SLURM_CONF"),
        request=request_of(config, spec),
        arguments=tuple(redact_arguments(list(sys.argv[1:] if arguments is None else arguments))),
        time=time.time(),
        holder=Holder.this_process("submit"),
    )


def request_of(config: Config, spec: JobSpec) -> str:
    """A digest of what is asked for, whatever name a run without one would get."""
    text = f"{spec.root}\0{config.name}\0{config.dump('')}"
    return hashlib.sha256(text.encode()).hexdigest()


def begin(intent: Intent) -> None:
    """Records an intent.

    Raises:
        UserError: The run root cannot be written.
    """
    try:
        intent.path.parent.mkdir(parents=True, exist_ok=True)
        _create(intent)
    except OSError as error:
        raise UserError(
            f"cannot write {error.filename}: {error.strerror}; set cluster.run_root to a folder of yours"
        ) from None


def open_intents(run_root: Path) -> list[Intent]:
    """The submissions below a run root that are under way or were left, of all users; in most run roots there is none.

    Raises:
        UserError: Nobody can tell, because the disk does not answer.
    """
    newest: dict[str, Path] = {}
    try:
        paths = sorted((run_root / FOLDER).iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []  # one that may not be entered is preflight's to refuse
    except OSError as error:
        raise UserError(
            f"cannot read {error.filename}: {error.strerror}\n  next: another one: --set cluster.run_root=FOLDER"
        ) from None
    for path in paths:
        if match := _FORM.fullmatch(path.name):
            newest[match["stem"]] = path
        elif path.name.startswith("."):
            _forget(path)
    return [intent for path in newest.values() if (intent := _read(path)) is not None]


def take_over(intent: Intent) -> Intent | None:
    """Takes an intent whose process is dead into this process's hands.

    Args:
        intent: As it was read.

    Returns:
        The intent as it stands now; None where another process was faster.
    """
    taken = replace(intent, number=intent.number + 1, holder=Holder.this_process("submit"))
    if not _create(taken):
        return None
    if not intent.path.exists():
        # Another process has dealt with it since it was read.
        taken.path.unlink(missing_ok=True)
        return None
    intent.path.unlink(missing_ok=True)
    return taken


def let_go(intent: Intent) -> None:
    """Leaves an intent to the next command: Slurm did not answer."""
    left = replace(intent, number=intent.number + 1, holder=None, unanswered=True)
    _create(left)
    intent.path.unlink(missing_ok=True)


def close(intent: Intent) -> None:
    """Ends an intent: the run's own record stands, or nothing of the run does."""
    for path in sorted(intent.path.parent.glob(f"{intent.name}~{intent.nonce}.*.json")):
        path.unlink(missing_ok=True)


def age(path: Path) -> float:
    """How old a file is in seconds, by the clock of its disk; infinite where it is gone."""
    probe = beside(path, "now")
    try:
        probe.touch()
        return probe.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    finally:
        probe.unlink(missing_ok=True)


def _create(intent: Intent) -> bool:
    fields = asdict(intent) | {"run_dir": str(intent.run_dir), "log_dir": str(intent.log_dir)}
    return create_exclusive(intent.path, (json.dumps(fields, indent=2) + "\n").encode())


def _read(path: Path) -> Intent | None:
    try:
        fields: Mapping[str, Any] | None = read_json(path)
        if fields is None:
            return None
        holder = fields["holder"]
        changed = {
            # Where it was found, not where it was written: a disk may be mounted elsewhere on this host.
            "run_dir": path.parent.parent / Path(fields["run_dir"]).name,
            "log_dir": Path(fields["log_dir"]),
            "arguments": tuple(fields["arguments"]),
            "holder": Holder(**holder) if holder is not None else None,
        }
        return Intent(**{**fields, **changed})
    except (OSError, ValueError, TypeError, KeyError):
        return None  # of a version to come


def _forget(path: Path) -> None:
    """Removes a temporary file of a process that was killed while it wrote; another user's may have to stay."""
    with suppress(PermissionError):
        if age(path) > _LEFT_S:
            path.unlink(missing_ok=True)
