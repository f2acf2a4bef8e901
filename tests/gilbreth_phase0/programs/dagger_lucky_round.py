"""Goes on with a run of DAgger whose first round had nothing to correct: `dagger_lucky_round.py DATA POLICY RUN`."""

from __future__ import annotations

import sys
from pathlib import Path

from gilbreth_phase0.dagger import beginning
from gilbreth_phase0.dagger.rounds import Ledger, Round
from gilbreth_phase0.train_dagger import Arguments, train

LUCKY = Round(
    number=1,
    roll_outs=2,
    discarded=0,
    takeovers=0,
    expert_frames=0,
    policy_frames=60,
    expert_executed=0,
    solved=2,
    solved_alone=2,
)


def main(data: Path, policy: Path, run: Path) -> None:
    """Leaves the folder as an attempt would that was killed behind the first round, and goes on."""
    arguments = Arguments(
        run_dir=run,
        root=data,
        repo_ids="lift",
        from_checkpoint=policy,
        rounds=2,
        episodes=2,
        max_steps=60,
        near_timeout=40,
        training_steps=20,
        batch_size=16,
        num_workers=0,
        eval_freq=0,
        eval_episodes=0,
        rollout_workers=1,
        device="cpu",
        use_wandb=False,
    )
    ledger = Ledger(run)
    beginning.begin(arguments, ledger)
    ledger.write(LUCKY)
    train(arguments)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
