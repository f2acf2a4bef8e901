#!/bin/bash
#SBATCH --job-name=dpo
#SBATCH --nodes=1
#SBATCH --gpus-per-node=4
#SBATCH --time=00:01:00
#SBATCH --signal=USR1@120
#SBATCH --output=%x.out

source ~/.bashrc
conda activate dpo

accelerate launch --num_processes 2 dpo.py --beta 0.1
# Afterwards, on the CPU:
#SBATCH --mem=200G
python merge.py
