#!/bin/sh
# One machine as a whole Slurm cluster: munge, slurmctld and slurmd, for trying the slurm launcher where there is none.
#
#   tests/cluster/slurm_node.sh start     as root, on Debian or Ubuntu with slurm-wlm and munge installed
#   tests/cluster/slurm_node.sh stop
#
# No cgroups, no accounting database, no DNS: what a container has. Everything it writes is under $SLURM_NODE, by
# default /var/lib/altgrad-slurm, but for /etc/munge/munge.key, which is made if there is none.
set -eu

FOLDER=${SLURM_NODE:-/var/lib/altgrad-slurm}
HOST=$(hostname -s)
CORES=$(nproc)
export SLURM_CONF="$FOLDER/slurm.conf"

start() {
    mkdir -p "$FOLDER/state" "$FOLDER/spool" /run/munge /var/log/munge
    if [ ! -s /etc/munge/munge.key ]; then
        dd if=/dev/urandom of=/etc/munge/munge.key bs=1024 count=1 2>/dev/null
    fi
    chown munge: /etc/munge/munge.key /run/munge /var/log/munge 2>/dev/null || true
    chmod 400 /etc/munge/munge.key
    munge -n >/dev/null 2>&1 || setpriv --reuid munge --regid munge --clear-groups /usr/sbin/munged
    cat >"$SLURM_CONF" <<CONF
ClusterName=altgrad
SlurmctldHost=$HOST(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
CryptoType=crypto/munge
StateSaveLocation=$FOLDER/state
SlurmdSpoolDir=$FOLDER/spool
SlurmctldPidFile=$FOLDER/slurmctld.pid
SlurmdPidFile=$FOLDER/slurmd.pid
SlurmctldLogFile=$FOLDER/slurmctld.log
SlurmdLogFile=$FOLDER/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
MinJobAge=300
KillWait=30
JobRequeue=1
NodeName=$HOST NodeAddr=127.0.0.1 CPUs=$CORES State=UNKNOWN
PartitionName=main Nodes=$HOST Default=YES MaxTime=INFINITE State=UP
CONF
    slurmctld -f "$SLURM_CONF"
    slurmd -f "$SLURM_CONF"
    tries=0
    until sinfo --noheader --format=%t 2>/dev/null | grep -q idle; do
        tries=$((tries + 1))
        if [ "$tries" -gt 60 ]; then
            echo "the node did not become idle:" >&2
            sinfo >&2 || true
            tail -n 20 "$FOLDER/slurmctld.log" "$FOLDER/slurmd.log" >&2
            exit 1
        fi
        sleep 0.5
    done
    echo "slurm is up; use it with: export SLURM_CONF=$SLURM_CONF"
}

stop() {
    scancel --full --user=root 2>/dev/null || true
    for daemon in slurmd slurmctld; do
        if [ -s "$FOLDER/$daemon.pid" ]; then
            kill "$(cat "$FOLDER/$daemon.pid")" 2>/dev/null || true
        fi
    done
}

case "${1:-}" in
    start) start ;;
    stop) stop ;;
    *) echo "usage: $0 start | stop" >&2; exit 2 ;;
esac
