# shellcheck shell=bash
# Functions of a job's batch script, in bash. The scripts in slurm/ source this file, those of `hpc-molgen submit` contain it.

# molgen_begin RUN_DIR [DIR...]: look whether all nodes see the folders; go back into the queue when told to leave early
molgen_begin() {
  molgen_job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  molgen_job=${molgen_job:-$SLURM_JOB_ID} # in an array, the plain number of one job can be that of all of them
  export HPC_MOLGEN_REQUEUE=$1/.requeue-$SLURM_JOB_ID # the ranks leave the signal's name here, and their error beside it
  rm -f "$HPC_MOLGEN_REQUEUE" "$HPC_MOLGEN_REQUEUE.error"
  trap molgen_end EXIT
  trap : TERM # scancel signals this shell too: it has to wait for the ranks to save
  molgen_look "$@" || exit 2
  molgen_meet
  molgen_contain "$@" || exit 2
}

# After the warning before the time limit (SIGUSR2), or when Slurm preempts the job, go back into the queue; never after
# scancel or a failed rank. Slurm says RUNNING as long as neither scancel nor its own requeueing has come first.
molgen_end() {
  local status=$? word="" info=""
  set +eu
  if [ -f "$HPC_MOLGEN_REQUEUE" ]; then word=$(<"$HPC_MOLGEN_REQUEUE"); fi
  if [ "$status" != 0 ]; then info=$(scontrol show job --oneliner "$molgen_job"); fi
  if [[ $info == *" JobState=RUNNING "* && ($word == *SIGUSR2* || $info =~ PreemptTime=[0-9]) ]]; then
    echo "hpc-molgen: job $molgen_job goes back into the queue and will go on where it was"
    trap "" TERM # which Slurm sends at once
    scontrol requeue "$molgen_job" || echo "hpc-molgen: it could not; submit again, what was finished is kept"
  elif [ -f "$HPC_MOLGEN_REQUEUE.error" ]; then
    cat "$HPC_MOLGEN_REQUEUE.error"
  fi
  rm -f "$HPC_MOLGEN_REQUEUE" "$HPC_MOLGEN_REQUEUE.error"
}

# shellcheck disable=SC2016
molgen_look() {
  local dir seen=.seen-$SLURM_JOB_ID advice="choose a folder on a file system that all nodes share"
  for dir; do
    touch "$dir/$seen" && continue
    echo "hpc-molgen: $dir cannot be written on ${SLURMD_NODENAME:-$HOSTNAME}: $advice"
    return 2
  done
  if [ "${SLURM_JOB_NUM_NODES:-1}" -gt 1 ]; then # network file systems keep what they know of a folder for seconds
    srun --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 --cpus-per-task=1 --mpi=none bash -c "trap '' USR2"'
      for dir in "${@:3}"; do
        for _ in $(seq "${HPC_MOLGEN_LOOK_S:-20}"); do [ -w "$dir/$1" ] && continue 2; sleep 1; done
        echo "hpc-molgen: $dir is not seen on $SLURMD_NODENAME: $2"; exit 2
      done' look "$seen" "$advice" "$@" || return 2
  fi
  for dir; do rm -f "$dir/$seen"; done
}

# Torch's ranks meet on the first node, where this runs, at a port on which nobody listens (0A in the kernel's table) and at
# which no other job here begins to look; it lies below the range from which connections take theirs.
molgen_meet() {
  read -r MASTER_ADDR < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
  MASTER_PORT=$((15000 + SLURM_JOB_ID % 17000))
  while grep -qs ":$(printf %04X "$MASTER_PORT") [0-9A-F]*:0000 0A" /proc/net/tcp /proc/net/tcp6; do
    MASTER_PORT=$((15000 + RANDOM % 17000))
  done
  export MASTER_ADDR MASTER_PORT
}

# The words before a command that run it in the image HPC_MOLGEN_CONTAINER, if one is set. It sees the run's folders and
# HPC_MOLGEN_CONTAINER_BINDS (FROM or FROM:TO, commas between), and is told its SHA-256.
molgen_contain() {
  molgen_prefix=()
  if [ -z "${HPC_MOLGEN_CONTAINER:-}" ]; then return; fi
  local options sum binds=${HPC_MOLGEN_CONTAINER_BINDS:-} image=$HPC_MOLGEN_CONTAINER
  if ! molgen_prefix[0]=$(command -v apptainer || command -v singularity); then
    echo "hpc-molgen: neither apptainer nor singularity is on PATH for $image: load its module" && return 2
  elif [[ $image != *://* ]] && ! image=$(realpath -e "$image" 2>/dev/null); then
    echo "hpc-molgen: there is no image $HPC_MOLGEN_CONTAINER on ${SLURMD_NODENAME:-$HOSTNAME}: build it (containers/)" && return 2
  elif [ -f "$image" ]; then # it cannot be seen from inside; containers/build.sh leaves its sum beside it
    if [ -f "$image.sha256" ] && ! [ "$image.sha256" -ot "$image" ]; then sum=$(<"$image.sha256"); else sum=$(sha256sum "$image"); fi
    export HPC_MOLGEN_IMAGE_SHA256="${sum%% *}  $image"
  fi
  molgen_prefix+=(exec "${@/#/--bind=}" ${binds:+"--bind=$binds"})
  if [ -n "${SLURM_GPUS_ON_NODE:-}${SLURM_JOB_GPUS:-}" ]; then molgen_prefix+=(--nv); fi
  read -ra options <<<"${HPC_MOLGEN_CONTAINER_OPTIONS:-}"
  molgen_prefix+=("${options[@]}" "$image")
  export MPIR_CVAR_CH4_CMA_ENABLE=0 UCX_POSIX_USE_PROC_LINK=n # MPICH would hang: user namespaces refuse process_vm_readv
}

# An image sees its node's scratch and, past all its options, the number of ranks: none is alone in its world without noticing.
# shellcheck disable=SC2016 # a rank ignores the warning until Python handles it; as "torch" it gets torchrun's variables
molgen_rank='trap "" USR2
  export APPTAINERENV_HPC_MOLGEN_RANKS=$SLURM_NTASKS
  if [ -d "${TMPDIR:-}" ]; then export APPTAINER_BINDPATH=$TMPDIR${APPTAINER_BINDPATH:+,$APPTAINER_BINDPATH}; fi
  if [ "$0" = torch ]; then export RANK=$SLURM_PROCID WORLD_SIZE=$SLURM_NTASKS LOCAL_RANK=$SLURM_LOCALID; fi
  exec "$@"'

# molgen_ranks torch|mpi COMMAND...: run a command as all ranks of the job
molgen_ranks() {
  local kind=$1 mpi=${HPC_MOLGEN_MPI:-pmi2}
  shift
  if [ "$kind" = torch ]; then mpi=none; fi
  srun --mpi="$mpi" --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" \
    bash -c "$molgen_rank" "$kind" "${molgen_prefix[@]}" "$@"
}
