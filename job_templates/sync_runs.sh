#!/bin/bash
# Pushes to W&B what it does not have of the runs below RUNS (default: runs). For sites where nodes of some partition have
# internet; it may be submitted at any time and any number of times.
#
#   sbatch --dependency=afterany:JOBID job_templates/sync_runs.sh [RUNS...]
#
# Slurm reads account, partition and QOS from SBATCH_ACCOUNT, SBATCH_PARTITION and SBATCH_QOS.
#SBATCH --job-name=sync-runs
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=1
#SBATCH --mem=2G
#SBATCH --time=00:30:00
#SBATCH --output=logs/%x_%j.out
set -euo pipefail
# Slurm runs a copy of this file, so the way back is the folder that it was submitted from.
. "${SLURM_SUBMIT_DIR:?submit this file with sbatch}/job_templates/common.sh"

activate_environment

roots=()
for root in "${@:-runs}"; do
  roots+=("--root=$root")
done
# Whatever Slurm ends here goes on with the next one.
exec "$PYTHON" -m tracking.sync once "${roots[@]}"
