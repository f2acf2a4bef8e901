#!/bin/bash
#SBATCH --job-name=long-run
#SBATCH --nodes=1
#SBATCH --gpus=1
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --output=%x_%j.out

# train.py catches USR1 and saves.
srun python train.py --resume auto
