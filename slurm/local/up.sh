#!/usr/bin/env bash
# Brings up a real SLURM of two nodes (metaser1, metaser2) on this machine, to try settings before queueing for a real cluster.
#
#   sudo slurm/local/up.sh [--state FOLDER] [--accounting]      about ten seconds; again: nothing happens
#   export SLURM_CONF=FOLDER/slurm.conf                         from now on sinfo, sbatch and metaser submit see it
#   sudo slurm/local/down.sh [--state FOLDER]
#
# Everything lies in one folder (default /tmp/metaser-slurm): its own munge with its own key, configuration, logs, state. Outside of it
# it installs Debian's slurm-wlm and munge where they are absent, and adds three marked lines to /etc/hosts. A SLURM
# that is already on the machine (in /etc/slurm, or on its own ports) is neither used nor changed.
# --accounting also starts MariaDB and slurmdbd, so that sacct answers; without it SLURM forgets finished jobs after five minutes.
set -euo pipefail
cd "$(dirname "$0")"
source common.sh
parse_arguments "$@"

((EUID == 0)) || fail "must run as root (slurmd starts the tasks of other users), but runs as $(id -un)"

need() { # PACKAGE PROGRAM...
    local program
    for program in "${@:2}"; do
        command -v "$program" >/dev/null || {
            install_package "$1"
            return
        }
    done
}

install_package() {
    # Installed, not started: what this cluster needs is started below, with its own configuration.
    local policy=/usr/sbin/policy-rc.d
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\nexit 101\n' >$policy
        chmod +x $policy
        trap 'rm -f /usr/sbin/policy-rc.d' EXIT
    fi
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$1"; } \
        >"$state/apt.log" 2>&1 || fail "needs Debian's package $1, which could not be installed; see $state/apt.log"
}

mkdir -p "$state"
chmod 755 "$state"
need munge munged
need slurm-wlm slurmctld slurmd sbatch
((!accounting)) || need slurmdbd slurmdbd
((!accounting)) || need mariadb-server mariadbd mariadb-install-db mariadb

host=$(hostname -s)
num_cpus=$(nproc)
# Tests ask for two tasks on a node; what the machine has not, it shares.
((num_cpus >= 2)) || num_cpus=2
memory_mb=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)

if ! grep -q "$hosts_mark" /etc/hosts; then
    printf '127.0.0.1 metaser1 %s\n127.0.0.1 metaser2 %s\n' "$hosts_mark" "$hosts_mark" >>/etc/hosts
fi

# ---- munge: who a message comes from. A munged of its own, so that the machine's is left alone.
mkdir -p "$state/munge" "$state/log" "$state/spool"
if ! is_running munged; then
    [[ -e $state/munge/key ]] || { head -c 1024 /dev/urandom >"$state/munge/key" && chmod 400 "$state/munge/key"; }
    # --force: it warns of being root and of a folder below /tmp.
    munged --force --socket="$state/munge/socket" --key-file="$state/munge/key" --pid-file="$state/munged.pid" \
        --log-file="$state/log/munged.log" --seed-file="$state/munge/seed" >>"$state/log/munged.out" 2>&1 ||
        fail "has no munged; see $state/log/munged.log"
fi

accounting_lines="AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none"
if ((accounting)); then
    accounting_lines="AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort=17829
AccountingStoragePass=$state/munge/socket
JobAcctGatherType=jobacct_gather/linux"
fi

cat >"$state/slurm.conf.new" <<CONF
# Written by slurm/local/up.sh.
ClusterName=metaser
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=17820
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$state/munge/socket
CredType=cred/munge
StateSaveLocation=$state/spool/ctld
SlurmdSpoolDir=$state/spool/%n
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd-%n.pid
SlurmctldLogFile=$state/log/slurmctld.log
SlurmdLogFile=$state/log/slurmd-%n.log
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
# Two nodes that each claim all cores of the machine.
SlurmdParameters=config_overrides
PlugStackConfig=$state/plugstack.conf
$accounting_lines
# A node that does not answer for so long is down, and its jobs are requeued; 300 s by default.
SlurmdTimeout=10
# Between SIGTERM and SIGKILL.
KillWait=30
JobRequeue=1
# Comes back by itself after it was down.
ReturnToService=2
# Jobs start and end within a second.
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=0
PropagateResourceLimits=NONE
NodeName=metaser[1-2] NodeHostname=$host NodeAddr=127.0.0.1 Port=[17821-17822] CPUs=$num_cpus RealMemory=$memory_mb State=UNKNOWN
# A node that never comes up, under a name that means nothing to anybody: what a wrong master address looks like.
NodeName=metaser-nowhere NodeHostname=$host NodeAddr=127.0.0.1 Port=17823 CPUs=$num_cpus RealMemory=$memory_mb State=DOWN
PartitionName=main Nodes=metaser[1-2] Default=YES MaxTime=24:00:00 State=UP
PartitionName=nowhere Nodes=metaser-nowhere Default=NO MaxTime=24:00:00 State=UP
CONF
touch "$state/plugstack.conf"
if ! is_running slurmctld; then
    mv "$state/slurm.conf.new" "$state/slurm.conf"
elif cmp -s "$state/slurm.conf.new" "$state/slurm.conf"; then
    rm "$state/slurm.conf.new"
else
    fail "runs with other settings (compare $state/slurm.conf and slurm.conf.new); take it down first"
fi
export SLURM_CONF=$state/slurm.conf
((!accounting)) || source accounting.sh

if ! is_running slurmctld; then
    # Jobs of an earlier life would start again.
    rm -rf "$state/spool"
    mkdir -p "$state/spool/ctld"
    slurmctld -c >>"$state/log/slurmctld.out" 2>&1 || fail "has no slurmctld; see $state/log/slurmctld.log"
fi
for node in metaser1 metaser2; do
    start_node "$node"
done

for ((second = 0; second < 60; second++)); do
    # Of a cluster that was there already, jobs may hold the nodes.
    if (($(sinfo --noheader --Node --partition=main --states=idle,alloc,mix,comp --format=%N 2>/dev/null | wc -l) == 2)); then
        echo "two nodes are up: export SLURM_CONF=$SLURM_CONF"
        exit 0
    fi
    sleep 0.5
done
sinfo >&2 || true
fail "has not two nodes after 30 s; see $state/log"
