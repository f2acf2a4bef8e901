#!/bin/bash
# Smoke test 01: does one GPU compute right, hold what it is given, and train? Saves the weights and loads them.
# Ends with PASSED and where the run is, or FAILED, the check that failed and its fix.
#
#   sbatch job_templates/01_smoke_1gpu.sh       (from the project root, or from gilbreth_phase0/)
#
# Slurm reads account, partition and QOS from SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_QOS, and run_smoke the
# environment from GILBRETH_MODULES and GILBRETH_CONDA_ENV. Where Slurm knows no GPUs: sbatch --gpus-per-node=0 …
#SBATCH --job-name=smoke-1gpu
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
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
run_smoke 1 smoke-1gpu
