"""One rank of a job: who it is, what it may write, and how it agrees with the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gilbreth_phase0.ranks import Ranks, choose_device, initialise
from gilbreth_phase0.run_folder import make_run_folder
from gilbreth_phase0.stop import StopProtocol
from tracking.ownership import Owner

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")


@dataclass(frozen=True)
class Job:
    """What every part of a job on several ranks needs.

    Attributes:
        run_dir: The run folder.
        ranks: This process among the others.
        device: `cpu` or `cuda`.
        control: Gloo group for decisions between ranks, None for a single rank.
        stop: The stop protocol, with its handlers in place.
        owner: This attempt's hold on the run; None on all ranks but 0.
    """

    run_dir: Path
    ranks: Ranks
    device: str
    control: ProcessGroup | None
    stop: StopProtocol
    owner: Owner | None

    @classmethod
    def start(cls, run_dir: Path, device: str = "auto") -> Job:
        """Brings the ranks together and takes the run.

        Args:
            run_dir: Made where it is missing.
            device: `auto`, `cpu` or `cuda`.

        Raises:
            UserError: The run folder cannot be written, or the device is not there.
        """
        ranks = Ranks.from_environment()
        stop = StopProtocol(ranks.rank)
        stop.install()
        device = choose_device(device)
        make_run_folder(run_dir)
        owner = Owner.claim(run_dir) if ranks.is_main else None
        initialise(ranks, device)
        stop.connect(_gloo_group(ranks))
        return cls(run_dir, ranks, device, _gloo_group(ranks), stop, owner)

    def say(self, line: str) -> None:
        """Prints a line, once for all ranks."""
        if self.ranks.is_main:
            print(line, flush=True)

    def check_ownership(self) -> None:
        """Makes sure that this attempt may still write; only rank 0 holds the run, the others pass.

        Raises:
            OwnershipLostError: A later attempt has claimed the run.
        """
        if self.owner is not None:
            self.owner.check()

    def agreed(self, value: Any) -> Any:
        """Returns rank 0's value on every rank; every rank must call it."""
        if self.control is None:
            return value
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, group=self.control)
        return values[0]

    def on_main(self, action: Callable[[], Value]) -> Value:
        """Does something on rank 0 alone and returns its value on every rank; every rank must call it.

        Raises:
            Exception: What rank 0 raised, on every rank: the others would wait for it in their next collective call.
        """
        value: Any = None
        fault: Exception | None = None
        if self.ranks.is_main:
            try:
                value = action()
            except Exception as error:  # noqa: BLE001 - raised again below
                fault = error
        value, fault = self.agreed((value, fault))
        if fault is not None:
            raise fault
        return value  # type: ignore[no-any-return]

    def gathered_from_all(self, action: Callable[[], Value]) -> list[Value]:
        """Does something on every rank and returns every rank's value; every rank must call it.

        Raises:
            Exception: What the first of the ranks that failed raised; a rank that failed itself raises its own.
        """
        value: Any = None
        fault: Exception | None = None
        try:
            value = action()
        except Exception as error:  # noqa: BLE001 - raised again below
            fault = error
        outcomes = self.gathered((value, fault))
        for rank, (_, raised) in enumerate(outcomes):
            if raised is not None:
                raised.add_note(f"raised by rank {rank}")
                raise fault or raised
        return [value for value, _ in outcomes]

    def close(self) -> None:
        """Leaves the other ranks; every rank must call it, and nothing collective may follow.

        What torch.distributed still has under way when Python ends aborts the process, and hides its exit code. That
        may also be a thread of a group that only lets go of the last call's tensors: it ends with the group, and the
        group with the last reference to it.
        """
        import torch.distributed as dist

        self.stop.disconnect()
        object.__setattr__(self, "control", None)
        dist.destroy_process_group()

    def gathered(self, value: Any) -> list[Any]:
        """Returns every rank's value, in the order of the ranks; every rank must call it."""
        if self.control is None:
            return [value]
        import torch.distributed as dist

        values: list[Any] = [None] * self.ranks.world_size
        dist.all_gather_object(values, value, group=self.control)
        return values


def _gloo_group(ranks: Ranks) -> ProcessGroup | None:
    if ranks.world_size == 1:
        return None
    import torch.distributed as dist

    group: ProcessGroup = dist.new_group(backend="gloo")
    return group
