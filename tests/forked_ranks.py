"""The ranks of one job, forked from a process that has imported DeepSpeed: that takes longer than most that they do."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable

from support import free_port


def run_ranks(world_size: int, rank_of: Callable[[int], None]) -> None:
    """Forks the ranks, with torchrun's variables, and waits for their ends.

    Args:
        world_size: How many.
        rank_of: What each does, by its rank.

    Raises:
        ChildProcessError: A rank failed; the others, which would wait for it, have been killed.
    """
    port = free_port()
    ranks = {_forked(rank, world_size, port, rank_of) for rank in range(world_size)}
    while ranks:
        ended, status = os.wait()
        ranks.discard(ended)
        if status:
            for rank in ranks:
                os.kill(rank, signal.SIGKILL)
            for rank in ranks:
                os.waitpid(rank, 0)
            raise ChildProcessError(f"a rank of {world_size} failed: {os.waitstatus_to_exitcode(status)}")


def _forked(rank: int, world_size: int, port: int, rank_of: Callable[[int], None]) -> int:
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        values = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in values.items()}
        rank_of(rank)
        code = 0
    finally:
        if code:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
