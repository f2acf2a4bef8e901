"""The tracker that a training loop calls."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracking import ranks
from tracking.errors import UserError
from tracking.folders import run_folder, wandb_folder
from tracking.identity import Identity, claim_identity
from tracking.journal import JournalWriter, read_journal
from tracking.journal.known import KnownPairs
from tracking.journal.lines import State
from tracking.labels import Labels, check_tags, tag_texts
from tracking.metadata import get_metadata
from tracking.mode import decide_mode
from tracking.redact import redact
from tracking.sync.engine import SyncMode
from tracking.sync.offline import sync_command
from tracking.sync.process import SyncProcess
from tracking.sync.status import read_status
from tracking.throughput import Throughput
from tracking.values import Scalar, flatten, plain, scalar


class ExperimentTracker:
    """Records a training run: rank 0 writes the journal in the run folder, and a child process shows it to W&B.

    No call here talks to W&B, so that nothing that W&B does can hold or end the training. On other ranks, with
    `enabled=False` and in mode `disabled` every call returns at once and nothing is created.

    ```python
    tracker = ExperimentTracker(project="vla-lego", config=config, tags={"model": "act", ...})
    for step, batch in enumerate(loader, start=1):
        loss = ...
        tracker.log_training_step(loss, step, batch_size, optimizer, engine)
    tracker.finish()
    ```
    """

    def __init__(  # noqa: PLR0917 - the order that users have written down
        self,
        project: str | None = None,
        config: Any = None,
        tags: Mapping[str, str] | list[str] | None = None,
        name: str | None = None,
        resume_id: str | None = None,
        mode: str | None = None,
        entity: str | None = None,
        log_interval: int = 10,
        gpu_stats_interval: int = 50,
        enabled: bool = True,
        *,
        run_dir: Path | str | None = None,
        resumed_step: int | None = None,
        before_flush: Callable[[], None] | None = None,
        finish_timeout: float = 20.0,
    ) -> None:
        """Begins a segment of a run, or continues the run that the folder holds.

        Args:
            project: W&B project; `WANDB_PROJECT` and then `vla-lego` where it is None.
            config: The configuration: a mapping, dataclass, pydantic model or `argparse.Namespace`. Secrets in it are
                replaced before it is written anywhere.
            tags: A mapping with at least `model`, `dataset`, `objective` and `experiment_group`, kept as `key:value`;
                or a plain list.
            name: Display name; made of the tags, the time and the commit where it is None.
            resume_id: The id of the run to continue, as a checkpoint holds it. Without `run_dir` the run is looked for
                in `./runs`.
            mode: `online`, `offline` or `disabled`; `WANDB_MODE` decides where it is None.
            entity: W&B user or team; `WANDB_ENTITY` where it is None.
            log_interval: `log_training_step` logs every so many steps.
            gpu_stats_interval: GPU statistics are logged every so many steps.
            enabled: False makes every call a no-op.
            run_dir: The run folder; `./runs/<name>` where it is None.
            resumed_step: The training step of the checkpoint that this segment continues from.
            before_flush: Called before each flush; what it raises reaches the caller of `flush`, and nothing is
                flushed.
            finish_timeout: Seconds that `finish` waits for the child at most.

        Raises:
            UserError: A tag is missing, a name or mode is not valid, `resume_id` is not the folder's run, or the
                folder cannot be written.
        """
        if log_interval < 1 or gpu_stats_interval < 1:
            raise UserError(
                f"log_interval and gpu_stats_interval count steps and must be at least 1, not {log_interval} and "
                f"{gpu_stats_interval}"
            )
        check_tags(tags)
        self._mode = decide_mode(mode)
        self._active = enabled and self._mode != "disabled" and ranks.is_main_process()
        self._log_interval = log_interval
        self._throughput = Throughput(ranks.world_size())
        self._identity: Identity | None = None
        if not self._active:
            return
        self._before_flush = before_flush
        self._finish_timeout = finish_timeout
        self._warned: set[str] = set()
        self._run_dir = run_folder(run_dir, resume_id, name, tags)
        self._wandb_dir = wandb_folder(self._run_dir, given=run_dir is not None)
        try:
            self._run_dir.mkdir(parents=True, exist_ok=True)
            self._identity = claim_identity(
                self._run_dir,
                resume_id,
                name or self._run_dir.name,
                project or os.environ.get("WANDB_PROJECT") or "vla-lego",
                entity or os.environ.get("WANDB_ENTITY") or None,
            )
            self._begin(
                self._identity, redact(plain(config)) if config is not None else {}, tag_texts(tags), resumed_step
            )
        except OSError as error:
            raise UserError(
                f"the run folder {self._run_dir} cannot be written: {error.strerror}\n"
                "  next: give a folder of yours as run_dir, or free space there"
            ) from error

    def _begin(
        self, identity: Identity, config: dict[str, Any], tags: tuple[str, ...], resumed_step: int | None
    ) -> None:
        journal = read_journal(self._run_dir)
        for problem in journal.problems:
            _say(f"journal: {problem}")
        metadata = get_metadata()
        self._writer = JournalWriter.begin(
            self._run_dir,
            identity.run_id,
            journal,
            job=metadata["slurm"],
            resumed_step=resumed_step,
            labels=Labels(tags),
        )
        self._known: KnownPairs | None = KnownPairs(journal.rows) if journal.rows else None
        if config and config != journal.config:
            self._writer.config(config)
        self._writer.metadata(metadata)
        if journal.segments:
            _say(f"Run {identity.run_id} continues: segment {self._writer.segment}, {journal.next_row} rows.")
        self._child = self._start_child()
        if self._mode == "offline":
            _say("Offline mode. Run 'wandb sync' to upload later.")
            print(f"  {sync_command(self._wandb_dir, identity.run_id)}", flush=True)

    def _start_child(self) -> SyncProcess | None:
        mode: SyncMode = "online" if self._mode == "online" else "offline"
        try:
            return SyncProcess(self._run_dir, self._wandb_dir, mode, self._writer.segment)
        except OSError as error:
            _say(f"W&B's process cannot be started ({error.strerror}). Training goes on; the journal holds all rows.")
            return None

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Logs a row now, whatever the interval.

        Args:
            metrics: Names (`namespace/name`) and values: numbers, bools, text, None, tensors or NumPy values of one
                element; nested mappings are flattened with `/`. What cannot be logged is left out with one warning.
            step: The training step.
        """
        if not self._active:
            return
        step = int(step)
        data: Mapping[str, Scalar] = self._read(flatten(metrics), step)
        if self._known is not None:
            data = self._leave_out_known(step, data)
        if data:
            self._writer.row(step, data)

    def log_training_step(
        self,
        loss: Any,
        step: int,
        batch_size: int,
        optimizer: Any = None,
        model: Any = None,
        **components: Any,
    ) -> None:
        """Counts a training step, and logs it when `step` is a multiple of `log_interval`.

        A step that is not logged reads nothing from a device.

        Args:
            loss: The loss: a number or a tensor of one element.
            step: The training step.
            batch_size: The samples of this rank in this step; throughput counts all ranks.
            optimizer: Where the learning rate is read.
            model: Where the gradient norm is read, when it is a DeepSpeed engine.
            components: Further losses by name: `ar=` is logged as `loss/ar`.
        """
        if not self._active:
            return
        self._throughput.count(batch_size)
        if step % self._log_interval:
            return
        metrics: dict[str, Any] = {"loss/total": loss}
        metrics |= {f"loss/{name}": value for name, value in components.items()}
        if optimizer is not None:
            metrics["train/lr"] = optimizer.param_groups[0]["lr"]
        norm = model.get_global_grad_norm() if hasattr(model, "get_global_grad_norm") else None
        if norm is not None:
            metrics["train/grad_norm"] = norm
        self.log_metrics(metrics | self._throughput.rates(), step)

    def log_config(self, config: Any) -> None:
        """Records a configuration, merged over what the run has.

        Args:
            config: As in the constructor.
        """
        if self._active:
            self._writer.config(redact(plain(config)))

    def get_run_id(self) -> str | None:
        """The id that all segments of the run share; None where nothing is tracked."""
        return self._identity.run_id if self._identity is not None else None

    def get_run_url(self) -> str | None:
        """Where the run is to be seen; None offline."""
        return None

    def get_run_dir(self) -> Path | None:
        """The run folder; None where nothing is tracked."""
        return self._run_dir if self._identity is not None else None

    def is_active(self) -> bool:
        """True where calls are recorded: on rank 0, enabled, not finished."""
        return self._active

    def is_offline(self) -> bool:
        """True when W&B gets the run later, from its offline folder."""
        return self._mode == "offline"

    def flush(self) -> None:
        """Makes every row so far durable; to be called when a checkpoint is.

        Raises:
            Exception: Whatever `before_flush` raises.
        """
        if not self._active:
            return
        if self._before_flush is not None:
            self._before_flush()
        if (successor := self._writer.replaced_by()) is not None:
            _say(f"Another process continues this run ({successor.name}): this one stops recording.")
            self._active = False
            self._writer.close()
            return
        self._writer.flush()

    def finish(self, exit_code: int = 0, state: State | None = None) -> None:
        """Ends the segment and waits, at most `finish_timeout` seconds, until W&B has it.

        Args:
            exit_code: What the process will end with.
            state: `finished`, `crashed` or `preempted`; by the exit code where it is None.
        """
        if not self._active:
            return
        self._active = False
        if self._known is not None:
            self._report_skipped(self._known)
        self._writer.end(state or ("crashed" if exit_code else "finished"), exit_code)
        self._writer.close()
        self._wait_for_child()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = error.code if isinstance(error, SystemExit) else int(error is not None)
        self.finish(exit_code=code if isinstance(code, int) else int(code is not None))

    def _wait_for_child(self) -> None:
        if self._child is None:
            return
        began = time.monotonic()
        code = self._child.wait(self._finish_timeout)
        status = read_status(self._run_dir)
        rows = self._writer.next_row
        if code == 0 and status is not None and status.state == "done":
            _say(f"{rows} rows in {self._run_dir}; W&B's folder: {status.folder}")
        elif code is None:
            left = rows - (status.rows if status is not None else 0)
            waited = time.monotonic() - began
            _say(
                f"W&B's folder is not written after {waited:.0f} s ({left} of {rows} rows left); see {self._child.log}"
            )
        else:
            _say(f"W&B's folder was not written; see {self._child.log}. All {rows} rows are in {self._run_dir}.")

    def _read(self, metrics: Mapping[str, Any], step: int) -> dict[str, Scalar]:
        data: dict[str, Scalar] = {}
        for name, value in metrics.items():
            try:
                data[name] = read = scalar(value)
            except TypeError as error:
                self._warn_once(name, f"{name} is left out: {error}")
                continue
            if isinstance(read, float) and not math.isfinite(read):
                self._warn_once(f"{name} not finite", f"{name} is {read} at step {step}")
        return data

    def _leave_out_known(self, step: int, data: Mapping[str, Scalar]) -> Mapping[str, Scalar]:
        known = self._known
        if known is None or step <= known.last_step:
            return known.fresh(step, data) if known is not None else data
        self._report_skipped(known)
        self._known = None
        return data

    def _report_skipped(self, known: KnownPairs) -> None:
        if known.skipped:
            _say(
                f"{known.skipped} values up to step {known.last_step} were in the journal already and were not logged "
                "again."
            )

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            _say(text, file=sys.stderr)


def _say(text: str, file: Any = None) -> None:
    print(f"[ExperimentTracker] {text}", file=file, flush=True)
