#!/bin/bash
# Smoke test 05: trains a small model under DeepSpeed on two GPUs, tracks it, checkpoints and resumes.
# Ends with PASSED and where the run is, or FAILED, what failed and the fix.
#
#   sbatch job_templates/05_smoke_tracking.sh       (from the project root, or from gilbreth_phase0/)
#
# Slurm reads account, partition and QOS from SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_QOS.
#SBATCH --job-name=smoke-tracking
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

activate_environment
set_job_environment

run=runs/smoke-tracking-$SLURM_JOB_ID
if [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] && [ -e "$run" ]; then
  # A job of another cluster, or of a lab that was wiped, had this number: its run must not be resumed.
  mv -T -- "$run" "$run-$(date -r "$run" +%Y%m%d_%H%M%S)"
fi
code=0
run_tasks "" "$PYTHON" -u -m gilbreth_phase0.smoke --run-dir "$run" || code=$?
finish "$run" "$code"
