#!/usr/bin/env bash
# Three "hosts" on this machine, each a network, host name, mount, process and IPC namespace of its own with its own
# /tmp, /dev/shm and sshd, joined by a bridge; Open MPI runs gptq-dist across them over TCP.
#   1. the artifact has the bytes of a run on one host
#   2. one host's link is cut in the middle of a run: the job ends in less than 60 s on every host, with a message
#   3. the rerun completes, with the same bytes
# Needs root (and iproute2, openssh-server: apt). Nothing outside build/test-cluster and the namespaces is touched; the
# namespaces end with their first processes.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

hosts=3
program=$PWD/build/cpu/gptq-dist
here=$PWD/build/test-cluster
options=(--model "$PWD/jobs/demo/opt-7m" --calibration "$PWD/jobs/demo/calib.txt" --samples 64 --seqlen 256
  --threads 1)
# mpirun looks for lost hosts every 300 s by default, and hangs for a quarter of an hour when the watchdog ends the job
# before: docs/slurm.md.
mpi=(--mca oob_tcp_keepalive_time 4 --mca oob_tcp_keepalive_intvl 2 --mca oob_tcp_keepalive_probes 3)
mpi+=(--mca btl self,tcp --mca btl_tcp_if_include eth0 --mca oob_tcp_if_include eth0)
# Remote ranks have this shell's environment only as far as it is passed on, and another kernel set gives other bytes.
[[ -z ${OPENBLAS_CORETYPE:-} ]] || mpi+=(-x OPENBLAS_CORETYPE)
holders=()
inside=() # of a holder: the process that keeps the namespaces

skip() {
  echo "skipped: $*"
  exit 0
}

clean_up() {
  local pid
  for pid in "${holders[@]}"; do
    kill -KILL "$pid" 2>/dev/null || true # and with --kill-child all that runs in its namespaces
  done
  wait 2>/dev/null || true
}
trap clean_up EXIT

# on HOST COMMAND...: runs in the namespaces of a host (1, 2, 3) or of the switch (0).
on() {
  local spaces=(--net)
  (($1 == 0)) || spaces+=(--uts --mount --pid --ipc)
  nsenter --target "${inside[$1]}" "${spaces[@]}" --wd="$PWD" -- "${@:2}"
}

# hold OPTION...: new namespaces; their number is the next free index of `inside`.
hold() {
  local tries pid
  unshare --net --fork --kill-child=KILL "$@" sleep infinity &
  holders+=($!)
  for ((tries = 0; tries < 100; ++tries)); do
    if pid=$(ps -o pid= --ppid "${holders[-1]}") && [[ -n $pid ]]; then
      inside+=($((pid)))
      return
    fi
    sleep 0.05
  done
  return 1
}

