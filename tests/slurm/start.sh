#!/usr/bin/env bash
# A real Slurm on this machine: munge, one controller and two nodes on loopback, in a folder of its own.
#
#   source <(tests/slurm/start.sh)     # starts what does not run yet, and sets SLURM_CONF in this shell
#   tests/slurm/stop.sh                # ends it
#
# Needs Debian's slurm-wlm and munge; they are installed where that is possible. Where it is not, one line on stderr
# says why and the exit code is 0: tests of Slurm are then skipped with the same reason. Nothing in /etc is touched.
# SLURM_TEST_DIR names the folder (default: lmm-forget-slurm-<user> in the folder of temporary files).
set -euo pipefail
folder=${SLURM_TEST_DIR:-${TMPDIR:-/tmp}/lmm-forget-slurm-$(id -un)}
export PATH=$PATH:/usr/sbin:/sbin

cannot() {
  mkdir -p "$folder" && rm -f "$folder/slurm.conf" && printf '%s\n' "$1" >"$folder/reason"
  printf 'Slurm cannot be started here: %s\n' "$1" >&2
  exit 0
}

missing() {
  local program
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || return 0
  done
  return 1
}

if missing; then
  command -v apt-get >/dev/null || cannot "slurm-wlm and munge are not installed, and there is no apt-get"
  [ "$(id -u)" = 0 ] || cannot "slurm-wlm and munge are not installed, and only root can install them"
  install=(apt-get install -y --no-install-recommends slurm-wlm munge)
  export DEBIAN_FRONTEND=noninteractive
  "${install[@]}" >/dev/null 2>&1 || { apt-get update >/dev/null 2>&1 && "${install[@]}" >/dev/null 2>&1; } ||
    cannot "apt-get could not install slurm-wlm and munge"
  missing && cannot "slurm-wlm and munge were installed but their programs are not found"
fi

export SLURM_CONF=$folder/slurm.conf
lives() { [ -e "$1" ] && kill -0 "$(cat "$1")" 2>/dev/null; }
answers() {
  lives "$folder/slurmctld.pid" &&
    ! timeout 10 sinfo --noheader --Node --format=%T 2>/dev/null | grep -Evq '^(idle|mixed|allocated|completing)'
}

if ! answers; then
  "$(dirname "${BASH_SOURCE[0]}")/stop.sh" >/dev/null 2>&1 || true
  rm -rf "$folder"
  mkdir -p "$folder"/{state,spool-one,spool-two}
  chmod 755 "$folder"
  host=$(hostname -s)
  user=$(id -un)

  # A key and a socket of our own: the machine's munge, if there is one, stays as it is.
  mkdir -m 755 "$folder/munge"
  (umask 077 && head -c 1024 /dev/urandom >"$folder/munge/key")
  munged --socket="$folder/munge/socket" --key-file="$folder/munge/key" --pid-file="$folder/munge/pid" \
    --log-file="$folder/munge/log" --seed-file="$folder/munge/seed" --force >/dev/null 2>&1 ||
    cannot "munged does not start; see $folder/munge/log"

  # More CPUs than the machine may have (config_overrides): four jobs of two tasks fit at once. cred_expire also
  # bounds how long a job that was put back into the queue has to wait.
  cat >"$folder/slurm.conf" <<CONF
ClusterName=lmmforget
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=26817
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=1,sched_interval=5,bf_interval=2,sched_min_interval=0
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=10
OverTimeLimit=0
MinJobAge=300
ReturnToService=2
SlurmdTimeout=20
SlurmctldTimeout=60
InactiveLimit=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
JobCompType=jobcomp/none
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool-%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd-%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd-%n.log
NodeName=one NodeHostName=$host NodeAddr=127.0.0.1 Port=26818 CPUs=8 RealMemory=1000 State=UNKNOWN
NodeName=two NodeHostName=$host NodeAddr=127.0.0.1 Port=26819 CPUs=8 RealMemory=1000 State=UNKNOWN
PartitionName=main Nodes=one Default=YES MaxTime=60 State=UP
PartitionName=both Nodes=one,two MaxTime=60 State=UP
CONF
  slurmctld >/dev/null 2>&1 || cannot "slurmctld does not start; see $folder/slurmctld.log"
  for node in one two; do
    slurmd -N "$node" >/dev/null 2>&1 || cannot "slurmd does not start; see $folder/slurmd-$node.log"
  done
  for _ in $(seq 60); do
    answers && break
    sleep 0.5
  done
  answers || cannot "no node answers; see $folder/slurmctld.log"
fi
printf 'export SLURM_CONF=%q\n' "$SLURM_CONF"
