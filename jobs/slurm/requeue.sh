#!/usr/bin/env bash
# Runs a launcher inside a SLURM batch job and puts the job back into the queue when the run stopped in an orderly way
# (exit status 75: blocks were finished, run again). In a batch script, as its last line:
#   exec jobs/slurm/requeue.sh srun --mpi=pmix --kill-on-bad-exit=1 gptq-dist --model ...
# `#SBATCH --signal=B:USR1@300` signals the batch shell alone: the trap below passes it on to the launcher, which passes
# it on to every rank. The launcher runs in the background because bash runs traps only when nothing is in the
# foreground.
set -uo pipefail

if (($# == 0)); then
  echo "usage: requeue.sh LAUNCHER [ARGUMENT...]" >&2
  exit 64
fi

launcher=
pass_on() { # SIGNAL
  echo "requeue.sh: SIG$1 at $(date '+%F %T'), passed on to the ranks" >&2
  [[ -z $launcher ]] || kill -s "$1" "$launcher" 2>/dev/null
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

"$@" &
launcher=$!

# A signal ends `wait` although the launcher still runs; bash keeps the status of one that has ended.
while wait "$launcher"; status=$?; kill -0 "$launcher" 2>/dev/null; do :; done
wait "$launcher"
status=$?

if ((status == 75)); then
  echo "requeue.sh: exit status 75, stopped in an orderly way; the same command continues" >&2
fi
if ((status == 75)) && [[ -n ${SLURM_JOB_ID:-} ]]; then
  # SLURM_JOB_ID may stand for a whole array.
  job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}
  job=${job:-$SLURM_JOB_ID}
  trap '' TERM # SLURM ends what is left of the job at once; scontrol would not live to tell that it worked
  if scontrol requeue "$job"; then
    echo "requeue.sh: job $job goes on later (it was restarted ${SLURM_RESTART_COUNT:-0} times so far)" >&2
  else
    echo "requeue.sh: job $job cannot be requeued; submit the same command again, it continues" >&2
  fi
fi
exit "$status"
