"""Two ranks for which checks of the smoke tests do not hold. After each, a line says how it ended on this rank."""

from __future__ import annotations

import dataclasses
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from torch.nn.parallel import DistributedDataParallel

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke import ddp, nodes
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.checks import Look, SmokeError, check
from gilbreth_phase0.smoke.problem import regression
from tracking.ownership import OwnershipLostError

folder = Path(sys.argv[1])
job = Job.start(folder)
rank = job.ranks.rank


def ends(name: str, see: Callable[[Look], None], seconds: float = 60.0) -> None:
    try:
        with check(job, name, f"the fix of {name}", seconds) as look:
            see(look)
    except SystemExit as end:
        print(f"== {name}: exit {end.code}", flush=True)
    except (SmokeError, OwnershipLostError) as error:
        print(f"== {name}: {error}", flush=True)
    else:
        print(f"== {name}: passed", flush=True)


def one_rank(look: Look) -> None:
    look.fault = "a fault" if rank == 1 else ""


def an_error(look: Look) -> None:
    raise OSError(f"no disk\nfor {rank}")


def a_successor(look: Look) -> None:
    raise OwnershipLostError("a later attempt has the run")


def a_disk_of_each(look: Look) -> None:
    own = folder / str(rank)
    own.mkdir()
    nodes.look_at_disk(dataclasses.replace(job, run_dir=own), look, 0.5)


def gradients(look: Look, synchronised: bool) -> None:
    arguments = Arguments(run_dir=folder)
    network = DistributedDataParallel(regression(0))
    if synchronised:
        ddp.backward(network, arguments, job)
    else:
        with network.no_sync():
            ddp.backward(network, arguments, job)
    ddp.compare_gradients(network, arguments, job, look)


def hang(look: Look) -> None:
    if rank == 1:
        threading.Event().wait()


ends("one rank", one_rank)
ends("an error", an_error)
ends("a successor", a_successor)
ends("one disk", lambda look: nodes.look_at_disk(job, look, 10))
ends("two disks", a_disk_of_each)
ends("one node", lambda look: nodes.look_at_nodes(job, look))
ends("same settings", lambda look: nodes.look_at_settings(job, {"NCCL_DEBUG": "INFO", "HOME": str(rank)}, look))
ends("other settings", lambda look: nodes.look_at_settings(job, {"NCCL_IB_DISABLE": str(rank)}, look))
ends("no interface", lambda look: nodes.look_at_settings(job, {"NCCL_SOCKET_IFNAME": "ibp161s0"}, look))
ends("gradients", lambda look: gradients(look, True))
ends("other gradients", lambda look: gradients(look, False))
ends("hang", hang, seconds=1.5)
