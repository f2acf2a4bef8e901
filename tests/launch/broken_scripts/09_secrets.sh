#!/bin/bash
#SBATCH --account=vision-group
#SBATCH --partition=a100
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --time=06:00:00
#SBATCH --output=%j.out
#SBATCH --export=NONE

export WANDB_API_KEY=0123456789abcdef0123456789abcdef01234567
export HF_TOKEN="hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"

srun python finetune.py --model small
