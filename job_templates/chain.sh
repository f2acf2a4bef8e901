# shellcheck shell=bash
# A run as a chain of jobs, where Slurm must not requeue one. Source it after common.sh.
#
# As a job begins, it queues the next one, which starts when this one is over, however it ends: a node that dies hands on
# too. All jobs of a run have its name, and `singleton` lets only one of them run at a time.

gilbreth_limit=0

# begin_link RUN SECONDS: takes its place in the chain. SECONDS is the job's time limit.
begin_link() {
  gilbreth_limit=$2
  if [ -e "$1/done.json" ]; then
    echo "done: the run was complete before job $SLURM_JOB_ID began"
    exit 0
  fi
  queue_next_link "$1"
}

# queue_next_link RUN: nothing where the next job waits already.
queue_next_link() {
  local run=$1
  [ -z "$(next_links)" ] || return 0
  if ! queue_again "$run" "afterany:$SLURM_JOB_ID,singleton"; then
    echo "warning: this node may not submit the job that goes on after this one; queue several at once when you submit:"
    echo "  --set resources.links=N"
  fi
}

# queue_again FOLDER DEPENDENCY [OPTION...]: submits this very script once more, and records that in FOLDER/links.
queue_again() {
  local folder=$1 dependency=$2 next name remove=()
  shift 2
  for name in $(compgen -e); do
    case $name in
    SLURM_CONF) ;;
    SLURM_* | SLURMD_* | SRUN_* | SUBMITIT_* | PMI*_* | CUDA_VISIBLE_DEVICES) remove+=(-u "$name") ;;
    esac
  done
  # $0 is Slurm's own copy of this script.
  next=$(env "${remove[@]}" sbatch --parsable --dependency="$dependency" "$@" "$0") || return
  next=${next%%;*}
  mkdir -p -- "$folder/links"
  printf '{"job_id": "%s", "after": "%s", "time": %s}\n' "$next" "$SLURM_JOB_ID" "$(date +%s)" >"$folder/links/.$next"
  mv -- "$folder/links/.$next" "$folder/links/$next.json"
  gilbreth_queued=$next
}

# next_links: the jobs of this run that wait; none where Slurm does not answer.
next_links() {
  squeue --noheader --state=PENDING --user="$(id -un)" --name="$SLURM_JOB_NAME" --format=%i || true
}

# go_on: takes the place of common.sh's.
go_on() {
  local next
  next=$(next_links | head -n 1)
  if [ -z "$next" ]; then
    echo "error: no job waits to go on with this run; submit it again: python -m launch.jobs requeue $SLURM_JOB_NAME" >&2
    return 1
  fi
  echo "handed on to job $next"
}

# end_run: takes the place of common.sh's. At the time limit Slurm sends TERM as scancel does, but then the run goes on.
end_run() {
  if [ -n "$gilbreth_terminated" ] && [ "$SECONDS" -ge $((gilbreth_limit - 5)) ]; then
    echo "the time limit came before the stop; job $(next_links | head -n 1) goes on"
  else
    scancel --state=PENDING --user="$(id -un)" --name="$SLURM_JOB_NAME" || true
  fi
}
