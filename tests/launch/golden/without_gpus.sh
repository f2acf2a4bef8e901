#!/bin/bash
# Stage bc, rendered by launch.submit. `sbatch` is not enough to run it again: use launch.submit.
#SBATCH --job-name=act_bc_lift_20250102_030405_abcdef0
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=8192M
#SBATCH --time=2-02:00:00
#SBATCH --signal=USR2@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=/home/user/project/logs/act_bc_lift_20250102_030405_abcdef0/%j_0_log.out
#SBATCH --comment=gilbreth:act_bc_lift_20250102_030405_abcdef0
set -euo pipefail
. /home/user/project/job_templates/common.sh

runs=(/scratch/user/runs/act_bc_lift_20250102_030405_abcdef0)
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
take_task /home/user/project/logs/act_bc_lift_20250102_030405_abcdef0
activate_environment /home/user/project/.venv/bin/python
set_job_environment
export SUBMITIT_EXECUTOR=slurm GILBRETH_MAX_ATTEMPTS=50

rm -f -- "$run/refused"
code=0
run_tasks /home/user/project/logs/act_bc_lift_20250102_030405_abcdef0/%j_%t_log.out "$PYTHON" -u -m submitit.core._submit /home/user/project/logs/act_bc_lift_20250102_030405_abcdef0 || code=$?
finish "$run" "$code"
