"""Scripts with one fault each, beside the same script without it."""

from __future__ import annotations

HEAD = "#!/bin/bash\n#SBATCH --time=1:00:00\n"
TWO_NODES = HEAD + "#SBATCH --nodes=2\n#SBATCH --ntasks-per-node=1\n"
KILL = "srun --kill-on-bad-exit=1"

CASES: dict[str, tuple[str, str]] = {
    "time-missing": ("#!/bin/bash\nhostname\n", HEAD + "hostname\n"),
    "not-a-script": ("#SBATCH --time=1:00\nhostname\n", "#!/bin/sh\n#SBATCH --time=1:00\nhostname\n"),
    "directive-late": (HEAD + "cd x\n#SBATCH --mem=4G\n", HEAD + "# a comment\n\n#SBATCH --mem=4G\ncd x\n"),
    "directive-variable": (HEAD + "#SBATCH --output=$HOME/x.out\n", HEAD + "#SBATCH --output=x-%j.out\n"),
    "output-folder": (HEAD + "#SBATCH -o nowhere/%x/%j.out\n", HEAD + "#SBATCH -o there/%j.out\n"),
    "requeue-truncates": (HEAD + "#SBATCH --requeue\n", HEAD + "#SBATCH --requeue\n#SBATCH --open-mode=append\n"),
    "export-none": (
        HEAD + "#SBATCH --export=NONE\nsrun hostname\n",
        HEAD + "#SBATCH --export=NONE\nexport SLURM_EXPORT_ENV=ALL\nsrun hostname\n",
    ),
    "signal-time": (HEAD + "#SBATCH --signal=USR2@3600\n", HEAD + "#SBATCH --signal=USR2@3599\n"),
    "missing-srun": (TWO_NODES + "python train.py\n", TWO_NODES + f"{KILL} python train.py\n"),
    "ssh-launcher": (
        TWO_NODES + "deepspeed --hostfile=hosts train.py\n",
        TWO_NODES + f"{KILL} python train.py --deepspeed\n",
    ),
    "node-local": (
        TWO_NODES + f"{KILL} python train.py --out=/tmp/x\n",
        TWO_NODES + f"{KILL} python train.py --out=/data/tmp/x --also=./tmp\n",
    ),
    "socket-ifname": (
        TWO_NODES + "export NCCL_SOCKET_IFNAME=ib0\n",
        TWO_NODES + "unset NCCL_SOCKET_IFNAME\n# NCCL_SOCKET_IFNAME=ib0\n",
    ),
    "fixed-port": (
        HEAD + "export MASTER_PORT=29500\n",
        HEAD + "export MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))\n",
    ),
    "torchrun-tasks": (
        HEAD + "#SBATCH --ntasks-per-node=2\nsrun torchrun --standalone --nproc-per-node 2 train.py\n",
        HEAD + "#SBATCH --ntasks-per-node=1\nsrun torchrun --standalone --nproc-per-node 2 train.py\n",
    ),
    "torchrun-gpus": (
        HEAD + "#SBATCH --gres=gpu:a100:2\nN=4\ntorchrun --standalone --nproc_per_node=$N train.py\n",
        HEAD + "#SBATCH --gres=gpu:a100:2\nN=2\ntorchrun --standalone --nproc_per_node=$N train.py\n",
    ),
    "idle-gpus": (
        HEAD + "#SBATCH --gpus-per-node=4\ntorchrun --standalone --nproc_per_node=2 train.py\n",
        HEAD + "#SBATCH --gpus-per-node=4\ntorchrun --standalone --nproc_per_node=$SLURM_GPUS_ON_NODE train.py\n",
    ),
    "hanging-ranks": (TWO_NODES + "srun python train.py\n", TWO_NODES + "srun -K python train.py\n"),
    "visible-devices": (
        HEAD + "CUDA_VISIBLE_DEVICES=0,1 python train.py\n",
        HEAD + 'echo "$CUDA_VISIBLE_DEVICES"\npython train.py\n',
    ),
    "signal-untrapped": (
        HEAD + "#SBATCH --signal=B:USR1@60\npython train.py &\nwait\n",
        HEAD + "#SBATCH --signal=B:USR1@60\ntrap 'kill -USR1 $!' USR1\npython train.py &\nwait\n",
    ),
    "signal-waits": (
        HEAD + "#SBATCH --signal=B:12@60\ntrap save SIGUSR2\npython train.py\n",
        HEAD + "#SBATCH --signal=B:12@60\ntrap save SIGUSR2\npython train.py &\nwait\n",
    ),
    "signal-no-step": (
        HEAD + "#SBATCH --signal=USR1@60\npython train.py\n",
        HEAD + "#SBATCH --signal=USR1@60\nsrun python train.py\n",
    ),
    "signal-torchrun": (
        HEAD + "#SBATCH --signal=USR1@60\nsrun torchrun --standalone train.py\n",
        HEAD + "#SBATCH --signal=TERM@60\nsrun torchrun --standalone train.py\n",
    ),
    "conda-init": (
        HEAD + "conda activate x\n",
        HEAD + 'eval "$(conda shell.bash hook)"\nconda activate x\n',
    ),
    "conda-nounset": (
        HEAD + "set -euo pipefail\n. /opt/conda/etc/profile.d/conda.sh\n",
        HEAD + "set -eo pipefail\n. /opt/conda/etc/profile.d/conda.sh\nset -u\npython train.py\n",
    ),
    "secret": (HEAD + "export WANDB_API_KEY=0123456789abcdef\n", HEAD + 'export WANDB_API_KEY="$(cat ~/.key)"\n'),
}
"""By rule: a script that it speaks of, and the same script mended."""
