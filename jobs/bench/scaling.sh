#!/usr/bin/env bash
# Quantizes models of known shapes with generated weights on 1, 2, 4 and 8 GPUs, as far as there are some, and prints
# seconds a block by stage, idle and exposed time of each rank, efficiency, whether the bytes are those of one GPU, and
# what 8, 16 and 64 GPUs would do. Needs a build with CUDA: cmake --preset cuda && cmake --build --preset cuda.
#   jobs/bench/scaling.sh [MODEL...]     MODEL: a synthetic model without "synthetic:"; default: three large ones
#   GPTQD_PROGRAM      the program, default build/cuda/gptq-dist;  GPTQD_BENCH_FLAGS  more options for it
#   GPTQD_BENCH_RANKS  numbers of GPUs, default those of 1 2 4 8 that there are
#   GPTQD_BENCH_OUT    where the reports go, default build/scaling
#   TMPDIR             where the shards go: 4 to 5 GB for four blocks of BLOOM-176B
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

program=${GPTQD_PROGRAM:-build/cuda/gptq-dist}
reports=${GPTQD_BENCH_OUT:-build/scaling}
models=("$@")
((${#models[@]})) || models=(llama-3-8b:blocks=6 opt-66b:blocks=4 bloom-176b:blocks=4)
gpus=$(nvidia-smi --list-gpus 2>/dev/null | wc -l)
read -r -a counts <<<"${GPTQD_BENCH_RANKS:-1 2 4 8}"
mkdir -p "$reports"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# The checksums of a run's shards, which are in their sidecars.
checksums() { grep -ho '"xxh3_128": *"[0-9a-f]*"' "$1".work/shards/*.json; }

files=()
for model in "${models[@]}"; do
  first=
  for ranks in "${counts[@]}"; do
    if ((ranks > gpus)) && [[ -z ${GPTQD_BENCH_RANKS:-} ]]; then
      continue
    fi
    out=$scratch/out
    start=$SECONDS
    # shellcheck disable=SC2086
    if ! mpirun "${mpirun_flags[@]}" -np "$ranks" "$program" --device "${GPTQD_BENCH_DEVICE:-cuda}" \
      --model "synthetic:$model" --out "$out" ${GPTQD_BENCH_FLAGS:-} >"$scratch/log" 2>&1; then
      tail -n 20 "$scratch/log" >&2
      exit 1
    fi
    now=$(checksums "$out")
    [[ -n $now ]] || { echo "no checksums in $out.work/shards" >&2; exit 1; }
    first=${first:-$now}
    same="the same bytes"
    [[ $now == "$first" ]] || same="OTHER BYTES than on ${counts[0]} GPUs"
    echo "$model on $ranks GPUs: $((SECONDS - start)) s in all, $same"
    files+=("$reports/${model//:/-}-np$ranks${GPTQD_BENCH_SUFFIX:-}.json")
    cp "$out.work/report.json" "${files[-1]}"
    rm -rf "$out.work"
    [[ $same == "the same bytes" ]] || exit 1
  done
done
echo
"$program" plan --measured "${files[@]}" --ranks 1 2 4 8 16 64
