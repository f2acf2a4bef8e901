"""Smoke tests of a cluster, in five levels: one GPU, two, DeepSpeed, several nodes, and the whole way with tracking."""

from gilbreth_phase0.smoke.arguments import Arguments

__all__ = ["Arguments"]
