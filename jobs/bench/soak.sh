#!/usr/bin/env bash
# Kills runs and looks whether anything is lost: soak.sh N [SEED] [PROGRAM]
#
# N times: a run of the demo model on 1, 2 or 4 ranks, of which a random one gets SIGKILL, every other time at a random
# moment, else at a random passage of a point around write, fsync and rename (GPTQ_DIST_FAULT); then the same command
# again on 1, 2 or 4 ranks until it ends. The artifact has to be that of an undisturbed run, no process may be left.
# A run that ends before its kill does not count. Ends with a line "N of N identical artifacts".
set -euo pipefail
wanted=${1:?usage: soak.sh N [SEED] [PROGRAM]}
seed=${2:-1}
program=$(realpath "${3:-$(dirname "${BASH_SOURCE[0]}")/../../build/cpu/gptq-dist}")
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

RANDOM=$seed
export OPENBLAS_CORETYPE=${OPENBLAS_CORETYPE:-Haswell}
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
points=(file.create file.write file.written file.fsync file.rename file.renamed folder.fsync file.withdraw shard.listed merge folder.rename
  snapshot.write snapshot.remove)
rank_counts=(1 2 4)

pick() { # WORD...: one of them
  local words=("$@")
  echo "${words[RANDOM % $#]}"
}

job() { # RANKS OUT: the command of a run, in $command
  command=("$program" --model jobs/demo/opt-7m --calibration tests/golden/gptq/calib_tokens.safetensors --samples 16 --seqlen 128
    --checkpoint-activations every=2 --out "$2")
  (($1 == 1)) || command=(mpirun "${mpirun_flags[@]}" -np "$1" "${command[@]}")
}

pid_of_rank() { # LAUNCHER RANK RANKS
  local pid
  if (($3 == 1)); then
    echo "$1"
    return
  fi
  for pid in $(pgrep -P "$1"); do
    if { tr '\0' '\n' <"/proc/$pid/environ" | grep -qx "OMPI_COMM_WORLD_RANK=$2"; } 2>/dev/null; then
      echo "$pid"
      return
    fi
  done
}

# Waits for the end of a run; its exit status in $status. Where a rank dies while it connects, mpirun may lock itself up
# when all ranks are gone (Open MPI 4.1, in PMIx_server_finalize): it is killed, and that is said.
wait_for() { # LAUNCHER RANKS
  local tenths
  for ((tenths = 0; tenths < 1200; ++tenths)); do
    kill -0 "$1" || break
    sleep 0.1
  done 2>/dev/null
  if kill -0 "$1" 2>/dev/null; then
    if (($2 == 1)) || pgrep --parent "$1" --runstates D,R,S >/dev/null; then
      cat "$folder/log" >&2
      echo "a run on $2 rank(s) does not end" >&2
      exit 1
    fi
    echo "mpirun does not end, though all ranks are gone: killed"
    kill -KILL "$1"
  fi
  status=0
  { wait "$1" || status=$?; } 2>/dev/null
}

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

undisturbed() { # RANKS OUT
  job "$1" "$2"
  "${command[@]}" >"$folder/log" 2>&1 || {
    cat "$folder/log" >&2
    echo "the run on $1 rank(s) failed" >&2
    exit 1
  }
}

say "undisturbed runs"
declare -A duration
for ranks in "${rank_counts[@]}"; do
  start=$(milliseconds)
  undisturbed "$ranks" "$folder/reference-$ranks"
  duration[$ranks]=$(($(milliseconds) - start))
  diff -r "$folder/reference-1" "$folder/reference-$ranks"
done

say "$wanted kills, seed $seed"
start_of_all=$SECONDS
killed=0 tries=0 identical=0
while ((killed < wanted)); do
  tries=$((tries + 1))
  if ((tries > 20 * wanted + 20)); then
    echo "only $killed of $wanted kills met their run" >&2
    exit 1
  fi
  ranks=$(pick "${rank_counts[@]}")
  rank=$((RANDOM % ranks))
  out=$folder/out-$tries
  job "$ranks" "$out"
  if ((killed % 2)); then
    point=$(pick "${points[@]}")
    how="$point@$rank:kill:$((1 + RANDOM % 12))"
    GPTQ_DIST_FAULT=$how "${command[@]}" >"$folder/log" 2>&1 &
    launcher=$!
  else
    moment=$((RANDOM * 32768 + RANDOM)) # 30 bits
    moment=$((moment % duration[$ranks]))
    how="after $moment ms"
    "${command[@]}" >"$folder/log" 2>&1 &
    launcher=$!
    sleep "$((moment / 1000)).$(printf %03d $((moment % 1000)))"
    pid=$(pid_of_rank "$launcher" "$rank" "$ranks")
    [[ -z $pid ]] || kill -KILL "$pid" 2>/dev/null || true
  fi
  wait_for "$launcher" "$ranks"
  if ((status == 0)) || grep -q 'has to be numbers\|there is no point' "$folder/log"; then
    rm -rf "$out" "$out.work"
    continue
  fi
  killed=$((killed + 1))
  again=$(pick "${rank_counts[@]}")
  undisturbed "$again" "$out"
  same=no
  if diff -rq "$folder/reference-1" "$out" && [[ -z $(find "$out.work" "$out" -name '*.tmp' -o -name '*.partial') ]] && ! pgrep -f "$out" >/dev/null; then
    same=yes
    identical=$((identical + 1))
    rm -rf "$out" "$out.work"
  fi
  printf '%3d: rank %d of %d killed %s (status %d); again on %d: %s\n' "$killed" "$rank" "$ranks" "$how" "$status" "$again" \
    "$([[ $same == yes ]] && echo identical || echo "DIFFERENT, $out")"
  [[ $same == yes ]] || trap - EXIT
done
echo "$identical of $killed identical artifacts; $tries runs, seed $seed, $((SECONDS - start_of_all)) s"
((identical == killed))
