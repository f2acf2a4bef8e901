# shellcheck shell=bash
# What the batch scripts share. Source it from bash: it goes to the project root and defines the functions below.

cd -P -- "${BASH_SOURCE[0]%/*}/.."
PYTHON=
gilbreth_terminated=
# The push at the end holds the job's nodes; whatever it does not do, the login node can.
push_seconds=60

# TERM is scancel, the hard end of the time limit, or a requeue under way. Bash runs this when the current command has
# ended; the job is not requeued after it.
trap 'gilbreth_terminated=1' TERM
# USR2 is for the tasks. Should it reach this shell, it must not end it.
trap ':' USR2

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# load_modules NAME...
load_modules() {
  # The files of other people below use unset variables and commands that fail.
  set +eu
  if ! type module >/dev/null 2>&1 && [ -r /etc/profile.d/modules.sh ]; then
    . /etc/profile.d/modules.sh
  fi
  if ! type module >/dev/null 2>&1; then
    fail "the job asks for modules ($*), and this node has no 'module' command; set cluster.modules=[]"
  fi
  module purge
  module load "$@" || fail "module load $* failed; see 'module spider $1'"
  set -eu
}

# activate_environment [PYTHON [CONDA_ENVIRONMENT]]: sets PYTHON. A conda environment that is named wins, then the
# Python that is given, then .venv, then the conda environment that is active, then the one on the PATH.
activate_environment() {
  local preferred=${1:-} conda_environment=${2:-} base
  if [ -n "$conda_environment" ]; then
    command -v conda >/dev/null || fail "the job asks for the conda environment $conda_environment, and there is no conda here"
    base=$(conda info --base)
    set +eu
    . "$base/etc/profile.d/conda.sh"
    conda activate "$conda_environment" || fail "conda activate $conda_environment failed; see 'conda env list'"
    set -eu
    PYTHON=$(command -v python)
  elif [ -n "$preferred" ] && [ -x "$preferred" ]; then
    PYTHON=$preferred
  elif [ -x .venv/bin/python ]; then
    PYTHON=$PWD/.venv/bin/python
  elif [ -n "${CONDA_PREFIX:-}" ] && [ -x "$CONDA_PREFIX/bin/python" ]; then
    PYTHON=$CONDA_PREFIX/bin/python
  else
    PYTHON=$(command -v python3) || fail "no .venv in $PWD, no conda environment and no python3; run 'make setup' in $PWD"
  fi
  if [ -n "$preferred" ] && [ -z "$conda_environment" ] && [ "$PYTHON" != "$preferred" ]; then
    printf 'note: %s is not on this node; using %s\n' "$preferred" "$PYTHON"
  fi
  # Programs beside Python (ninja, for DeepSpeed's extensions) are found through the PATH.
  export PATH="${PYTHON%/*}:$PATH"
}

# set_job_environment: what every task needs, whatever the cluster. The profile's own variables are set after it.
set_job_environment() {
  export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
  # A dataset or a policy that is not on disk must be an error at once, not a wait for a network that is not there.
  export HF_HUB_OFFLINE=1
  export CUDA_DEVICE_ORDER=PCI_BUS_ID
  if [ -z "${MUJOCO_GL:-}" ]; then
    if nvidia-smi -L >/dev/null 2>&1; then export MUJOCO_GL=egl; else export MUJOCO_GL=osmesa; fi
  fi
  # The names of interfaces differ from node to node: NCCL and gloo must find them themselves.
  unset NCCL_SOCKET_IFNAME GLOO_SOCKET_IFNAME
  if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then
    export NCCL_IB_DISABLE=0
    unset NCCL_P2P_LEVEL NCCL_SHM_DISABLE
  else
    # Without these, NCCL says "Init COMPLETE" on one node and then hangs for ten minutes.
    export NCCL_IB_DISABLE=1 NCCL_P2P_LEVEL=NVL NCCL_SHM_DISABLE=0
  fi
}

# take_task FOLDER: gives the task that was pickled before the submission the number under which submitit looks for it, so
# that the job needs nothing of the process that submitted it. A requeued job has it already.
take_task() {
  local name="$SLURM_JOB_ID"
  if [ -n "${SLURM_ARRAY_JOB_ID:-}" ]; then name="${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID"; fi
  if [ ! -e "$1/${name}_submitted.pkl" ]; then
    ln -s -- "task_${SLURM_ARRAY_TASK_ID:-0}.pkl" "$1/${name}_submitted.pkl"
  fi
}

