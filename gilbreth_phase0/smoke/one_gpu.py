"""Level 1: one GPU computes, holds what it is given, trains, and what it has learnt can be saved."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from gilbreth_phase0.job import Job
from gilbreth_phase0.smoke.arguments import Arguments
from gilbreth_phase0.smoke.checks import SECONDS, Look, check, complete
from gilbreth_phase0.smoke.problem import loss_on_all, not_fallen, regression, samples, untrained_loss
from tracking.words import size

if TYPE_CHECKING:
    import torch

# Greatest error of a product of matrices, as a share of its greatest entry.
_PRECISION = {"float32": 1e-3, "bfloat16": 3e-2}  # with room for TF32, whose mantissa has ten bits
_MULTIPLICATIONS = 10
_CHUNK_BYTES = 64 * 2**20
_BROKEN_GPU = "requeue on another node (sbatch --exclude=NODE) and report this one; nvidia-smi -q shows its errors"


def run(arguments: Arguments, job: Job) -> tuple[str, ...]:
    """Runs the checks of one GPU and returns the lines behind PASSED."""
    with check(job, "a product of matrices is right", _BROKEN_GPU) as look:
        _multiply(job, look)
    fix = "another process holds it: nvidia-smi; ask for a GPU of your own with --gpus-per-node"
    with check(job, "the memory keeps what is written", fix) as look:
        _fill_memory(job, look)
    with check(job, "forward and backward steps train", _BROKEN_GPU, SECONDS + arguments.steps) as look:
        network = _train(arguments, job, look)
    fix = f"is the disk full, or the quota used up? df -h {arguments.run_dir}"
    with check(job, "saved weights come back", fix) as look:
        _save_and_load(arguments, job, network, look)
    complete(job, arguments.steps)
    return (f"{arguments.steps} steps on one {'GPU' if job.device == 'cuda' else 'CPU'}, saved and loaded",)


def _multiply(job: Job, look: Look) -> None:
    import torch

    edge = 2048 if job.device == "cuda" else 256
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(edge, edge, generator=generator) for _ in range(2))
    expected = left.double() @ right.double()
    found = []
    for dtype in (torch.float32, torch.bfloat16):
        name = str(dtype).removeprefix("torch.")
        ours = [matrix.to(job.device, dtype) for matrix in (left, right)]
        product = ours[0] @ ours[1]
        start = _now(job)
        for _ in range(_MULTIPLICATIONS):
            torch.mm(*ours, out=product)
        rate = _MULTIPLICATIONS * 2 * edge**3 / (_now(job) - start)
        error = float((product.cpu().double() - expected).abs().max() / expected.abs().max())
        found.append(f"{name} off by {error:.1e}, {rate / 1e12:.2g} TFLOP/s")
        if not error < _PRECISION[name]:
            look.fault = f"{edge} x {edge} {name} is off by {error:.1e}, at most {_PRECISION[name]:.0e} is right"
    look.seen = f"{edge} x {edge}, " + ", ".join(found)


def _now(job: Job) -> float:
    """The time when the GPU has done all that it was told."""
    import torch

    if job.device == "cuda":
        torch.cuda.synchronize()
    return time.monotonic()


def _fill_memory(job: Job, look: Look) -> None:
    """Writes most of a GPU's memory, a little of a CPU's, and reads it back."""
    import torch

    wanted = 4 * _CHUNK_BYTES
    if job.device == "cuda":
        free, total = torch.cuda.mem_get_info()
        look.seen = f"{size(free)} of {size(total)} free, "
        if free < total / 2:
            look.fault = f"only {size(free)} of {size(total)} is free"
            return
        wanted = int(0.8 * free)
    chunks = [
        torch.full((_CHUNK_BYTES,), number % 251, dtype=torch.uint8, device=job.device)
        for number in range(wanted // _CHUNK_BYTES)
    ]
    wrong = [n for n, chunk in enumerate(chunks) if not int(chunk.min()) == int(chunk.max()) == n % 251]
    look.seen += f"{size(len(chunks) * _CHUNK_BYTES)} written and read"
    if wrong:
        look.fault = f"{len(wrong)} of {len(chunks)} blocks of {size(_CHUNK_BYTES)} have changed"
    del chunks
    if job.device == "cuda":
        torch.cuda.empty_cache()


def _train(arguments: Arguments, job: Job, look: Look) -> torch.nn.Module:
    import torch

    network = regression(arguments.seed).to(job.device)
    batch = samples(arguments.seed, job.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2)
    for _ in range(arguments.steps):
        loss, _ = network(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before, after = untrained_loss(arguments.seed), loss_on_all(network, arguments.seed, job.device)
    look.seen = f"{arguments.steps} steps, loss {before:.4f} -> {after:.4f}"
    look.fault = not_fallen(before, after)
    return network


def _save_and_load(arguments: Arguments, job: Job, network: torch.nn.Module, look: Look) -> None:
    from safetensors.torch import load_file, save_file

    path = arguments.run_dir / f"model-{job.ranks.rank}.safetensors"
    saved = {name: value.cpu() for name, value in network.state_dict().items()}
    save_file(saved, path)
    loaded = load_file(path, device=job.device)
    other = [name for name, value in saved.items() if not value.equal(loaded[name].cpu())]
    if other:
        look.fault = f"{', '.join(other)} differ in {path}"
