"""What the smoke tests train: a small regression, the same one for each seed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from torch.utils.data import TensorDataset

SAMPLES = 512
_FEATURES = 16
_HIDDEN = 64


def regression(seed: int) -> torch.nn.Module:
    """A small network that returns its loss, as LeRobot's policies do; the same one for each seed."""
    import torch

    class Regression(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = torch.nn.Sequential(
                torch.nn.Linear(_FEATURES, _HIDDEN), torch.nn.Tanh(), torch.nn.Linear(_HIDDEN, 1)
            )

        def forward(self, batch: list[torch.Tensor]) -> tuple[torch.Tensor, dict[str, float]]:
            inputs, targets = batch
            return torch.nn.functional.mse_loss(self.layers(inputs), targets), {}

    torch.manual_seed(seed)
    return Regression()


def synthetic(seed: int) -> TensorDataset:
    """Inputs (512, 16) and the sine of their sum (512, 1)."""
    import torch
    from torch.utils.data import TensorDataset

    inputs = torch.randn(SAMPLES, _FEATURES, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(inputs, inputs.sum(1, keepdim=True).sin())


def samples(seed: int, device: Any, index: Any = slice(None)) -> list[torch.Tensor]:
    """Inputs and targets of some samples on a device; of all where no index is given."""
    return [value.to(device) for value in synthetic(seed)[index]]


def loss_on_all(network: Any, seed: int, device: Any) -> float:
    """The loss on all samples: of a network, or of an engine around one."""
    import torch

    with torch.no_grad():
        loss, _ = network(samples(seed, device))
    return float(loss)


def untrained_loss(seed: int) -> float:
    """The loss on all samples before the first step; a job that was requeued has no engine in that state."""
    return loss_on_all(regression(seed), seed, "cpu")


def not_fallen(before: float, after: float) -> str:
    """Says that a loss has not fallen; empty where it has."""
    return "" if after < before else f"{before:.4f} before, {after:.4f} after"
