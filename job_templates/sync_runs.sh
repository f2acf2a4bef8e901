#!/bin/bash
# Pushes to W&B what it does not have of the runs below RUNS (default: runs). For sites where nodes of some partition have
# internet; it may be submitted at any time and any number of times.
#
#   sbatch --dependency=afterany:JOBID job_templates/sync_runs.sh [--behind NAME LOG] [RUNS...]
#
# With --behind it comes again, with its log in LOG, as long as jobs of that name are left: a run may be a chain of them.
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

if [ "${1:-}" = --behind ]; then
  . "$SLURM_SUBMIT_DIR/job_templates/chain.sh"
  name=$2 log=$3
  shift 3
  if ! jobs=$(jobs_of "$name" PENDING,RUNNING,SUSPENDED); then
    echo "warning: Slurm does not tell whether jobs of $name are left; this push may not be the last one that is needed"
  elif [ -n "$jobs" ]; then
    options=(--partition="$SLURM_JOB_PARTITION" --job-name="$SLURM_JOB_NAME" --output="$log")
    for option in account qos; do
      variable=SLURM_JOB_${option^^}
      if [ -n "${!variable:-}" ]; then options+=("--$option=${!variable}"); fi
    done
    if next=$(submit --dependency="afterany:${jobs//$'\n'/:}" "${options[@]}" "$0" --behind "$name" "$log" "$@"); then
      echo "job $next pushes again when job ${jobs//$'\n'/, } is over"
    else
      echo "warning: this node may not submit the job that pushes what comes after this"
    fi
  fi
fi
activate_environment

roots=()
for root in "${@:-runs}"; do
  roots+=("--root=$root")
done
# Whatever Slurm ends here goes on with the next one.
exec "$PYTHON" -m tracking.sync once "${roots[@]}"
