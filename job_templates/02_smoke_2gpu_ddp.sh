#!/bin/bash
# Smoke test 02: do two GPUs of a node add up right, and have the same gradients under PyTorch's DDP?
# Ends with PASSED and where the run is, or FAILED, the check that failed and its fix.
#
#   sbatch job_templates/02_smoke_2gpu_ddp.sh       (from the project root, or from gilbreth_phase0/)
#
# Slurm reads account, partition and QOS from SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_QOS, and run_smoke the
# environment from GILBRETH_MODULES and GILBRETH_CONDA_ENV. Where Slurm knows no GPUs: sbatch --gpus-per-node=0 …
#SBATCH --job-name=smoke-2gpu-ddp
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --mem=50G
#SBATCH --time=00:30:00
#SBATCH --signal=USR2@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=logs/%x_%j.out
set -euo pipefail
# Slurm runs a copy of this file, so the way back is the folder that it was submitted from.
. "${SLURM_SUBMIT_DIR:?submit this file with sbatch}/job_templates/common.sh"
run_smoke 2 smoke-2gpu-ddp
