#!/bin/bash
EXPERIMENT=resnet50-baseline
#SBATCH --job-name=$EXPERIMENT
#SBATCH --partition=gpu
#SBATCH --gres=gpu:1
#SBATCH --time=24:00:00
#SBATCH --output=$HOME/logs/$EXPERIMENT-%j.out

python train.py --name "$EXPERIMENT"
