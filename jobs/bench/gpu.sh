#!/usr/bin/env bash
# Quantizes models of known shapes with generated weights on this machine's GPUs and prints seconds a block and, from
# them, for the whole model. Needs a build with CUDA: cmake --preset cuda && cmake --build --preset cuda.
#   jobs/bench/gpu.sh [RANKS] [MODEL...]     MODEL: a synthetic model without "synthetic:"; default: two large ones
#   GPTQD_PROGRAM  the program, default build/cuda/gptq-dist;  GPTQD_BENCH_FLAGS  more options for it
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

program=${GPTQD_PROGRAM:-build/cuda/gptq-dist}
ranks=${1:-1}
shift || true
models=("$@")
((${#models[@]})) || models=(llama-3-8b opt-66b:blocks=2 bloom-176b:blocks=2)
declare -A all_blocks=([opt-6.7b]=32 [opt-66b]=64 [opt-175b]=96 [bloom-7b1]=30 [bloom-176b]=70 [llama-3-8b]=32
  [llama-3-70b]=80 [mistral-7b]=32 [qwen3-32b]=64)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

printf '%-24s %6s %10s %10s %12s %10s\n' model ranks "s/block" "s, blocks" "s, model" "GB/rank"
for model in "${models[@]}"; do
  out=$scratch/${model//:/-}
  # shellcheck disable=SC2086
  if ! mpirun "${mpirun_flags[@]}" -np "$ranks" "$program" --device cuda --model "synthetic:$model" --out "$out" \
    ${GPTQD_BENCH_FLAGS:-} >"$scratch/log" 2>&1; then
    tail -n 20 "$scratch/log" >&2
    exit 1
  fi
  # The first block pays for loading libraries and growing the arena: it counts only where it is alone.
  awk -v model="$model" -v ranks="$ranks" -v all="${all_blocks[${model%%:*}]}" '
    /"peak_bytes_per_rank"/ { getline; peak = $1 + 0 }
    /"block_seconds"/ { inside = 1 }
    inside && /"total":/ { sub(/,$/, "", $2); total[++n] = $2 }
    inside && /^ \]/ { inside = 0 }
    /"blocks":/ && !blocks && $2 ~ /^[0-9.]+,?$/ { sub(/,$/, "", $2); blocks = $2 }
    END {
      for (i = n > 1 ? 2 : 1; i <= n; ++i) { sum += total[i]; ++count }
      block = sum / count
      printf "%-24s %6d %10.3f %10.2f %12.1f %10.2f\n", model, ranks, block, blocks, block * all, peak / 1e9
    }' "$out.work/report.json"
  cp "$out.work/report.json" "build/bench-${model//:/-}-np$ranks.json" 2>/dev/null || true
  rm -rf "$out.work"
done
