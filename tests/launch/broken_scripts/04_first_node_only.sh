#!/bin/bash
#SBATCH --job-name=pretrain
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=48:00:00
#SBATCH --exclusive
#SBATCH --output=%x_%j.out

export MASTER_ADDR=$(hostname)
# The data set is unpacked where reading is fast.
tar -xf "$HOME/data/imagenet.tar" -C /tmp/imagenet

torchrun --nnodes=2 --nproc_per_node=4 --master_port=12355 \
  pretrain.py --data /tmp/imagenet --out /tmp/checkpoints
