#!/bin/bash
# Site check of the cluster profile here, rendered by launch.cluster.
#SBATCH --job-name=site-check-here
#SBATCH --partition=gpu
#SBATCH --account=lab
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
#SBATCH --output=/home/user/project/logs/act_bc_lift_20250102_030405_abcdef0/%j.out
#SBATCH --comment=gilbreth:site-check-here
set -euo pipefail
. /home/user/project/job_templates/common.sh

# say PART yes|no|unknown WORDS: one line of the answer, as gilbreth_phase0.site_check writes it.
say() {
  printf 'site-check %s %s %s %s\n' "$1" "${SLURMD_NODENAME:-$HOSTNAME}" "$2" "$(printf '%s' "$3" | tr '\n' ' ')"
}

modules=(external 'it'"'"'s')
if said=$(load_modules "${modules[@]}" 2>&1); then
  load_modules "${modules[@]}"
  say modules yes "module load ${modules[*]}"
else
  say modules no "$said"
fi
if said=$(activate_environment /home/user/project/.venv/bin/python 'my env' 2>&1); then
  activate_environment /home/user/project/.venv/bin/python 'my env'
else
  say python no "$said"
  PYTHON=$(command -v python3)
fi
export A='b c'
export WANDB_BASE_URL=http://w
case $(scontrol show job "$SLURM_JOB_ID" 2>&1) in
  *Requeue=1*) say requeue yes "Slurm took --requeue" ;;
  *Requeue=0*) say requeue no "Slurm dropped --requeue" ;;
  *) say requeue unknown "scontrol show job does not tell" ;;
esac
srun --kill-on-bad-exit=0 --cpus-per-task=1 "$PYTHON" -m gilbreth_phase0.site_check --token token --server http://w --folder '/scratch/o'"'"'neil/runs/.site-check-token'  || say srun no "srun ended with $?"
echo "site-check over"
