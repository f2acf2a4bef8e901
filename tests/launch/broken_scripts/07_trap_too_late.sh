#!/bin/bash
#SBATCH --job-name=preemptible
#SBATCH --gres=gpu:2
#SBATCH --time=0-04:00
#SBATCH --signal=B:SIGUSR1@90
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=results/%x/%j.out

requeue() {
  echo "caught USR1, requeueing"
  scontrol requeue "$SLURM_JOB_ID"
}
trap requeue USR1

torchrun --nproc_per_node=4 train.py --resume latest
