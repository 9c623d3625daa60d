#!/usr/bin/env bash
# How fast merge and convert write, against cp of the same bytes on the same disk in the same run, both until the bytes are on the
# disk (cp, then sync of the copies). The model is an OPT with generated weights, rounded to nearest at 8 bits: only bytes matter here.
#   jobs/bench/merge.sh [--blocks N] [--rounds N] [--folder DIR]      12 blocks of 2048 x 8192, 3 rounds, build/bench/merge
# Each round copies and merges once, in turn; the medians count. Prints a table and writes build/bench/merge.json.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

blocks=12
rounds=3
folder=build/bench/merge
while (($# > 0)); do
  case $1 in
    --blocks) blocks=${2:?--blocks needs a number} ;;
    --rounds) rounds=${2:?--rounds needs a number} ;;
    --folder) folder=${2:?--folder needs a folder} ;;
    *)
      echo "usage: jobs/bench/merge.sh [--blocks N] [--rounds N] [--folder DIR]" >&2
      exit 64
      ;;
  esac
  shift 2
done
formats=(gptq compressed-tensors safetensors-float)

build cpu gptq-dist gptqd_make_opt
rm -rf "$folder"
mkdir -p "$folder" build/bench
build/cpu/gptqd_make_opt --out "$folder" --hidden 2048 --ffn 8192 --heads 32 --blocks "$blocks" --samples 1 --seqlen 128
say "rounding $blocks blocks of 2048 x 8192 to nearest"
build/cpu/gptq-dist --model "$folder/model" --work "$folder/work" --out "$folder/unused" --no-merge --bits 8 --method rtn --clip none \
  --act-order none >"$folder/quantize.log" 2>&1 || { cat "$folder/quantize.log" >&2 && exit 1; }

seconds() { # seconds COMMAND...
  local start
  start=$(date +%s.%N)
  "$@" >/dev/null 2>"$folder/err.log" || { cat "$folder/err.log" >&2 && return 1; }
  awk -v start="$start" -v end="$(date +%s.%N)" 'BEGIN { print end - start }'
}
copy() {
  cp -r "$1" "$2"
  sync "$2"/* "$2"
}
median() { printf '%s\n' "$@" | sort -g | awk '{ value[NR] = $1 } END { print value[int((NR + 1) / 2)] }'; }

printf '\n%-20s %10s %12s %12s %8s\n' format bytes 'merge GB/s' 'cp GB/s' ratio
results=()
for format in "${formats[@]}"; do
  merges=() copies=()
  for ((round = 0; round < rounds; ++round)); do
    rm -rf "$folder/out" "$folder/copy"
    sync
    merges+=("$(seconds build/cpu/gptq-dist merge "$folder/work" --format "$format" --out "$folder/out")")
    copies+=("$(seconds copy "$folder/out" "$folder/copy")")
    cmp "$folder/out/model.safetensors" "$folder/copy/model.safetensors"
  done
  bytes=$(du -sb "$folder/out" | cut -f1)
  results+=("$(awk -v format="$format" -v bytes="$bytes" -v merge="$(median "${merges[@]}")" -v copy="$(median "${copies[@]}")" 'BEGIN {
    printf "%-20s %10d %12.2f %12.2f %8.2f\n", format, bytes, bytes / merge / 1e9, bytes / copy / 1e9, copy / merge > "/dev/stderr"
    printf "{\"format\": \"%s\", \"bytes\": %d, \"merge_seconds\": %s, \"cp_seconds\": %s}", format, bytes, merge, copy }')")
done 2>&1
(
  IFS=,
  printf '[%s]\n' "${results[*]}"
) >build/bench/merge.json
rm -rf "$folder"