# run_tasks LOG COMMAND...: runs the command once a task and returns srun's exit code. LOG is srun's file name pattern;
# empty, the tasks write into the job's own log.
run_tasks() {
  local log=$1
  shift
  # Python dies of USR2 until its handler stands, so a task starts with the signal ignored.
  # shellcheck disable=SC2016
  srun --kill-on-bad-exit=1 --open-mode=append --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    ${log:+--output="$log"} bash -c 'trap "" USR2; exec "$0" "$@"' "$@"
}

# push_run RUN_FOLDER: pushes to W&B what it does not have of the run, where this node has internet; else one line says
# how. What comes of it changes nothing. Who says that jobs are offline gets no push from one.
push_run() {
  if [ "${WANDB_MODE:-}" = offline ]; then
    say_how_to_push "$1"
  elif [ -e "$1/run.json" ] && ! timeout --kill-after=5 "$push_seconds" "$PYTHON" -m tracking.sync run "$1" --closing; then
    say_how_to_push "$1"
  fi
}

# say_how_to_push RUN_FOLDER
say_how_to_push() {
  if [ -e "$1/run.json" ]; then
    echo "to push this run, on a login node: cd ${PWD@Q} && ${PYTHON#"$PWD"/} -m tracking.sync run ${1@Q}"
  fi
}

# go_on RUN: has a later attempt go on with the run. chain.sh has another one, and of the next two, too.
go_on() {
  scontrol requeue "$SLURM_JOB_ID" && return
  echo "error: Slurm refused to requeue job $SLURM_JOB_ID; submit the stage again" >&2
  return 1
}

# end_run RUN: what must not go on when the run has ended for good.
end_run() { :; }

# end_terminated RUN CODE: what follows from TERM, beside the end of this job.
end_terminated() { :; }

# finish RUN_FOLDER CODE: ends the job after srun ended with CODE: done, ended, or requeued.
finish() {
  local run=$1 code=$2 verdict=0
  # One rank that refuses its input leaves this file: srun then kills the others and returns 137, which hides the 2.
  if [ -e "$run/refused" ]; then
    code=2
    # Where a rank other than 0 refused, the words stand in a log of its own.
    cat -- "$run/refused" || true
    rm -f -- "$run/refused"
  fi
  if [ -z "$gilbreth_terminated" ]; then
    "$PYTHON" -m gilbreth_phase0.attempt decide --run-dir "$run" --exit-code "$code" || verdict=$?
  fi
  if [ -n "$gilbreth_terminated" ]; then
    echo "end: TERM (scancel, the end of the time limit, or a requeue that is under way); this script does not requeue"
    end_terminated "$run" "$code"
    # Slurm kills what is left within seconds, so no push is begun here.
    say_how_to_push "$run"
    exit 143
  fi
  if [ "$verdict" -eq 0 ]; then
    code=0
  elif [ "$verdict" -ne 75 ] && [ "$code" -eq 0 ]; then
    code=1
  fi
  if [ "$verdict" -eq 75 ]; then
    # The run goes on, and a later attempt pushes it.
    go_on "$run" && exit "$code"
  else
    end_run "$run"
  fi
  push_run "$run"
  exit "$code"
}

# run_smoke LEVEL NAME: the whole of a smoke script. Such a script knows no profile: GILBRETH_MODULES (names, with spaces
# between them) and GILBRETH_CONDA_ENV stand for what a profile says.
run_smoke() {
  local level=$1 run=runs/$2-$SLURM_JOB_ID code=0 modules
  read -ra modules <<<"${GILBRETH_MODULES:-}"
  if [ "${#modules[@]}" -gt 0 ]; then load_modules "${modules[@]}"; fi
  activate_environment "" "${GILBRETH_CONDA_ENV:-}"
  set_job_environment
  if [ "${SLURM_RESTART_COUNT:-0}" -eq 0 ] && [ -e "$run" ]; then
    # A job of another cluster, or of a lab that was wiped, had this number: its run must not be resumed.
    mv -T -- "$run" "$run-$(date -r "$run" +%Y%m%d_%H%M%S)"
  fi
  rm -f -- "$run/refused" # of an attempt that Slurm ended before it came to `finish`
  run_tasks "" "$PYTHON" -u -m gilbreth_phase0.smoke --level "$level" --run-dir "$run" || code=$?
  finish "$run" "$code"
}
