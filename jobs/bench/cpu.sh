#!/usr/bin/env bash
# How close the CPU backend comes to this machine's limits, all in one run on one machine:
#   speed    model_flops / seconds.blocks of a quantization against the fastest SGEMM of as many single-threaded workers
#   memory   the backend's peak of a rank against what it cannot do without: one block in fp32, its hidden states, and the
#            widest input of a phase
# The model is an OPT of 576 x 1536 with generated weights, 128 samples of 512 random tokens, settings by default except for
# groups of 64, which divide 576.
#   jobs/bench/cpu.sh [--blocks N] [--workers N]      30 blocks, 2 workers; a few minutes
# Prints tables and writes build/bench/cpu.json.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

blocks=30
workers=2
while (($# > 0)); do
  case $1 in
    --blocks) blocks=${2:?--blocks needs a number} ;;
    --workers) workers=${2:?--workers needs a number} ;;
    *)
      echo "usage: jobs/bench/cpu.sh [--blocks N] [--workers N]" >&2
      exit 64
      ;;
  esac
  shift 2
done
hidden=576 ffn=1536 heads=9 samples=128 seqlen=512 group=64
sgemm_size=3072
out=build/bench
unset OPENBLAS_CORETYPE # the program's choice of kernels is part of what is measured

greater() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b) }'; }
ratio() { awk -v a="$1" -v b="$2" -v digits="$3" 'BEGIN { printf "%.*f", digits, a / b }'; }

jobs/install_dependencies.sh time
build cpu gptq-dist gptqd_benchmarks
rm -rf "$out"
mkdir -p "$out"
build/cpu/gptqd_make_opt --out "$out" --hidden $hidden --ffn $ffn --heads $heads --blocks "$blocks" --samples $samples --seqlen $seqlen

say "SGEMM of $sgemm_size x $sgemm_size, $workers workers with one thread each"
peak=0 peak_kernels='' chosen='' sgemm_json=''
# measure [CORETYPE]: prints "NAME RATE"; nothing where the CPU or this OpenBLAS lacks the kernels.
measure() {
  local result
  result=$(env ${1:+OPENBLAS_CORETYPE="$1"} build/cpu/gptqd_sgemm_peak "$workers" $sgemm_size 4 2>/dev/null) || return 0
  if [[ -z ${1:-} || ${result% *} == "${1^^}" || ${result% *} == "$1" ]]; then
    echo "$result"
  fi
}
consider() { # NAME RATE
  if greater "$2" "$peak"; then
    peak=$2 peak_kernels=$1
  fi
}
read -r chosen rate <<<"$(measure)"
consider "$chosen" "$rate"
printf '%-16s %8.1f Gflop/s  (the program'\''s choice)\n' "$chosen" "$rate"
sgemm_json="\"$chosen\": $rate"
for kernels in Haswell Zen SkylakeX Cooperlake SapphireRapids Sandybridge NEOVERSEN1 NEOVERSEV1 NEOVERSEN2; do
  [[ $kernels == "$chosen" ]] && continue
  read -r name rate <<<"$(measure $kernels)"
  [[ -n $name ]] || continue
  consider "$name" "$rate"
  printf '%-16s %8.1f Gflop/s\n' "$name" "$rate"
  sgemm_json+=", \"$name\": $rate"
done

quantize() { # RANKS THREADS
  local name=np$1
  say "quantizing $blocks blocks, $1 rank(s) x $2 thread(s)"
  mpirun -np "$1" "${mpirun_flags[@]}" /usr/bin/time -a -o "$out/$name.resident" -f %M \
    build/cpu/gptq-dist --model "$out/model" --calibration "$out/tokens.safetensors" --group-size $group --threads "$2" --out "$out/$name" 2>"$out/$name.log" || {
    cat "$out/$name.log" >&2
    return 1
  }
}
quantize 1 "$workers"
configurations=("1 $workers")
if ((workers % 2 == 0)); then
  quantize 2 $((workers / 2))
  configurations+=("2 $((workers / 2))")
fi
# Other tenants of a shared machine come and go: the limit is the best of before and after.
read -r name rate <<<"$(measure "$([[ $peak_kernels == "$chosen" ]] || echo "$peak_kernels")")"
consider "$name" "$rate"

say "result: the peak is $peak Gflop/s ($peak_kernels)"
format='%5s %8s %9s %9s %8s | %12s %12s %7s | %12s\n'
printf "$format" ranks threads seconds Gflop/s 'of peak' 'peak MB/rank' 'needs MB' ratio 'resident MB'
runs_json=''
for configuration in "${configurations[@]}"; do
  read -r ranks threads <<<"$configuration"
  report=$out/np$ranks.work/report.json
  seconds=$(json_number "$report" blocks seconds)
  gigaflops=$(awk -v flops="$(json_number "$report" model_flops)" -v seconds="$seconds" 'BEGIN { print flops / seconds / 1e9 }')
  bytes=$(awk '/"peak_bytes_per_rank"/ { inside = 1; next } inside && /\]/ { exit } inside && $1 + 0 > most { most = $1 + 0 } END { printf "%.0f", most }' "$report")
  needs=$((4 * (4 * hidden * hidden + 2 * hidden * ffn + samples * seqlen / ranks * (hidden + ffn))))
  resident=$(awk '$1 + 0 > most { most = $1 + 0 } END { printf "%.0f", most * 1024 }' "$out/np$ranks.resident")
  printf "$format" "$ranks" "$threads" "$(ratio "$seconds" 1 1)" "$(ratio "$gigaflops" 1 1)" "$(ratio "$gigaflops" "$peak" 3)" \
    "$(ratio "$bytes" 1e6 1)" "$(ratio "$needs" 1e6 1)" "$(ratio "$bytes" "$needs" 2)" "$(ratio "$resident" 1e6 1)"
  runs_json+=${runs_json:+, }$(printf '{"ranks": %s, "threads": %s, "seconds": %s, "gigaflops": %s, "of_peak": %s, "peak_bytes_per_rank": %s, "needed_bytes_per_rank": %s, "memory_ratio": %s, "resident_bytes_per_rank": %s}' \
    "$ranks" "$threads" "$seconds" "$gigaflops" "$(ratio "$gigaflops" "$peak" 4)" "$bytes" "$needs" "$(ratio "$bytes" "$needs" 4)" "$resident")
done
printf '{"cpu": "%s", "workers": %s,\n "model": {"hidden": %s, "ffn": %s, "heads": %s, "blocks": %s, "samples": %s, "seqlen": %s, "group_size": %s},\n "sgemm": {"size": %s, "gigaflops": {%s}, "peak": %s, "peak_kernels": "%s", "chosen_kernels": "%s"},\n "runs": [%s]}\n' \
  "$(awk -F': ' '/^model name/ { print $2; exit }' /proc/cpuinfo)" "$workers" $hidden $ffn $heads "$blocks" $samples $seqlen $group \
  $sgemm_size "$sgemm_json" "$peak" "$peak_kernels" "$chosen" "$runs_json" >"$out/cpu.json"
echo "written to $out/cpu.json"
