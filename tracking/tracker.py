"""The tracker that a training loop calls."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tracking import ranks
from tracking.errors import UserError
from tracking.folders import run_folder, wandb_folder
from tracking.gpu import get_all_gpu_stats
from tracking.journal.lines import State
from tracking.labels import Labels, check_tags, tag_texts
from tracking.media import as_media
from tracking.metrics import compute_grad_norm, get_amp_scale, get_learning_rate
from tracking.mode import decide_mode
from tracking.models import model_intent, model_name, uploads_wanted
from tracking.recording import Plan, Recording, say
from tracking.redact import redact
from tracking.throughput import Throughput
from tracking.values import flatten, plain, scalar
from tracking.yaml_form import read_form

_RESERVED = {"_step", "_timestamp", "_runtime", "_wandb"}


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
        group: str | None = None,
        job_type: str | None = None,
        notes: str | None = None,
        before_flush: Callable[[], None] | None = None,
        finish_timeout: float = 20.0,
        probe_timeout: float = 1.5,
        console: bool = True,
        wandb: bool = True,
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
            mode: `online`, `offline` or `disabled`; where it is None `WANDB_MODE` decides, else it is `online`. The
                server is asked once, for less than 3 s; where it does not answer, the segment is an offline one.
            entity: W&B user or team; `WANDB_ENTITY` where it is None.
            log_interval: `log_training_step` logs every so many steps.
            gpu_stats_interval: GPU statistics are logged every so many steps.
            enabled: False makes every call a no-op.
            run_dir: The run folder; `./runs/<name>` where it is None.
            resumed_step: The training step of the checkpoint that this segment continues from.
            group: W&B group.
            job_type: W&B job type.
            notes: W&B notes.
            before_flush: Called before each flush; what it raises reaches the caller of `flush`, and nothing is
                flushed.
            finish_timeout: Seconds that `finish` waits for the child at most.
            probe_timeout: Seconds that the server may take to answer at the beginning; more for a slow proxy. The
                constructor waits 1.5 s longer than that at most.
            console: Copy what the process prints into `RUN/output.log`, which W&B shows as the run's log.
            wandb: False keeps the run to its journal: nothing of it reaches W&B, and the sync daemon leaves it alone.

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
        self._wanted = decide_mode(mode)
        self._recording: Recording | None = None
        self._active = enabled and self._wanted != "disabled" and ranks.is_main_process()
        if not self._active:
            return
        self._log_interval = log_interval
        self._gpu_stats_interval = gpu_stats_interval
        self._throughput = Throughput(ranks.world_size())
        self._before_flush = before_flush
        self._warned: set[str] = set()
        self._upload_models = uploads_wanted()
        folder = run_folder(run_dir, resume_id, name, tags)
        self._tags = tags
        self._recording = Recording(
            Plan(
                run_dir=folder,
                wandb_dir=wandb_folder(folder, given=run_dir is not None),
                mode=self._wanted,
                run_id=resume_id,
                run_name=name or folder.name,
                project=project or os.environ.get("WANDB_PROJECT") or "vla-lego",
                entity=entity or os.environ.get("WANDB_ENTITY") or None,
                labels=Labels(tag_texts(tags), group, job_type, notes),
                config=redact(plain(config)) if config is not None else {},
                resumed_step=resumed_step,
                finish_timeout=finish_timeout,
                probe_timeout=probe_timeout,
                console=console,
                wandb=wandb,
            )
        )

    @classmethod
    def from_yaml(cls, source: Path | str | Mapping[str, Any], **arguments: Any) -> Self:
        """Makes a tracker from the settings of an RL configuration: `use_wandb` and `wandb` (`tracking.yaml_form`).

        Args:
            source: A YAML file, or a mapping of the same form.
            arguments: Further arguments of the constructor, such as `config` and `run_dir`; they win over the file.

        Raises:
            UserError: The settings are not of this form; an unknown key is answered with the nearest valid one.
        """
        return cls(**(read_form(source) | arguments))

    def log_metrics(self, metrics: Mapping[str, Any], step: int) -> None:
        """Logs a row now, whatever the interval.

        Args:
            metrics: Names (`namespace/name`) and values: numbers, bools, text, None, tensors or NumPy values of one
                element; images, videos, tables and histograms (`tracking.media`; an array of several elements is
                counted as a histogram). Nested mappings are flattened with `/`. What cannot be logged is left out with
                one warning.
            step: The training step.
        """
        if not self._active or self._recording is None:
            return
        step = int(step)
        self._recording.row(step, self._read(self._recording, flatten(metrics), step))

    def log_result(self, metrics: Mapping[str, Any], step: int) -> None:
        """Logs a row that belongs to a step which may be long past; what the run has logged for it is left out.

        May be called by another thread than the one that trains: the journal is read for it.

        Args:
            metrics: As in `log_metrics`.
            step: The training step that it is of.
        """
        if not self._active or self._recording is None:
            return
        step = int(step)
        self._recording.late_row(step, self._read(self._recording, flatten(metrics), step))

    def take_inbox(self) -> int:
        """Logs what others put into `RUN/inbox` (`tracking.inbox`), each result at its step.

        Returns:
            How many results that were.
        """
        return self._recording.take_inbox() if self._active and self._recording is not None else 0

    def log_training_step(
        self,
        loss: Any,
        step: int,
        batch_size: int,
        optimizer: Any = None,
        model: Any = None,
        *,
        scaler: Any = None,
        **components: Any,
    ) -> None:
        """Counts a training step, and logs it when `step` is a multiple of `log_interval`.

        A step that is not logged reads nothing from a device. GPU statistics come with every multiple of
        `gpu_stats_interval`.

        Args:
            loss: The loss: a number or a tensor of one element.
            step: The training step.
            batch_size: The samples of this rank in this step; throughput counts all ranks.
            optimizer: Where the learning rate is read.
            model: Where the gradient norm is read: a DeepSpeed engine, or a module whose gradients still stand.
            scaler: Where the loss scale is read: a `GradScaler`; a DeepSpeed engine given as `model` needs none.
            components: Further losses by name: `ar=` is logged as `loss/ar`.
        """
        if not self._active:
            return
        self._throughput.count(batch_size)
        log_step = step % self._log_interval == 0
        gpu_step = step % self._gpu_stats_interval == 0
        if not (log_step or gpu_step):
            return
        metrics: dict[str, Any] = {}
        if log_step:
            measured = {
                "train/lr": get_learning_rate(optimizer),
                "train/grad_norm": compute_grad_norm(model) if model is not None else None,
                "train/amp_scale": get_amp_scale(scaler if scaler is not None else model),
            }
            metrics = {"loss/total": loss} | {f"loss/{name}": value for name, value in components.items()}
            metrics |= {name: value for name, value in measured.items() if value is not None}
            metrics |= self._throughput.rates()
        self.log_metrics(metrics | get_all_gpu_stats() if gpu_step else metrics, step)

    def log_config(self, config: Any) -> None:
        """Records a configuration, merged over what the run has, and puts it aside as a YAML artifact of type `config`.

        Args:
            config: As in the constructor.
        """
        if self._active and self._recording is not None:
            self._recording.config(redact(plain(config)))

    def log_checkpoint(self, path: Path | str, aliases: Sequence[str] | str | None = (), force: bool = False) -> None:
        """Has a model uploaded as an artifact of type `model`, where that is wanted.

        It is `{model}-{dataset}` by its tags. Without `WANDB_LOG_MODEL=1` and `force` nothing happens but one line a
        run. The files stay where they are and must not be written again until they are uploaded: the child does that
        while the run is online, else whoever pushes the run later.

        Args:
            path: A `.pt` or safetensors file, a policy bundle, another folder, or a DeepSpeed checkpoint (the folder of
                a tag, or the one with the tags and `latest`), of which the consolidated fp32 weights are uploaded.
            aliases: Names of this version beside `latest`; `step-N` and `stepN` are added where the path's name tells
                the step.
            force: Upload whatever `WANDB_LOG_MODEL` says.

        Raises:
            UserError: It is to be uploaded, and the path is missing, empty, only a part of a checkpoint, not whole, or
                leads out of itself or in a circle by a link, or an alias is not valid.
        """
        if not self._active or self._recording is None:
            return
        if not (force or self._upload_models):
            if "log_model" not in self._warned:
                self._warned.add("log_model")
                say("Checkpoints are not uploaded. To upload them: WANDB_LOG_MODEL=1, or force=True.")
            return
        identity, run_dir = self._recording.identity, self._recording.run_dir
        name = model_name(self._tags, identity.run_name)
        self._recording.model(model_intent(name, Path(path), aliases or (), run_dir, identity.run_id))

    def get_run_id(self) -> str | None:
        """The id that all segments of the run share; None where nothing is tracked."""
        return self._recording.identity.run_id if self._recording is not None else None

    def get_run_url(self) -> str | None:
        """The run's page; None offline, and until the server has named it."""
        return self._recording.url() if self._recording is not None else None

    def get_run_dir(self) -> Path | None:
        """The run folder; None where nothing is tracked."""
        return self._recording.run_dir if self._recording is not None else None

    def is_active(self) -> bool:
        """True where calls are recorded: on rank 0, enabled, not finished."""
        return self._active

    def is_offline(self) -> bool:
        """True when W&B gets this segment later, from its offline folder."""
        return self._recording.is_offline() if self._recording is not None else self._wanted == "offline"

    def flush(self) -> None:
        """Makes every row so far durable; to be called when a checkpoint is.

        Raises:
            Exception: Whatever `before_flush` raises.
        """
        if not self._active or self._recording is None:
            return
        if self._before_flush is not None:
            self._before_flush()
        self._active = self._recording.flush()

    def finish(self, exit_code: int = 0, state: State | None = None) -> None:
        """Ends the segment and waits, at most `finish_timeout` seconds, until W&B has it.

        Args:
            exit_code: What the process will end with.
            state: `finished`, `crashed` or `preempted`; by the exit code where it is None.
        """
        if not self._active or self._recording is None:
            return
        self._active = False
        self._recording.finish(state or ("crashed" if exit_code else "finished"), exit_code)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        code = error.code if isinstance(error, SystemExit) else int(error is not None)
        self.finish(exit_code=code if isinstance(code, int) else int(code is not None))

    def _read(self, recording: Recording, metrics: Mapping[str, Any], step: int) -> dict[str, Any]:
        data: dict[str, Any] = {}
        for name, value in metrics.items():
            if name in _RESERVED:
                self._warn_once(name, f"{name} is left out: the name is W&B's own")
                continue
            try:
                data[name] = read = scalar(value)
            except TypeError as error:
                if (media := as_media(value)) is None:
                    self._warn_once(name, f"{name} is left out: {error}")
                    continue
                try:
                    data[name] = media.store(recording.run_dir, name, step)
                except (OSError, TypeError, ValueError) as fault:
                    self._warn_once(name, f"{name} is left out: {fault}")
                continue
            if isinstance(read, float) and not math.isfinite(read):
                self._warn_once(f"{name} not finite", f"{name} is {read} at step {step}")
        return data

    def _warn_once(self, key: str, text: str) -> None:
        if key not in self._warned:
            self._warned.add(key)
            say(text, error=True)
