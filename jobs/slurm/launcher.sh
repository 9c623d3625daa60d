# shellcheck shell=bash
# What the batch scripts of this folder share; they source it. Sets `launcher`, the words that start the ranks, and
# `program`.

program=${GPTQ_DIST_PROGRAM:-}
if [[ -z $program ]]; then
  program=$root/build/cuda/gptq-dist
  [[ -x $program ]] || program=$root/build/cpu/gptq-dist
fi
if ! command -v "$program" >/dev/null; then
  echo "there is no $program: build it, or name the program in GPTQ_DIST_PROGRAM" >&2
  exit 64
fi

# shellcheck disable=SC2034
case ${GPTQ_DIST_LAUNCHER:-srun} in
  srun)
    # srun does not take over sbatch's --cpus-per-task by itself (SLURM 22.05 and newer).
    launcher=(srun --mpi=pmix --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" --distribution=block
      --gpu-bind=none)
    ;;
  mpirun)
    # mpirun has to notice lost nodes before --stall-seconds ends the run, or it waits for them for a quarter of an hour.
    launcher=(mpirun --bind-to none --mca oob_tcp_keepalive_time 6 --mca oob_tcp_keepalive_intvl 2
      --mca oob_tcp_keepalive_probes 3)
    ;;
  *)
    echo "GPTQ_DIST_LAUNCHER=$GPTQ_DIST_LAUNCHER: expected srun or mpirun" >&2
    exit 64
    ;;
esac

# The program stops in time by itself where it knows the end of the job; SLURM tells it since 23.02.
if [[ -z ${SLURM_JOB_END_TIME:-} ]]; then
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  end=$(squeue --noheader --jobs "${job:-$SLURM_JOB_ID}" --format %e 2>/dev/null) || end=
  if [[ $end == [0-9]* ]]; then # not for jobs without a limit
    SLURM_JOB_END_TIME=$(date -d "$end" +%s)
    export SLURM_JOB_END_TIME
  fi
fi
