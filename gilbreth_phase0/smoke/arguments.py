"""Arguments of `python -m gilbreth_phase0.smoke`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from gilbreth_phase0.arguments import StageArguments


class Arguments(StageArguments):
    """What a smoke test is given."""

    run_dir: Path = Field(description="run folder")
    level: int = Field(
        5, ge=1, le=5, description="1 one GPU, 2 DDP, 3 DeepSpeed, 4 DeepSpeed over several nodes, 5 with tracking"
    )
    steps: int = Field(40, ge=4, description="optimizer steps; DeepSpeed's are resumed in the middle")
    zero_stage: int = Field(1, ge=0, le=3, description="DeepSpeed ZeRO stage of levels 3 to 5")
    seed: int = Field(0, ge=0, description="of the weights and the data")
