#!/usr/bin/env bash
# Measures one GPU's ceilings and each kernel, quantizes models of known shapes with generated weights on it, and prints
# seconds a block by stage beside what the ceilings leave. Needs a build with CUDA: cmake --preset cuda && cmake --build
# --preset cuda --target gptq-dist gptqd_kernel_bench. For several GPUs: scaling.sh.
#   jobs/bench/gpu.sh [MODEL...]     MODEL: a synthetic model without "synthetic:"; default: three large ones
#   GPTQD_PROGRAM, GPTQD_KERNEL_BENCH  the programs, default those of build/cuda; without a kernel bench its part is left out
#   GPTQD_BENCH_FLAGS  more options for the program;  GPTQD_BENCH_OUT  where the reports go, default build/bench
#   TMPDIR             where the shards go: 4 to 5 GB for four blocks of BLOOM-176B
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

program=${GPTQD_PROGRAM:-build/cuda/gptq-dist}
kernel_bench=${GPTQD_KERNEL_BENCH:-build/cuda/gptqd_kernel_bench}
reports=${GPTQD_BENCH_OUT:-build/bench}
models=("$@")
((${#models[@]})) || models=(llama-3-8b opt-66b:blocks=3 bloom-176b:blocks=3)
mkdir -p "$reports"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

ceilings=()
if [[ -x $kernel_bench ]]; then
  "$kernel_bench" --json "$reports/kernels.json"
  ceilings=(--ceilings "$reports/kernels.json")
  echo
fi
files=()
for model in "${models[@]}"; do
  # shellcheck disable=SC2086
  if ! "$program" --device cuda --model "synthetic:$model" --out "$scratch/out" ${GPTQD_BENCH_FLAGS:-} \
    >"$scratch/log" 2>&1; then
    tail -n 20 "$scratch/log" >&2
    exit 1
  fi
  files+=("$reports/${model//:/-}.json")
  cp "$scratch/out.work/report.json" "${files[-1]}"
  rm -rf "$scratch/out.work"
  awk -v model="$model" '/"seconds": *\{/ { inside = 1 } inside && /"blocks":/ { sub(/,$/, "", $2)
    printf "%s: %.2f s from the first embedding to the last shard\n", model, $2; exit }' "${files[-1]}"
done
echo
"$program" plan --measured "${files[@]}" --ranks 1 "${ceilings[@]}"
