#!/usr/bin/env bash
# The whole test suite, as CI runs it: installs what is missing, builds everything with warnings as errors, fuzzes the
# readers of untrusted files, compiles the CUDA code where nvcc is, runs the tests, kills runs, and starts a SLURM and three
# hosts where it is root. Anything that fails gives an exit status other than 0.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

fuzzers=(artifact_folder safetensors_header config_json corpus npy_header pickle shard_file tokenizer_json work_folder)

fuzz() { # TARGET SECONDS, its seeds in tests/fuzz/seeds/TARGET
  local corpus=build/fuzz/inputs/$1 log=build/fuzz/$1.log
  mkdir -p "$corpus"
  if ! (cd "$corpus/.." && UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 "$OLDPWD/build/fuzz/$1" -max_total_time="$2" -timeout=10 \
    -print_final_stats=1 "$1" "$OLDPWD/tests/fuzz/seeds/$1") >"$log" 2>&1; then
    tail -n 60 "$log" >&2
    echo "$1: the fuzzer found an input that fails; it lies in build/fuzz/inputs" >&2
    return 1
  fi
  printf '%s: %s\n' "$1" "$(grep -E '^Done' "$log")"
}

# part NAME COMMAND...: with its output in build/NAME.log, which is shown when it has ended.
part() {
  local log=build/$1.log status=0
  "${@:2}" >"$log" 2>&1 || status=$?
  printf '\n==> %s\n%s\n' "$1" "$(<"$log")"
  if ((status != 0)); then
    echo "$1 failed: exit status $status of ${*:2}" >&2
    return 1
  fi
}

say "packages"
jobs/install_dependencies.sh clang libclang-rt-dev
if ((EUID == 0)); then
  # For SLURM and the three hosts, which run at the same time, as apt does not. Where they cannot be had these say so.
  jobs/install_dependencies.sh iproute2 openssh-client openssh-server procps || true
  jobs/install_dependencies.sh munge slurmctld slurmd slurm-client || true
fi
echo "all there"

say "build, warnings are errors"
build cpu -DGPTQD_WERROR=ON -DGPTQD_TESTS=ON all gptqd_benchmarks

say "fuzzing"
probe='extern "C" int LLVMFuzzerTestOneInput(const unsigned char*, unsigned long) { return 0; }'
if clang++ -fsanitize=fuzzer,address,undefined -x c++ - -o build/has_fuzzer <<<"$probe" 2>/dev/null; then
  build fuzz -DGPTQD_WERROR=ON "${fuzzers[@]}" shard_image
  export -f fuzz
  for fuzzer in "${fuzzers[@]}"; do
    case $fuzzer in
      safetensors_header) seconds=20 ;; # what people download
      *) seconds=5 ;;
    esac
    echo "$fuzzer $seconds"
  done | xargs -P "$(nproc)" -L 1 bash -c 'set -euo pipefail; fuzz "$@"' fuzz
  if ! result=$(build/fuzz/shard_image 5000 2>build/fuzz/shard_image.log); then
    tail -n 60 build/fuzz/shard_image.log >&2
    echo "shard_image: $result" >&2
    exit 1
  fi
  echo "shard_image: $result"
else
  echo "skipped: no clang++ with libFuzzer here"
fi

say "CUDA"
if command -v nvcc >/dev/null; then
  build cuda -DGPTQD_WERROR=ON -DGPTQD_TESTS=OFF -DCMAKE_CUDA_ARCHITECTURES=90a-real gptqd_kernels_cuda gptqd_comm_nccl
else
  echo "skipped: no nvcc on PATH"
fi

say "tests"
# Left out: the published code's other configurations and whole texts, ten minutes (ctest --preset cpu -R Other/), and
# other programs that load our artifacts, twelve where they are installed (ctest --preset cpu -L interop).
# Two more at a time than there are processors: many wait for something.
ctest --preset cpu --output-on-failure -j "$(($(nproc) + 2))" -E '\.Other/|^interop$'

say "kills, three hosts, SLURM at the same time: each waits for half of its own"
export -f part
xargs -P 3 -L 1 bash -c 'set -euo pipefail; part "$@"' part <<'PARTS'
kills jobs/bench/soak.sh 20
three-hosts jobs/test-cluster.sh
SLURM jobs/test-slurm.sh
PARTS

say "all of it passed in $SECONDS s"
