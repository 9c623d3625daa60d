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
  mpirun) launcher=(mpirun --bind-to none) ;;
  *)
    echo "GPTQ_DIST_LAUNCHER=$GPTQ_DIST_LAUNCHER: expected srun or mpirun" >&2
    exit 64
    ;;
esac

# The program ends in time by itself when it knows the end of the job, which SLURM tells since 23.02.
if [[ -z ${SLURM_JOB_END_TIME:-} ]] && end=$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %e 2>/dev/null) &&
  end=$(date -d "$end" +%s 2>/dev/null); then
  export SLURM_JOB_END_TIME=$end
fi
