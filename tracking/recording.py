"""One segment of a run while it is being recorded: the journal, and the child that shows it to W&B."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tracking.artifacts import put_config, put_diff
from tracking.console import LOG_NAME, Console, heading
from tracking.errors import UserError
from tracking.identity import Identity, claim_identity
from tracking.inbox import waiting
from tracking.intents import Intent, pending_intents, put_intent
from tracking.journal import Journal, JournalWriter, read_journal
from tracking.journal.known import KnownPairs
from tracking.journal.lines import State
from tracking.labels import Labels
from tracking.metadata import get_metadata, git_diff, slurm_facts
from tracking.mode import Mode
from tracking.models import describe, is_large
from tracking.sync.child.process import SyncProcess, push_command
from tracking.sync.child.status import SyncStatus, read_status
from tracking.sync.child.task import Task
from tracking.sync.scan import mark_wanted
from tracking.sync.views.offline import sync_command
from tracking.words import many

# What starting the child takes before it can ask W&B's server.
_START_S = 1.5


@dataclass(frozen=True)
class Plan:
    """What a segment is to be.

    Attributes:
        run_dir: The run folder.
        wandb_dir: The folder that holds W&B's `wandb`.
        mode: What is wanted.
        run_id: The run to continue, or None for the one that the folder holds.
        run_name: Display name of a new run.
        project: W&B project of a new run.
        entity: W&B entity of a new run.
        labels: Tags, group, job type and notes.
        config: The configuration, plain and without secrets.
        resumed_step: The training step of the checkpoint that the segment continues from.
        finish_timeout: Seconds that the end waits for the child at most.
        probe_timeout: Seconds that the server may take to answer at the beginning.
        console: Whether the console is copied into the run folder.
        wandb: Whether W&B gets the run.
    """

    run_dir: Path
    wandb_dir: Path
    mode: Mode
    run_id: str | None
    run_name: str
    project: str
    entity: str | None
    labels: Labels
    config: dict[str, Any]
    resumed_step: int | None
    finish_timeout: float
    probe_timeout: float
    console: bool
    wandb: bool = True


class Recording:
    """A segment that is being recorded.

    Attributes:
        identity: The run.
        run_dir: The run folder.
    """

    def __init__(self, plan: Plan) -> None:
        """Begins the segment: writes its first lines and starts the child.

        Raises:
            UserError: The folder holds another run than asked for, or it cannot be written.
        """
        deadline = time.monotonic() + _START_S + plan.probe_timeout
        self.run_dir = plan.run_dir
        self._plan = plan
        try:
            plan.run_dir.mkdir(parents=True, exist_ok=True)
            self.identity: Identity = claim_identity(
                plan.run_dir, plan.run_id, plan.run_name, plan.project, plan.entity
            )
            journal = read_journal(plan.run_dir)
            job = slurm_facts()
            self._writer = JournalWriter.begin(
                plan.run_dir,
                self.identity.run_id,
                journal,
                job=job,
                resumed_step=plan.resumed_step,
                labels=plan.labels,
            )
        except OSError as error:
            raise UserError(
                f"the run folder {plan.run_dir} cannot be written: {error.strerror}\n"
                "  next: give a folder of yours as run_dir, or free space there"
            ) from error
        self._console = Console(plan.run_dir / LOG_NAME, heading(self._writer.segment, job)) if plan.console else None
        self._known: KnownPairs | None = KnownPairs(journal.rows) if journal.rows else None
        mark_wanted(plan.run_dir, plan.wandb)
        self._child = self._start_child() if plan.wandb else None
        # The server is asked meanwhile.
        self._write_beginning(journal)
        self._offline: bool | None = True if plan.mode == "offline" or not plan.wandb else None
        self._announce(deadline)

    def row(self, step: int, data: Mapping[str, Any]) -> None:
        """Records a row, without what an earlier segment recorded for that step."""
        if self._known is not None:
            data = self._leave_out_known(self._known, step, data)
        if data:
            self._writer.row(step, data)

    def late_row(self, step: int, data: Mapping[str, Any]) -> None:
        """Records a row of a step that may be long past, without what any segment recorded for that step."""
        if fresh := KnownPairs(read_journal(self.run_dir).rows).fresh(step, data):
            self._writer.row(step, fresh)

    def take_inbox(self) -> int:
        """Records what others found of this run, and says how much that was."""
        if self._has_successor():
            return 0
        count = 0
        for found in waiting(self.run_dir):
            self.late_row(found.step, found.metrics)
            self._writer.flush()
            found.done()
            count += 1
        return count

    def config(self, config: Mapping[str, Any]) -> None:
        """Records a configuration, merged over the earlier ones, and puts the artifact aside."""
        self._writer.config(config)
        self._put_aside(lambda: put_config(self.run_dir, self.identity.run_name, config))

    def model(self, intent: Intent) -> None:
        """Says how large a model is and who uploads it, and puts its upload aside."""
        who = "it waits for the network" if self.is_offline() else "it is being uploaded"
        say(f"Model {intent.name} ({describe(intent)}): {who}.")
        if is_large(intent):
            say(f"{intent.name} is larger than 5 GB: it takes W&B's storage and a long time.", error=True)
        self._put_aside(lambda: put_intent(self.run_dir, intent))

    def is_offline(self) -> bool:
        """True when W&B gets this segment from an offline folder."""
        if self._offline is None:
            status = self._status()
            self._offline = status.mode == "offline" if status is not None else None
        return bool(self._offline)

    def url(self) -> str | None:
        """The run's page on the server; None offline and until the server has named it."""
        status = self._status()
        return status.url if status is not None else None

    def flush(self) -> bool:
        """Makes every row durable.

        Returns:
            False when another process has taken the run over: the recording is then closed.
        """
        if self._has_successor():
            return False
        self._writer.flush()
        return True

    def finish(self, state: State, exit_code: int) -> None:
        """Ends the segment and waits, within the plan's bound, until W&B has it; a successor's run is not ended."""
        if self._has_successor():
            return
        if self._known is not None:
            _report_skipped(self._known)
        if self._console is not None:
            # Before the segment's last word, after which the log is uploaded; Python prints a crash's traceback later.
            error = sys.exception()
            self._console.stop(error if not isinstance(error, SystemExit) else None)
        self._writer.end(state, exit_code)
        whole = self._writer.close()
        rows = self._writer.next_row
        if self._child is None:
            say(f"{rows} rows in {self.run_dir}.")
            return
        code = self._child.wait(self._plan.finish_timeout, has_end=whole)
        self._report_end(code, self._status(), rows)
        if waiting := len(pending_intents(self.run_dir)):
            say(f"{many(waiting, 'artifact')} not uploaded: {self.run_dir / 'intents'}. Where there is internet:")
            print(f"  {push_command(self.run_dir)}", flush=True)

    def _has_successor(self) -> bool:
        if (successor := self._writer.replaced_by()) is None:
            return False
        say(f"Another process continues this run ({successor.name}): this one stops recording.")
        self._writer.close()
        if self._console is not None:
            self._console.stop()
        return True

    def _start_child(self) -> SyncProcess | None:
        task = Task(
            run_dir=self.run_dir,
            wandb_dir=self._plan.wandb_dir,
            mode="probe" if self._plan.mode == "online" else "offline",
            segment=self._writer.segment,
            finish_timeout=self._plan.finish_timeout,
            probe_timeout=self._plan.probe_timeout,
        )
        try:
            return SyncProcess(task)
        except OSError as error:
            say(f"W&B's process cannot be started ({error.strerror}). Training goes on; the journal holds all rows.")
            return None

    def _write_beginning(self, journal: Journal) -> None:
        for problem in journal.problems:
            say(f"journal: {problem}")
        if journal.segments:
            say(f"Run {self.identity.run_id} continues: segment {self._writer.segment}, {journal.next_row} rows.")
        metadata = get_metadata()
        if (diff := git_diff(Path.cwd())) is not None:
            path = self._put_aside(lambda: put_diff(self.run_dir, self.identity.run_name, diff))
            metadata["git"]["diff"] = str(path) if path is not None else None
        changes = {
            key: {"before": journal.config.get(key), "now": value}
            for key, value in self._plan.config.items()
            if key not in journal.config or journal.config[key] != value
        }
        if changes:
            self._writer.config(self._plan.config)
        if changes and journal.config:
            metadata["config_changes"] = changes
            said = ", ".join(f"{key}: {change['before']!r} -> {change['now']!r}" for key, change in changes.items())
            say(f"The configuration differs from the earlier segments': {said}")
        self._writer.metadata(metadata)

    def _put_aside(self, put: Callable[[], Path]) -> Path | None:
        try:
            return put()
        except (OSError, UserError) as error:
            say(f"An artifact could not be put aside: {error}", error=True)
            return None

    def _announce(self, deadline: float) -> None:
        if self._child is None:
            return
        if self._plan.mode == "online":
            verdict = self._child.verdict(deadline)
            if verdict is None:
                say(f"W&B's server has not answered yet; training goes on. See {self._child.log}.")
                return
            self._offline = verdict.mode == "offline"
            if not self._offline:
                say(f"Online: run {self.identity.run_id} at {verdict.base_url}")
                return
            self._announce_offline(verdict.reason)
            return
        self._announce_offline(None)

    def _announce_offline(self, reason: str | None) -> None:
        if reason:
            say(f"{reason}.")
        say("Offline mode. Run 'wandb sync' to upload later.")
        self._print_command()

    def _report_end(self, code: int | None, status: SyncStatus | None, rows: int) -> None:
        assert self._child is not None
        if status is None or status.segment != self._writer.segment:
            status = SyncStatus(self._writer.segment, self._plan.mode, "failed")
        shown = f"{rows} rows" if status.rows >= rows else f"{status.rows} of {rows} rows"
        if status.state == "left":
            say(f"{rows} rows in {self.run_dir}: {status.error}.")
            return
        if code == 0 and status.mode == "online":
            say(f"{shown} at {status.url}")
            return
        if code == 0:
            if status.error and self._offline is False:
                say(f"The server did not take the run: {status.error}. An offline folder has all of it:")
                self._print_command()
            elif self._offline is None:
                self._announce_offline(status.error)
            say(f"{shown} in {status.folder}")
            return
        if code is None:
            say(f"W&B has {status.rows} of {rows} rows after {self._plan.finish_timeout:g} s.")
        else:
            say(f"W&B's folder was not written: {status.error or 'its process was killed'}. See {self._child.log}.")
        say(f"All {rows} rows are in {self.run_dir}. To push them from there:")
        print(f"  {push_command(self.run_dir)}", flush=True)

    def _print_command(self) -> None:
        # W&B's own sync is right for a folder that nobody has begun to push, which a first segment's is.
        is_first = self._writer.segment == 0 and not self.identity.adopted
        own = sync_command(self._plan.wandb_dir, self.identity.run_id)
        print(f"  {own if is_first else push_command(self.run_dir)}", flush=True)

    def _status(self) -> SyncStatus | None:
        status = read_status(self.run_dir)
        return status if status is not None and status.segment == self._writer.segment else None

    def _leave_out_known(self, known: KnownPairs, step: int, data: Mapping[str, Any]) -> Mapping[str, Any]:
        if step <= known.last_step:
            return known.fresh(step, data)
        _report_skipped(known)
        self._known = None
        return data


def say(text: str, *, error: bool = False) -> None:
    """Prints a line to the user, on stderr for what should not have happened."""
    print(f"[ExperimentTracker] {text}", file=sys.stderr if error else sys.stdout, flush=True)


def _report_skipped(known: KnownPairs) -> None:
    if known.skipped:
        skipped = f"{known.skipped} values up to step {known.last_step}"
        say(f"{skipped} were in the journal already and were not logged again.")
