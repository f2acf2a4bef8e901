"""Saves a small policy that has learnt nothing: `fresh_policy.py DATASET BUNDLE`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from gilbreth_phase0.datasets import open_metadata, read_environment
from gilbreth_phase0.policies import make_config, make_policy, save_bundle

from tiny_dataset import SMALL

dataset, bundle = map(Path, sys.argv[1:])
torch.manual_seed(0)
config = make_config("act", "cpu", chunk_size=10, n_action_steps=5, **SMALL)
policy = make_policy(config, open_metadata(dataset, dataset.name))
save_bundle(policy, policy.model.state_dict(), read_environment(dataset), bundle)
