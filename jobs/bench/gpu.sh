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

echo "Seconds a block, on average and by stage; the whole model by extrapolation; peak memory of a rank."
printf '%-24s %5s | %7s %7s %7s %7s %7s %7s %7s %7s %7s %7s | %8s %8s %7s\n' model ranks block load forward hessian \
  factor grids solve finish write idle blocks model GB
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
    function value() { sub(/,$/, "", $2); return $2 }
    /"peak_bytes_per_rank"/ { getline; peak = $1 + 0 }
    /"rank_seconds"/ { inside = 1 }  # of the first rank: its blocks lie in the first inner array
    inside && /^  \]/ { inside = 0; done = 1 }
    inside && !done && /"block":/ { ++n }
    inside && $2 ~ /^[0-9]/ { key = $1; gsub(/[":]/, "", key); seconds[n, key] = value() }
    !inside && /"blocks":/ && $2 ~ /^[0-9.]+,?$/ { blocks = value() }
    END {
      count = split("wall load forward hessian factor grids solve finish write idle", keys, " ")
      printf "%-24s %5d |", model, ranks
      for (k = 1; k <= count; ++k) {
        sum = 0
        for (i = n > 1 ? 2 : 1; i <= n; ++i) sum += seconds[i, keys[k]]
        mean[k] = sum / (n > 1 ? n - 1 : 1)
        printf " %7.3f", mean[k]
      }
      printf " | %8.2f %8.1f %7.2f\n", blocks, mean[1] * all, peak / 1e9
    }' "$out.work/report.json"
  cp "$out.work/report.json" "build/bench-${model//:/-}-np$ranks.json" 2>/dev/null || true
  rm -rf "$out.work"
done
