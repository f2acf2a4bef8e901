#!/bin/bash
#SBATCH --job-name=zero3-finetune
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gres=gpu:2
#SBATCH --cpus-per-task=16
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%j.out

module purge
module load cuda/12.1

HOSTFILE=hostfile_$SLURM_JOB_ID
for host in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
  echo "$host slots=2" >> "$HOSTFILE"
done

deepspeed --hostfile "$HOSTFILE" --launcher pdsh \
  train.py --deepspeed ds_zero3.json --output_dir "$HOME/zero3"
