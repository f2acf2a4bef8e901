#!/bin/bash
#SBATCH -J llm
#SBATCH -N 2
#SBATCH --ntasks-per-node=4
#SBATCH --gres=gpu:a100:4
#SBATCH -c 8
#SBATCH -t 08:00:00
#SBATCH -o %j.out

nodes=( $(scontrol show hostnames $SLURM_JOB_NODELIST) )
head_node_ip=$(srun --nodes=1 --ntasks=1 -w "${nodes[0]}" hostname --ip-address)

GPUS_PER_NODE=4
srun torchrun \
  --nnodes 2 \
  --nproc_per_node $GPUS_PER_NODE \
  --rdzv_id $RANDOM \
  --rdzv_backend c10d \
  --rdzv_endpoint $head_node_ip:29500 \
  main.py --config configs/7b.yaml
