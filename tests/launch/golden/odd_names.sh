#!/bin/bash
# Stage bc, rendered by launch.submit. `sbatch` is not enough to run it again: use launch.submit.
#SBATCH --job-name=act_bc_lift_20250102_030405_abcdef0
#SBATCH --partition=gpu
#SBATCH --account="it's \"us\""
#SBATCH --qos=standby
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=2
#SBATCH --gpus-per-node=2
#SBATCH --cpus-per-task=4
#SBATCH --mem=8192M
#SBATCH --time=00:30:00
#SBATCH --signal=USR2@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="/home/o'neil/pro ject/logs/run/%j_0_log.out"
#SBATCH --comment=gilbreth:act_bc_lift_20250102_030405_abcdef0
set -euo pipefail
. '/home/o'"'"'neil/pro ject/job_templates/common.sh'

runs=('/scratch/$(id)/new
line/run')
run=${runs[${SLURM_ARRAY_TASK_ID:-0}]}
take_task '/home/o'"'"'neil/pro ject/logs/run'
load_modules 'cuda/12; echo foo'
activate_environment '/home/o'"'"'neil/pro ject/.venv/bin/python' 'my env'
set_job_environment
export ODD='it'"'"'s $HOME `id` "\
'
export SUBMITIT_EXECUTOR=slurm GILBRETH_MAX_ATTEMPTS=50

rm -f -- "$run/refused"
code=0
run_tasks '/home/o'"'"'neil/pro ject/logs/run/%j_%t_log.out' "$PYTHON" -u -m submitit.core._submit '/home/o'"'"'neil/pro ject/logs/run' || code=$?
finish "$run" "$code"
