#!/bin/bash
# Stage smoke, rendered by launch.submit. `sbatch` is not enough to run it again: use launch.submit.
#SBATCH --job-name=mlp_smoke2_synthetic_20250102_030405_nogit
#SBATCH --partition=a100-80gb
#SBATCH --account=mylab
#SBATCH --qos=normal
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=8
#SBATCH --mem=51200M
#SBATCH --time=00:30:00
#SBATCH --signal=USR2@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/me/project/logs/mlp_smoke2_synthetic_20250102_030405_nogit/%j_0_log.out
#SBATCH --comment=gilbreth:mlp_smoke2_synthetic_20250102_030405_nogit
set -euo pipefail
. /home/me/project/job_templates/common.sh

runs=(/scratch/me/runs/mlp_smoke2_synthetic_20250102_030405_nogit)
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
take_task /home/me/project/logs/mlp_smoke2_synthetic_20250102_030405_nogit
load_modules external cuda anaconda
activate_environment /home/me/project/.venv/bin/python
set_job_environment
export SUBMITIT_EXECUTOR=slurm GILBRETH_MAX_ATTEMPTS=50

rm -f -- "$run/refused"
code=0
run_tasks /home/me/project/logs/mlp_smoke2_synthetic_20250102_030405_nogit/%j_%t_log.out "$PYTHON" -u -m submitit.core._submit /home/me/project/logs/mlp_smoke2_synthetic_20250102_030405_nogit || code=$?
finish "$run" "$code"
