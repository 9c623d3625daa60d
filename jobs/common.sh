# shellcheck shell=bash
# What the scripts of this folder share; source it. Changes to the repository's root.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# Numbers have a point, whatever the user's language.
export LC_ALL=C.UTF-8

# Open MPI refuses to run as root unless told twice, which is how containers run.
if ((EUID == 0)); then
  export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
fi
# Containers forbid the copies between processes that Open MPI likes best, and it complains about that.
export OMPI_MCA_btl_vader_single_copy_mechanism=${OMPI_MCA_btl_vader_single_copy_mechanism:-none}
# Ranks share the cores as they like, also where there are fewer cores than ranks.
# shellcheck disable=SC2034
mpirun_flags=(--oversubscribe --bind-to none)

# A line that tells where a script is.
say() { printf '\n==> %s\n' "$*"; }

# build PRESET TARGET...: -DNAME=VALUE words go to CMake. A failing step shows its whole output, others a line.
build() {
  local preset=$1 configure=() targets=(--target) word log=build/$1.log start=$SECONDS
  shift
  for word in "$@"; do
    case $word in
      -D*) configure+=("$word") ;;
      *) targets+=("$word") ;;
    esac
  done
  mkdir -p build
  echo "building build/$preset; output in $log"
  if ! { cmake --preset "$preset" "${configure[@]}" && cmake --build --preset "$preset" "${targets[@]}"; } >"$log" 2>&1; then
    cat "$log" >&2
    echo "building the preset $preset failed" >&2
    return 1
  fi
  grep -E 'warning:' "$log" | sort -u || true
  echo "built in $((SECONDS - start)) s"
}

# json_number FILE KEY [OBJECT]: the number behind KEY, or behind the first KEY after the start of OBJECT, in a file that
# gptq-dist wrote (one key a line).
json_number() {
  awk -v key="\"$2\":" -v object="${3:+\"$3\": {}" '
    object != "" && index($0, object) { object = ""; next }
    object == "" && $1 == key { sub(/,$/, "", $2); print $2; found = 1; exit }
    END { exit !found }' "$1"
}
