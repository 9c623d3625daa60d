#!/usr/bin/env bash
# The host code under ThreadSanitizer: a run of the demo model on 2 ranks with 2 threads each, stopped in order by
# SIGUSR1, continued from a snapshot, and one ended by an error of a rank and continued in 2 stages. Reports inside
# Open MPI are left out (tests/support/tsan.supp). Ends with "no data races", or prints the reports.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

build tsan -DGPTQD_TESTS=OFF gptq-dist
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
export TSAN_OPTIONS="suppressions=$PWD/tests/support/tsan.supp log_path=$folder/report exitcode=0 history_size=7"
export OPENBLAS_CORETYPE=${OPENBLAS_CORETYPE:-Haswell} OPENBLAS_NUM_THREADS=1

quantize() { # EXPECTED_STATUS WORD...: FAULT in the environment
  local expected=$1 status=0
  shift
  mpirun "${mpirun_flags[@]}" -np 2 build/tsan/gptq-dist --model jobs/demo/opt-7m --threads 2 --stall-seconds 120 --samples 8 --seqlen 64 \
    --calibration tests/golden/gptq/calib_tokens.safetensors --checkpoint-activations every=1 "$@" >"$folder/log" 2>&1 || status=$?
  if ((status != expected)); then
    cat "$folder/log" >&2
    echo "exit code $status, expected $expected" >&2
    return 1
  fi
}

GPTQ_DIST_FAULT=phase@1:usr1:10 quantize 75 --out "$folder/out"
quantize 0 --out "$folder/out"
# A rank that throws ends the process with its threads as they are.
TSAN_OPTIONS+=" report_thread_leaks=0" GPTQ_DIST_FAULT=phase@1:throw:6 quantize 70 --out "$folder/other"
quantize 0 --stages 2 --out "$folder/other"

if compgen -G "$folder/report.*" >/dev/null; then
  cat "$folder"/report.* >&2
  echo "$(cat "$folder"/report.* | grep -c 'WARNING: ThreadSanitizer') reports" >&2
  exit 1
fi
echo "no data races"
