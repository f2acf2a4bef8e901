"""Corrects a policy that was never trained, below the folder that is given."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from gilbreth_phase0.collect import Arguments as Collect
from gilbreth_phase0.collect import main as collect
from gilbreth_phase0.datasets import open_metadata
from gilbreth_phase0.policies import make_config, make_policy
from gilbreth_phase0.train_dagger import DAggerTrainer

SMALL = {"dim_model": 32, "n_heads": 4, "dim_feedforward": 64, "n_encoder_layers": 1, "use_vae": False}


def main(place: Path, seed: int) -> None:
    """Collects, corrects, trains."""
    torch.manual_seed(seed)
    data = place / "data"
    collect(Collect(repo_id="lift", root=data, episodes=2))
    config = make_config("act", "cpu", chunk_size=10, n_action_steps=5, **SMALL)
    policy = make_policy(config, open_metadata(data / "lift", "lift"))
    trainer = DAggerTrainer(
        policy.model,
        policy.preprocessor,
        policy.postprocessor,
        num_human_interventions=2,
        intervention_frequency=0.2,
        run_dir=place / "run",
        rounds=1,
        root=data,
        training_steps=20,
        batch_size=16,
        num_workers=0,
        eval_freq=0,
        eval_episodes=2,
        rollout_workers=1,
        takeover_steps=60,
        device="cpu",
        use_wandb=False,
    )
    print(trainer.train("lift", num_episodes=4, max_steps_per_episode=80))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
