#!/bin/bash
# Stage bc, rendered by launch.submit. `sbatch` is not enough to run it again: use launch.submit.
#SBATCH --job-name=act_bc_lift_20250102_030405_abcdef0
#SBATCH --partition=a100-80gb
#SBATCH --account=lab
#SBATCH --qos=standby
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --mem=8192M
#SBATCH --time=04:00:00
#SBATCH --signal=USR2@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/user/project/logs/act_bc_lift_20250102_030405_abcdef0/%j_0_log.out
#SBATCH --comment=gilbreth:act_bc_lift_20250102_030405_abcdef0
#SBATCH --exclusive
set -euo pipefail
. /home/user/project/job_templates/common.sh

runs=(/scratch/user/runs/act_bc_lift_20250102_030405_abcdef0)
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
take_task /home/user/project/logs/act_bc_lift_20250102_030405_abcdef0
load_modules external cuda
activate_environment /home/user/project/.venv/bin/python
set_job_environment
export WANDB_MODE=offline
export SUBMITIT_EXECUTOR=slurm GILBRETH_MAX_ATTEMPTS=50

rm -f -- "$run/refused"
code=0
run_tasks /home/user/project/logs/act_bc_lift_20250102_030405_abcdef0/%j_%t_log.out "$PYTHON" -u -m submitit.core._submit /home/user/project/logs/act_bc_lift_20250102_030405_abcdef0 || code=$?
finish "$run" "$code"
