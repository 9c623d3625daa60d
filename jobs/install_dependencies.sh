#!/usr/bin/env bash
# Installs with apt what gptq-dist needs and this machine lacks (Debian 12 and Ubuntu 24.04).
#   jobs/install_dependencies.sh [PACKAGE...]     PACKAGE: more to install, for example clang
# Where nothing is missing it changes nothing and asks for no rights.
set -euo pipefail

packages=(
  g++ cmake ninja-build pkg-config
  openmpi-bin libopenmpi-dev
  libopenblas-dev libopenblas-pthread-dev liblapacke-dev
  libhdf5-dev libboost-program-options-dev libfmt-dev libspdlog-dev nlohmann-json3-dev libxxhash-dev libpcre2-dev
  libutf8proc-dev libsentencepiece-dev zlib1g-dev
  libgtest-dev libgmock-dev
  "$@"
)

if ! command -v apt-get >/dev/null || ! command -v dpkg-query >/dev/null; then
  echo "No apt here: install what these Debian packages hold with this system's own tools: ${packages[*]}" >&2
  exit 0 # CMake names what is missing
fi

installed=$(dpkg-query -W -f '${Package} ${db:Status-Status}\n' "${packages[@]}" 2>/dev/null) || true
missing=()
for package in "${packages[@]}"; do
  grep -qxF "$package installed" <<<"$installed" || missing+=("$package")
done
if ((${#missing[@]} == 0)); then
  exit 0
fi

as_root=()
if ((EUID != 0)); then
  # Without a terminal sudo must not ask for a password.
  if command -v sudo >/dev/null && { [[ -t 0 ]] || sudo -n true 2>/dev/null; }; then
    as_root=(sudo)
  else
    cat >&2 <<END
Some packages are missing, and installing them needs root. Run as root, then try again:

  apt-get update && apt-get install -y --no-install-recommends ${missing[*]}

END
    exit 1
  fi
fi

log=$(mktemp)
trap 'rm -f "$log"' EXIT
run_apt() {
  if ! "${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get "$@" >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    echo "apt-get $* failed; install these packages, then try again: ${missing[*]}" >&2
    exit 1
  fi
}
echo "installing ${missing[*]}"
run_apt update
run_apt install -y --no-install-recommends "${missing[@]}"
