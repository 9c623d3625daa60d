#!/usr/bin/env bash
# How fast texts become tokens, against Hugging Face tokenizers (from PyPI, in build/bench/tokenizer/venv) on one thread each:
# jobs/demo/eval.txt as one text, the tokenizers of tests/golden/tokenizers. Rounds alternate between the two programs, each
# round is a process of its own, and its first run, which knows no word, is told apart from the median of the others.
# The ids must be the same.
#   jobs/bench/tokenizer.sh [--rounds N] [--runs N]      3 rounds of 3 runs; two minutes
# Prints a table (the best round of each) and writes build/bench/tokenizer/tokenizer.json.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

rounds=3
runs=3
while (($# > 0)); do
  case $1 in
    --rounds) rounds=${2:?--rounds needs a number} ;;
    --runs) runs=${2:?--runs needs a number} ;;
    *)
      echo "usage: jobs/bench/tokenizer.sh [--rounds N] [--runs N]" >&2
      exit 64
      ;;
  esac
  shift 2
done
version=0.23.3 text=jobs/demo/eval.txt out=build/bench/tokenizer
bytes=$(stat -c %s $text)

jobs/install_dependencies.sh python3-venv
build cpu gptqd_tokenizer_speed
mkdir -p $out
if [[ ! -x $out/venv/bin/python ]]; then
  python3 -m venv $out/venv
fi
$out/venv/bin/python -m pip install --quiet --disable-pip-version-check tokenizers==$version
export TOKENIZERS_PARALLELISM=false RAYON_NUM_THREADS=1

rate() { awk -v bytes="$bytes" -v seconds="$1" 'BEGIN { printf "%.1f", bytes / seconds / 1e6 }'; }
smaller() { awk -v a="$1" -v b="$2" 'BEGIN { print (b == "" || a < b) ? a : b }'; }

say "$text as one text, MB/s on one thread, tokenizers $version"
format='%-14s %10s %10s %7s %12s %12s %7s\n'
# shellcheck disable=SC2059
printf "$format" tokenizer 'gptq-dist' reference ratio 'first run' reference ratio
json=''
for folder in tests/golden/tokenizers/*/; do
  name=$(basename "$folder")
  own_first='' own='' reference_first='' reference=''
  for ((round = 0; round < rounds; ++round)); do
    read -r first median <<<"$(build/cpu/gptqd_tokenizer_speed "$folder" $text "$runs" "$out/ids")"
    own_first=$(smaller "$first" "$own_first") own=$(smaller "$median" "$own")
    read -r first median <<<"$($out/venv/bin/python jobs/bench/tokenizer_reference.py "$folder" $text "$runs" "$out/ids")"
    reference_first=$(smaller "$first" "$reference_first") reference=$(smaller "$median" "$reference")
  done
  ratio=$(awk -v a="$reference" -v b="$own" 'BEGIN { printf "%.1f", a / b }')
  first_ratio=$(awk -v a="$reference_first" -v b="$own_first" 'BEGIN { printf "%.1f", a / b }')
  # shellcheck disable=SC2059
  printf "$format" "$name" "$(rate "$own")" "$(rate "$reference")" "$ratio" "$(rate "$own_first")" \
    "$(rate "$reference_first")" "$first_ratio"
  json+=${json:+, }$(printf '{"tokenizer": "%s", "seconds": %s, "reference_seconds": %s, "ratio": %s, "first_seconds": %s, "reference_first_seconds": %s, "first_ratio": %s}' \
    "$name" "$own" "$reference" "$ratio" "$own_first" "$reference_first" "$first_ratio")
done
printf '{"cpu": "%s", "text_bytes": %s, "reference": "tokenizers %s", "rounds": %s, "runs": %s,\n "results": [%s]}\n' \
  "$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)" "$bytes" $version "$rounds" "$runs" "$json" >$out/tokenizer.json
echo "written to $out/tokenizer.json"