# A /tmp of its own, in which this repository is still found where it lies below /tmp.
own_tmp() { # HOST
  # shellcheck disable=SC2016
  on "$1" sh -ec 'mkdir -p "$1"
    mount -t tmpfs tmpfs "$1"
    case $PWD in
      /tmp/*)
        mkdir -p "$1/${PWD#/tmp/}"
        mount --bind "$PWD" "$1/${PWD#/tmp/}"
        ;;
    esac
    mount --rbind "$1" /tmp
    chmod 1777 /tmp' sh "$here/tmp"
}

make_host() { # NUMBER
  hold --uts --mount --pid --ipc --mount-proc --propagation private
  on 0 ip link add "port$1" type veth peer name eth0 netns "${inside[$1]}"
  on 0 ip link set "port$1" master switch up
  on "$1" hostname "node$1"
  own_tmp "$1"
  on "$1" mount -t tmpfs tmpfs /dev/shm
  on "$1" mount -t tmpfs tmpfs /run
  on "$1" mount --bind "$here/hosts" /etc/hosts
  on "$1" ip link set lo up
  on "$1" ip addr add "10.77.0.$1/24" dev eth0
  on "$1" ip link set eth0 up
  on "$1" mkdir -m 755 /run/sshd
  on "$1" /usr/sbin/sshd -f "$here/sshd.conf" -E "$here/sshd-node$1.log"
}

# quantize OUT: on one rank of each host, started from the first.
quantize() {
  on 1 mpirun --hostfile "$here/hostfile" -np "$hosts" --bind-to none --mca plm_rsh_agent "ssh -F $here/ssh.conf" \
    "${mpi[@]}" "$program" "${options[@]}" --out "$1"
}

checksums() { # FOLDER
  (cd "$1" && sha256sum ./*)
}

same_bytes() { # FOLDER
  checksums "$1" | diff "$here/expected" - || fail "$1 has other bytes than a run on one host"
  echo "the same bytes as on one host"
}

# What still runs of a job, on any host (zombies, whose parent may be gone, do not).
processes() {
  local host
  for ((host = 1; host <= hosts; ++host)); do
    on "$host" ps -C gptq-dist,orted,mpirun -o stat=,pid=,args= | awk -v host="node$host" '$1 !~ /^Z/ { print host, substr($0, 1, 100) }'
  done
}

fail() {
  echo "test-cluster: $*" >&2
  exit 1
}

((EUID == 0)) || skip "making network namespaces needs root"
unshare --net --uts --mount --pid --ipc --fork --mount-proc true 2>/dev/null || skip "this system forbids new namespaces"
[[ -x $program ]] || fail "there is no $program; jobs/test.sh builds it"
jobs/install_dependencies.sh iproute2 openssh-client openssh-server procps || skip "iproute2 and openssh-server cannot be installed"

rm -rf "$here"
mkdir -p "$here"
{
  echo "127.0.0.1 localhost"
  for ((host = 1; host <= hosts; ++host)); do
    echo "10.77.0.$host node$host"
  done
} >"$here/hosts"
for ((host = 1; host <= hosts; ++host)); do
  echo "node$host slots=1"
done >"$here/hostfile"
ssh-keygen -q -t ed25519 -N '' -f "$here/key"
ssh-keygen -q -t ed25519 -N '' -f "$here/host_key"
cat >"$here/sshd.conf" <<CONF
HostKey $here/host_key
AuthorizedKeysFile $here/key.pub
StrictModes no
UsePAM no
PasswordAuthentication no
PermitRootLogin prohibit-password
PidFile none
CONF
cat >"$here/ssh.conf" <<CONF
Host *
  IdentityFile $here/key
  StrictHostKeyChecking no
  UserKnownHostsFile /dev/null
  BatchMode yes
  LogLevel ERROR
CONF

say "three hosts"
hold # the switch
on 0 ip link add switch type bridge 2>/dev/null || skip "this kernel makes no network bridges"
on 0 ip link set switch up
for ((host = 1; host <= hosts; ++host)); do
  make_host "$host"
done
for ((host = 1; host <= hosts; ++host)); do
  echo "$(on 1 ssh -F "$here/ssh.conf" "node$host" hostname) answers"
done

say "one host"
mpirun -np "$hosts" "${mpirun_flags[@]}" "$program" "${options[@]}" --out "$here/one"
checksums "$here/one" >"$here/expected"

say "a rank on each host"
quantize "$here/three"
same_bytes "$here/three"

say "node$hosts loses its link in the middle of a run"
quantize "$here/cut" >"$here/cut.log" 2>&1 &
run=$!
for ((tries = 0; tries < 600; ++tries)); do
  ! grep -q "block 2 of" "$here/cut.log" || break
  kill -0 "$run" 2>/dev/null || break
  sleep 0.1
done
on "$hosts" ip link set eth0 down
cut=$SECONDS
while remaining=$(processes) && [[ -n $remaining ]]; do
  if ((SECONDS - cut > 60)); then
    cat "$here/cut.log" >&2
    fail "60 s after the cut there still run:"$'\n'"$remaining"
  fi
  sleep 0.2
done
seconds=$((SECONDS - cut))
status=0
wait "$run" || status=$?
message=$(grep -E -A 3 'ORTE has lost communication|gptq-dist: rank [0-9]' "$here/cut.log") || status=0
if ((status == 0)); then
  cat "$here/cut.log" >&2
  fail "the run without node$hosts gave no message or no exit status but 0"
fi
echo "$message"
echo "ended on all hosts after $seconds s, exit status $status"

say "the link is back; the same command again"
on "$hosts" ip link set eth0 up
quantize "$here/cut"
found=$(json_number "$here/cut.work/report.json" found)
((found > 0 && found < 6)) || fail "the rerun found $found of 6 blocks: the cut came too early or too late to show anything"
same_bytes "$here/cut"
