#!/bin/bash
# All stages as dependent jobs, with nothing but sbatch:
#   slurm/pipeline.sh PRESET|CONFIG.yaml DIR [--set key=value ...]
# What depends on the site is said in the environment: SBATCH_ACCOUNT, SBATCH_PARTITION and the others that sbatch knows, and
# options of single jobs in REFERENCE, TRAIN, SAMPLE, FARM and REPORT, for example
#   REFERENCE="--array=0-7 --ntasks=16" TRAIN="--nodes=2 --gpus-per-node=4 --ntasks-per-node=4" slurm/pipeline.sh ...
set -euo pipefail
usage="usage: pipeline.sh PRESET|CONFIG.yaml DIR [--set key=value ...]"
: "${1:?$usage}" "${2:?$usage}"
here=$(cd "$(dirname "$0")" && pwd)
logs=$(realpath -m "$2")/logs
mkdir -p "$logs" # Slurm makes no folders
jobs=() record=""

# submit NAME SCRIPT OPTIONS STAGES ARGUMENT...: submit a script that waits for the one before it
submit() {
  local name=$1 script=$2 options stages=$4 job log=%j array=1
  read -ra options <<<"$3"
  shift 4
  if [[ " ${options[*]}" == *" --array"* ]]; then log=%A_%a array=2; fi
  if [ ${#jobs[@]} -gt 0 ]; then options+=("--dependency=afterok:${jobs[-1]}"); fi
  if ! job=$(sbatch --parsable --job-name="$name" --output="$logs/%x-$log.log" --kill-on-invalid-dep=yes "${options[@]}" \
    "$here/$script.sbatch" "$@"); then
    if [ ${#jobs[@]} -gt 0 ]; then scancel "${jobs[@]}"; fi
    echo "pipeline.sh: Slurm refused the job '$name'; those submitted before it were cancelled" >&2
    exit 2
  fi
  jobs+=("${job%%;*}") # in a federation the cluster's name follows
  record+="${record:+, }{\"name\": \"$name\", \"job\": \"${jobs[-1]}\", \"stages\": [$stages], \"array\": $array}"
  echo "$name: job ${jobs[-1]}"
}

submit reference reference "${REFERENCE:-}" '"reference"' "$@"
submit train train "${TRAIN:-}" '"reference", "featurize", "train"' "$@"
submit sample sample "${SAMPLE:-}" '"sample"' "$@"
submit farm farm "${FARM:-}" '"sample", "correct", "farm"' "$@"
submit report run "${REPORT:-}" '"report"' "$@"
# for hpc-molgen status
echo "[{\"time\": \"$(date '+%Y-%m-%d %H:%M:%S')\", \"site\": \"pipeline.sh\", \"jobs\": [$record]}]" >"$logs/jobs.json"
echo "follow: hpc-molgen status $2; logs in $logs"
echo "stop:   scancel ${jobs[*]}"
