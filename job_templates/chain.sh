# shellcheck shell=bash
# A run as a chain of jobs, where Slurm must not requeue one. Source it after common.sh.
#
# As a job begins, it queues the next one, which starts when this one is over, however it ends: a node that dies hands on
# too. All jobs of a run have its name, and `singleton` lets only one of them run at a time.

gilbreth_limit=0
gilbreth_queued=
# Between two questions to a Slurm that does not answer, in seconds.
gilbreth_pause=10

# begin_link RUN SECONDS: ends the job where the run is complete. SECONDS is the job's time limit.
begin_link() {
  gilbreth_limit=$2
  if [ -e "$1/done.json" ]; then
    echo "done: the run was complete before job $SLURM_JOB_ID began"
    exit 0
  fi
}

# take_place RUN: ends the chain where the attempts so far say so; else has the next job wait. It needs PYTHON.
take_place() {
  if ! "$PYTHON" -m gilbreth_phase0.attempt begin --run-dir "$1"; then
    end_run "$1"
    push_run "$1"
    exit 1
  fi
  queue_next_link "$1"
}

# queue_next_link RUN: nothing where the next job waits already.
queue_next_link() {
  local run=$1 waiting job
  waiting=$(next_links) || true
  for job in $waiting; do
    # Queued with others at once, by a command that was killed before it could write that down.
    if [ ! -e "$run/links/$job.json" ]; then record_link "$run" "$job"; fi
  done
  [ -z "$waiting" ] || return 0
  if ! queue_again "$run" "afterany:$SLURM_JOB_ID,singleton"; then
    echo "warning: this node may not submit the job that goes on after this one; queue several at once when you submit:"
    echo "  --set resources.links=N"
  fi
}

# queue_again FOLDER DEPENDENCY [OPTION...]: submits this very script once more, and records that in FOLDER/links.
queue_again() {
  local folder=$1 dependency=$2 next
  shift 2
  # $0 is Slurm's own copy of this script.
  next=$(submit --dependency="$dependency" "$@" "$0") || return
  next=${next%%;*}
  record_link "$folder" "$next"
  gilbreth_queued=$next
}

# submit ARGUMENT...: sbatch, without what it would take from this job; prints the number.
submit() {
  local name remove=()
  for name in $(compgen -e); do
    case $name in
    SLURM_CONF) ;;
    SLURM_* | SLURMD_* | SRUN_* | SUBMITIT_* | PMI*_* | CUDA_VISIBLE_DEVICES) remove+=(-u "$name") ;;
    esac
  done
  env "${remove[@]}" sbatch --parsable "$@"
}

# record_link FOLDER JOB: that the job comes after this one.
record_link() {
  mkdir -p -- "$1/links"
  printf '{"job_id": "%s", "after": "%s", "time": %s}\n' "$2" "$SLURM_JOB_ID" "$(date +%s)" >"$1/links/.$2"
  mv -- "$1/links/.$2" "$1/links/$2.json"
}

# next_links: the jobs of this run that wait; it fails where Slurm does not answer.
next_links() { jobs_of "$SLURM_JOB_NAME" PENDING; }

# jobs_of NAME STATES: your jobs of that name; it fails where Slurm does not answer.
jobs_of() {
  local try
  for try in 1 2 3; do
    if squeue --noheader --states="$2" --user="$(id -un)" --name="$1" --format=%i; then return 0; fi
    [ "$try" -eq 3 ] || sleep "$gilbreth_pause"
  done
  return 1
}

# go_on RUN: takes the place of common.sh's.
go_on() {
  local waiting
  if ! waiting=$(next_links); then
    echo "handed on to job ${gilbreth_queued:-?}: Slurm does not tell whether it waits"
  elif [ -n "$waiting" ]; then
    echo "handed on to job ${waiting%%$'\n'*}"
  else
    echo "error: no job waits to go on with this run; submit it again: python -m launch.jobs requeue $SLURM_JOB_NAME" >&2
    return 1
  fi
}

# end_run RUN: takes the place of common.sh's. What never began is no job of the run's.
end_run() {
  local job
  for job in $(next_links); do
    if scancel --state=PENDING "$job"; then rm -f -- "$1/links/$job.json"; fi
  done
}

# end_terminated RUN CODE: takes the place of common.sh's. At the time limit, and where it preempts, Slurm sends TERM as
# scancel does, but then the run goes on.
end_terminated() {
  local verdict=0
  if [ "$SECONDS" -lt $((gilbreth_limit - 5)) ]; then
    # The attempt did not end by itself, so it says nothing about the run.
    rm -f -- "$1/attempts/$SLURM_JOB_ID"-*.begun
    if was_preempted; then echo "preempted: the next job goes on"; else end_run "$1"; fi
    return
  fi
  # Slurm kills after 30 s, as a rule. Where that comes first, the next job decides as it begins.
  timeout 15 "$PYTHON" -m gilbreth_phase0.attempt decide --run-dir "$1" --exit-code "$2" || verdict=$?
  case $verdict in
  0 | 1) end_run "$1" ;;
  *) echo "the time limit came before the stop; the next job goes on" ;;
  esac
}

# was_preempted: while a job is being ended, Slurm says COMPLETING whatever the reason is, so its state does not tell.
was_preempted() {
  case $(scontrol show job "$SLURM_JOB_ID") in
  *" PreemptTime="[0-9]*) ;;
  *) return 1 ;;
  esac
}
