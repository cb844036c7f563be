#!/bin/bash
# Strong and weak scaling of training: one short job on a single rank and one on each of 1, 2, 4, ... MAX_NODES full nodes.
#   slurm/scaling.sh DIR MAX_NODES [sbatch options ...] [-- hpc-molgen options ...]
#   slurm/scaling.sh scaling 16 --ntasks-per-node=4 --gpus-per-node=4 --cpus-per-task=8 --account=A -- --set surrogate=gan
# Give every surrogate, batch and precision (--set) a DIR of its own. When the jobs are done,
#   hpc-molgen benchmark scaling --plan --out DIR
# prints what was measured beside what to expect on more nodes.
set -euo pipefail
usage="usage: scaling.sh DIR MAX_NODES [sbatch options ...] [-- hpc-molgen options ...]"
out=$(realpath -m "${1:?$usage}") most=${2:?$usage}
if ! [[ $most =~ ^[1-9][0-9]*$ ]]; then
  echo "scaling.sh: MAX_NODES is '$most', not a number of nodes; $usage" >&2
  exit 2
fi
shift 2
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  options+=("$1")
  shift
done
if [ $# -gt 0 ]; then shift; fi
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$out" # Slurm makes no folders

# submit NAME OPTIONS... -- ARGUMENTS...: one job; of options that occur twice Slurm takes the last
submit() {
  local name=$1 own=() job
  shift
  while [ "$1" != -- ]; do
    own+=("$1")
    shift
  done
  shift
  if ! job=$(sbatch --parsable --time=0:20:00 --job-name="$name" --output="$out/%x-%j.log" "${options[@]}" "${own[@]}" \
    "$here/benchmark.sbatch" scaling "$out" "$@"); then
    echo "scaling.sh: Slurm refused the job '$name'" >&2
    exit 2
  fi
  echo "$name: job ${job%%;*}" # in a federation the cluster's name follows
}

submit scaling-one-rank --nodes=1 --ntasks=1 --ntasks-per-node=1 -- "$@"
for ((nodes = 1; nodes < most; nodes *= 2)); do
  submit "scaling-$nodes-nodes" --nodes="$nodes" -- "$@"
done
submit "scaling-$most-nodes" --nodes="$most" -- "$@"
echo "follow: squeue --me; logs in $out"
echo "then:   hpc-molgen benchmark scaling --plan --out $out $*"
