"""Level 2: PyTorch's DistributedDataParallel on the GPUs of one node."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.checks import SECONDS, Look, check, complete
from gilbreth_phase0.smoke.collectives import check_all_reduce, check_ranks
from gilbreth_phase0.smoke.problem import SAMPLES, loss_on_all, not_fallen, regression, samples, untrained_loss

if TYPE_CHECKING:
    import torch

_TOLERANCE = 1e-4
_COMMUNICATION = "the ranks do not get each other's numbers: NCCL_DEBUG=INFO shows how they talk; try another node"


def run(arguments: Arguments, job: Job) -> tuple[str, ...]:
    """Runs the checks of DDP and returns the lines behind PASSED."""
    import torch
    from torch.nn.parallel import DistributedDataParallel

    check_ranks(job, 2)
    check_all_reduce(job)
    with check(job, "DDP takes the network", _COMMUNICATION):
        ids = [torch.cuda.current_device()] if job.device == "cuda" else None
        network = DistributedDataParallel(regression(arguments.seed).to(job.device), device_ids=ids)
    with check(job, "the gradient is the same on all ranks", _COMMUNICATION) as look:
        backward(network, arguments, job)
        compare_gradients(network, arguments, job, look)
    with check(
        job, "training keeps the weights the same on all ranks", _COMMUNICATION, SECONDS + arguments.steps
    ) as look:
        _train(network, arguments, job, look)
    complete(job, arguments.steps)
    return (f"{arguments.steps} steps of DDP on {job.ranks.world_size} ranks, gradients and weights equal",)


def backward(network: Any, arguments: Arguments, job: Job) -> None:
    """Leaves this rank's gradient of its own share of the samples in the network."""
    shared = SAMPLES - SAMPLES % job.ranks.world_size  # equal shares: else a mean of means is not the mean
    share = slice(job.ranks.rank, shared, job.ranks.world_size)
    network.zero_grad()
    loss, _ = network(samples(arguments.seed, job.device, share))
    loss.backward()


def compare_gradients(network: Any, arguments: Arguments, job: Job, look: Look) -> None:
    """Compares the gradients with each other's, and with what one process computes from all shares."""
    alone = regression(arguments.seed).to(job.device)
    shared = SAMPLES - SAMPLES % job.ranks.world_size
    loss, _ = alone(samples(arguments.seed, job.device, slice(shared)))
    loss.backward()
    ours = [value.grad for value in network.parameters()]
    error = max(
        float((mine - value.grad).abs().max() / value.grad.abs().max())
        for mine, value in zip(ours, alone.parameters(), strict=True)
        if mine is not None and value.grad is not None
    )
    different = len(set(job.gathered(digest([value for value in ours if value is not None]))))
    look.seen = f"off by {error:.1e} from one process's"
    if different > 1:
        look.fault = f"{different} different gradients on {job.ranks.world_size} ranks"
    elif not error < _TOLERANCE:
        look.fault = f"off by {error:.1e} from one process's"


def _train(network: Any, arguments: Arguments, job: Job, look: Look) -> None:
    import torch

    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(arguments.steps):
        backward(network, arguments, job)
        optimizer.step()
    before = untrained_loss(arguments.seed)
    after = loss_on_all(network.module, arguments.seed, job.device)
    different = len(set(job.gathered(digest(list(network.parameters())))))
    look.seen = f"{arguments.steps} steps, loss {before:.4f} -> {after:.4f}"
    look.fault = f"{different} different sets of weights" if different > 1 else not_fallen(before, after)


def digest(tensors: list[torch.Tensor]) -> str:
    """Tells whether tensors are equal, bit for bit."""
    whole = hashlib.sha256()
    for tensor in tensors:
        whole.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return whole.hexdigest()
