#!/usr/bin/env bash
# A real SLURM on this machine (munged, slurmctld and two slurmd, installed with apt where they are missing) runs the
# batch scripts of jobs/slurm/ unchanged:
#   1. quantize-multinode.sbatch over both nodes, undisturbed
#   2. quantize.sbatch, stopped in its middle by the signal that announces the end of a job's time: exit status 75, back
#      into the queue, completed, with the bytes of 1.; started by srun and by mpirun
#   3. a run under a launcher that does not know our MPI is refused, with the remedy
#   4. array-eval.sbatch evaluates the model and the artifact
# Needs root. Everything lies in a temporary folder, ports are free ones, and what was started is ended by its process id:
# a SLURM that runs here already is not touched.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

program=build/cpu/gptq-dist
out=$PWD/build/test-slurm
options=(--model jobs/demo/opt-7m --calibration jobs/demo/calib.txt --samples 64 --seqlen 256 --threads 1)
daemons=()
place=

skip() {
  echo "skipped: $*"
  exit 0
}

fail() {
  echo "test-slurm: $*" >&2
  tail -n 30 "$out"/*.log >&2 || true
  tail -n 10 "$place"/log/* >&2 || true
  exit 1
}

clean_up() {
  local pid tries
  if ((${#daemons[@]} > 1)); then
    scancel --user "$(id -un)" 2>/dev/null || true
    for ((tries = 0; tries < 100; ++tries)); do
      [[ -n $(squeue --noheader 2>/dev/null) ]] || break
      sleep 0.1
    done
  fi
  for pid in "${daemons[@]}"; do
    kill "$pid" 2>/dev/null || true
  done
  wait 2>/dev/null || true
  [[ -z $place ]] || rm -rf "$place"
}
trap clean_up EXIT

# until_true SECONDS WHAT COMMAND...: tries COMMAND ten times a second.
until_true() {
  local deadline=$((SECONDS + $1)) what=$2
  shift 2
  until "$@"; do
    ((SECONDS < deadline)) || fail "waited in vain for $what"
    sleep 0.1
  done
}

# daemon NAME COMMAND...: in the background, with its output in a log.
daemon() {
  "${@:2}" </dev/null >"$place/log/$1.out" 2>&1 &
  daemons+=($!)
}

free_ports() { # COUNT
  local port
  for ((port = 47800; $1 > 0 && port < 48800; ++port)); do
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      echo "$port"
      set -- $(($1 - 1))
    fi
  done
}

job_field() { # JOB KEY
  scontrol --oneliner show job "$1" | grep -oE "(^| )$2=[^ ]*" | head -n 1 | cut -d= -f2
}
has_state() { # JOB STATE
  local state
  state=$(job_field "$1" JobState)
  case $state in
    FAILED | TIMEOUT | NODE_FAIL | CANCELLED | OUT_OF_MEMORY) [[ $state == "$2" ]] || fail "job $1 is $state" ;;
  esac
  [[ $state == "$2" ]]
}
log_has() { # FILE TEXT
  grep -qF -- "$2" "$1" 2>/dev/null
}

submit() { # SBATCH-ARGUMENT...
  sbatch --parsable --chdir="$PWD" --time=30 "$@"
}

checksums() { # FOLDER
  (cd "$1" && sha256sum ./*)
}

same_bytes() { # FOLDER
  checksums "$1" | diff "$out/expected" - || fail "$1 has other bytes than the undisturbed run"
  echo "the same bytes as those of the undisturbed run"
}

((EUID == 0)) || skip "starting slurmd needs root"
[[ -x $program ]] || fail "there is no $program; jobs/test.sh builds it"
jobs/install_dependencies.sh munge slurmctld slurmd slurm-client || skip "SLURM cannot be installed"
for command in munged slurmctld slurmd sbatch; do
  command -v "$command" >/dev/null || skip "there is no $command"
done

rm -rf "$out"
mkdir -p "$out"
place=$(mktemp -d /tmp/gptq-dist-slurm.XXXXXX)
chmod 755 "$place"
mkdir "$place"/{state,log,tmp,tmp/node1,tmp/node2,spool,spool/node1,spool/node2}

say "munged, slurmctld, two slurmd"
mapfile -t ports < <(free_ports 3)
host=$(hostname -s)
cpus=2
cat >"$place/slurm.conf" <<CONF
ClusterName=gptqdist
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
# cred_expire is also the time that a requeued job has to wait, 120 s by default; 5 s are the least.
AuthInfo=socket=$place/munge.socket,cred_expire=5
CredType=cred/munge
# No cgroups: containers do not lend theirs.
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
KillWait=5
StateSaveLocation=$place/state
SlurmdSpoolDir=$place/spool/%n
# PMIx keeps a folder of each step here, and both nodes are this machine.
TmpFS=$place/tmp/%n
SlurmctldPidFile=$place/slurmctld.pid
SlurmdPidFile=$place/slurmd-%n.pid
SlurmctldLogFile=$place/log/slurmctld.log
SlurmdLogFile=$place/log/slurmd-%n.log
SlurmdParameters=config_overrides
NodeName=node1 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=$cpus
NodeName=node2 NodeHostname=$host NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=$cpus
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF
export SLURM_CONF=$place/slurm.conf
(umask 077 && head -c 1024 /dev/urandom >"$place/munge.key")
daemon munged munged --foreground --key-file="$place/munge.key" --socket="$place/munge.socket" \
  --pid-file="$place/munged.pid" --log-file="$place/log/munged.log" --seed-file="$place/munge.seed"
until_true 10 "munged" test -S "$place/munge.socket"
daemon slurmctld slurmctld -D -c
for node in node1 node2; do
  daemon "slurmd-$node" slurmd -D -N "$node"
done
both_idle() { [[ $(sinfo --noheader --Node --format %T 2>/dev/null | sort | uniq -c) =~ ^\ *2\ idle$ ]]; }
until_true 20 "both nodes" both_idle
sinfo --Node

say "quantize-multinode.sbatch on two nodes, undisturbed"
job=$(submit --output="$out/two-nodes.log" --ntasks-per-node=1 jobs/slurm/quantize-multinode.sbatch "${options[@]}" \
  --out "$out/two-nodes")
until_true 60 "job $job" has_state "$job" COMPLETED
checksums "$out/two-nodes" >"$out/expected"
tail -n 4 "$out/two-nodes.log"

for launcher in srun mpirun; do
  say "quantize.sbatch started with $launcher, stopped in the middle"
  log=$out/$launcher.log
  job=$(GPTQ_DIST_LAUNCHER=$launcher submit --output="$log" jobs/slurm/quantize.sbatch "${options[@]}" --out "$out/$launcher")
  until_true 60 "the second block" log_has "$log" "block 2 of"
  scancel --batch --signal=USR1 "$job" # what SLURM sends 300 s before the job's end
  until_true 30 "exit status 75" log_has "$log" "requeue.sh: exit status 75"
  until_true 30 "the second start" log_has "$log" "blocks finished ("
  until_true 60 "job $job" has_state "$job" COMPLETED
  ! log_has "$log" "cannot be requeued" || fail "job $job was requeued, but the log says it was not"
  [[ $(job_field "$job" Restarts) == 1 && $(job_field "$job" ExitCode) == 0:0 ]] ||
    fail "job $job: expected one restart and exit code 0:0, got $(job_field "$job" Restarts) and $(job_field "$job" ExitCode)"
  grep -E 'requeue.sh|blocks finished' "$log"
  same_bytes "$out/$launcher"
done

say "srun without PMIx is refused"
status=0
srun --mpi=none --ntasks=2 "$program" "${options[@]}" --out "$out/mismatch" >"$out/mismatch.log" 2>&1 || status=$?
[[ $status == 64 ]] && log_has "$out/mismatch.log" "srun --mpi=pmix" || fail "expected exit status 64 and the remedy, got $status"
grep -h gptq-dist: "$out/mismatch.log"

say "array-eval.sbatch"
job=$(GPTQ_DIST_RESULTS=$out/results submit --array=0-1 --output="$out/eval-%a.log" jobs/slurm/array-eval.sbatch \
  jobs/demo/opt-7m "$out/srun" -- --text jobs/demo/eval.txt --seqlen 256 --windows 8)
for element in 0 1; do
  until_true 60 "element $element" has_state "${job}_$element" COMPLETED
done
for name in opt-7m srun; do
  echo "$name: perplexity $(json_number "$out/results/eval-$name.json" perplexity)"
done
