#!/bin/bash
#SBATCH --job-name=eval
#SBATCH --gres=gpu:1
#SBATCH --mem=32G
#SBATCH --output=/tmp/eval-%j.log
set -euo pipefail

module load anaconda/2024.02
conda activate robots

export CUDA_VISIBLE_DEVICES=0
python evaluate.py --policy checkpoints/best
