#!/usr/bin/env bash
# From a bare Debian or Ubuntu to a quantized model: installs what is missing, builds gptq-dist, quantizes a small OPT on
# two MPI ranks with round-to-nearest and with GPTQ, and compares the perplexities. A few minutes on two cores. Results
# are kept in build/demo: run again, it is a matter of seconds.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

model=jobs/demo/opt-7m
calibration=jobs/demo/calib.txt
text=jobs/demo/eval.txt
out=build/demo
program=build/cpu/gptq-dist
ranks=2

# run ARGUMENT...: gptq-dist on all ranks.
run() {
  if ! mpirun -np "$ranks" "${mpirun_flags[@]}" "$program" "$@"; then
    echo "gptq-dist $* failed. Should it be the rest of an older demo that is in the way: rm -r $out" >&2
    return 1
  fi
}

quantize() { # METHOD BITS
  say "$1 at $2 bits"
  run --model "$model" --calibration "$calibration" --seqlen 512 --method "$1" --bits "$2" --out "$out/$1-w$2"
}

evaluate() { # MODEL NAME
  local result=$out/$2.json weights=$1/model.safetensors
  if [[ $result -nt $weights && $result -nt $program ]]; then
    printf '%s: perplexity %.4f, kept from an earlier demo\n' "$2" "$(json_number "$result" perplexity)"
  else
    printf '%s: ' "$2"
    run eval --model "$1" --text "$text" --seqlen 512 --windows 128 --json "$result"
  fi
}

row() { # NAME METHOD-LABEL BITS SECONDS
  awk -v name="$2" -v bits="$3" -v perplexity="$(json_number "$out/$1.json" perplexity)" \
    -v bytes="$(json_number "$out/$1.json" weight_bytes)" -v seconds="$4" \
    'BEGIN { printf "%-17s %5s %11.2f %11.2f MB %9s\n", name, bits, perplexity, bytes / 1e6, seconds == "-" ? "-" : sprintf("%.1f", seconds) }'
}

cat <<END
gptq-dist demo: a language model of 7 million parameters (OPT, 6 blocks, 256 wide) goes from 16 bits a weight to 4 and 3,
first by rounding to the nearest value, then by GPTQ, on $ranks MPI ranks. Everything it makes goes to build/.
END

say "packages"
jobs/install_dependencies.sh
echo "all there"

say "build"
build cpu gptq-dist

mkdir -p "$out"
for bits in 4 3; do
  for method in rtn gptq; do
    quantize "$method" "$bits"
  done
done

say "perplexity on 128 windows of 512 tokens of $text"
evaluate "$model" float
for bits in 4 3; do
  for method in rtn gptq; do
    evaluate "$out/$method-w$bits" "$method-w$bits"
  done
done

say "result (lower perplexity is better; seconds are those of the quantization)"
printf '%-17s %5s %11s %14s %9s\n' model bits perplexity weights seconds
row float "float" 16 -
for bits in 4 3; do
  row "rtn-w$bits" "round to nearest" "$bits" "$(json_number "$out/rtn-w$bits.work/report.json" total seconds)"
  row "gptq-w$bits" "GPTQ" "$bits" "$(json_number "$out/gptq-w$bits.work/report.json" total seconds)"
done
printf '\nThe 4-bit GPTQ artifact, a Hugging Face folder in the GPTQ layout: %s\n' "$PWD/$out/gptq-w4"
