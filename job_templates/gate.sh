# shellcheck shell=bash
# The gate behind a stage of a pipeline. Source it after chain.sh.

# wait_for_run RUN NAME FOLDER: returns when the run is complete or over. While jobs of it wait or run (a chain of them, or
# one that was submitted by hand), the gate goes back into the queue behind them, and whoever waits for it with it.
wait_for_run() {
  local run=$1 name=$2 folder=$3 jobs
  [ ! -e "$run/done.json" ] || return 0
  jobs=$(jobs_of "$name" PENDING,RUNNING,SUSPENDED) || fail "Slurm does not tell whether jobs of $name are left"
  # Between the first look and squeue's answer the last job may have ended.
  if [ -z "$jobs" ] || [ -e "$run/done.json" ]; then return 0; fi
  jobs=${jobs//$'\n'/:}
  queue_again "$folder" "afterany:$jobs" || fail "this node may not submit the gate that goes on behind job $jobs"
  # shellcheck disable=SC2154 # queue_again of chain.sh sets it
  follow_gate "$gilbreth_queued" || fail "Slurm does not let jobs wait for gate $gilbreth_queued instead of this one"
  echo "handed on to gate $gilbreth_queued: jobs of the run are left ($jobs)"
  exit 0
}

# follow_gate GATE: has every job that waits for this one wait for GATE instead.
follow_gate() {
  local job dependency
  squeue --noheader --states=PENDING --user="$(id -un)" --format='%i %E' | while read -r job dependency; do
    case $dependency in
    *"afterok:$SLURM_JOB_ID("* | *"afterok:$SLURM_JOB_ID")
      dependency=$(sed -E "s/\([a-z]+\)//g; s/afterok:$SLURM_JOB_ID(,|\$)/afterok:$1\1/" <<<"$dependency")
      scontrol update "JobId=$job" "Dependency=$dependency" || exit 1
      ;;
    esac
  done
}
