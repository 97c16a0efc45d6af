#!/bin/bash
# A real Slurm on this machine alone: accounting, a controller, and some nodes with pretended GPUs, all on loopback.
#
#     apt-get install -y --no-install-recommends slurm-wlm slurmdbd mariadb-server munge
#     LAB=/tmp/lab PORT=17000 lab.sh up 2        # as root, in ten seconds; then export SLURM_CONF=/tmp/lab/etc/slurm.conf
#     LAB=/tmp/lab lab.sh down                   # stops the daemons; what they know stays
#     LAB=/tmp/lab lab.sh wipe                   # and takes it all away
#
# LAB     the folder that everything is in; a short path, for it holds sockets
# PORT    the first of the ports that are used: PORT is the database, + 1 slurmdbd, + 2 slurmctld, + 3 and so on the nodes
# WATCH   a process: the daemons stop when it ends, however it ends
# GPUS, CPUS, MEMORY   of each node: devices (2), cores (8), MiB (8000); pretended, so more than the machine has will do
#
# Written for Debian 12 (Slurm 22.05), whose slurmd takes -N: several nodes on one host.
set -eu
: "${LAB:?name a folder for the lab}" "${PORT:=17000}" "${GPUS:=2}" "${CPUS:=8}" "${MEMORY:=8000}"
export SLURM_CONF=$LAB/etc/slurm.conf
# Debian puts the daemons where not everybody's PATH is.
PATH=$PATH:/usr/sbin:/sbin

configure() {
    local nodes=$1 i
    mkdir -p "$LAB"/{etc,state,spool,log,run,mysql,dev}
    chmod 755 "$LAB" "$LAB"/{run,etc}
    for ((i = 0; i < GPUS; i++)); do
        [[ -e $LAB/dev/gpu$i ]] || mknod "$LAB/dev/gpu$i" c 1 3
    done
    cat > "$LAB/etc/slurm.conf" << END
ClusterName=lab
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort=$((PORT + 2))
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$LAB/run/munge.socket
SlurmUser=root
SlurmdUser=root
SlurmctldPidFile=$LAB/run/slurmctld.pid
SlurmdPidFile=$LAB/run/slurmd-%n.pid
StateSaveLocation=$LAB/state
SlurmdSpoolDir=$LAB/spool/%n
SlurmctldLogFile=$LAB/log/slurmctld.log
SlurmdLogFile=$LAB/log/slurmd-%n.log
CommunicationParameters=NoCtldInAddrAny
MpiDefault=none
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
SlurmdParameters=config_overrides
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=2,sched_interval=2,sched_min_interval=0,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
PreemptType=preempt/qos
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
KillWait=5
JobRequeue=1
PriorityType=priority/multifactor
PriorityWeightFairshare=10000
PriorityWeightQOS=100000
PriorityWeightAge=1000
PriorityDecayHalfLife=1-0
PriorityCalcPeriod=1
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$LAB/run/munge.socket
AccountingStorageTRES=gres/gpu
AccountingStorageEnforce=associations,limits,qos,safe
NodeName=n[1-$nodes] NodeHostname=$(hostname) NodeAddr=127.0.0.1 Port=[$((PORT + 3))-$((PORT + 2 + nodes))] CPUs=$CPUS RealMemory=$MEMORY Gres=gpu:$GPUS State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=NO
END
    cat > "$LAB/etc/gres.conf" << END
AutoDetect=off
NodeName=n[1-$nodes] Name=gpu File=$LAB/dev/gpu[0-$((GPUS - 1))]
END
    echo 'CgroupAutomount=no' > "$LAB/etc/cgroup.conf"
    # The database listens on a socket's neighbour for this lab alone; its password is no secret.
    cat > "$LAB/etc/slurmdbd.conf" << END
AuthType=auth/munge
AuthInfo=$LAB/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
PidFile=$LAB/run/slurmdbd.pid
LogFile=$LAB/log/slurmdbd.log
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$PORT
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
END
    chmod 600 "$LAB/etc/slurmdbd.conf"
}

# Waits up to two minutes, which a busy machine may need, for a command to succeed.
until_it_works() {
    local end=$((SECONDS + 120))
    while ((SECONDS < end)); do
        "$@" > /dev/null 2>&1 && return
        sleep 0.2
    done
    echo "lab.sh: $* did not succeed; see $LAB/log" >&2
    return 1
}

database() { timeout 20 mariadb --no-defaults --socket="$LAB/mysql/m.sock" "$@"; }
accounting() { timeout 20 sacctmgr -n show cluster; }
controller() { timeout 20 scontrol ping | grep -q UP; }
nodes() { (($(timeout 20 sinfo -h -N -t idle,mix,alloc | wc -l) == $1)); }

up() {
    local nodes=$1 i
    configure "$nodes"
    [[ -f $LAB/etc/munge.key ]] || (umask 077 && head -c 128 /dev/urandom > "$LAB/etc/munge.key")
    munged --socket="$LAB/run/munge.socket" --key-file="$LAB/etc/munge.key" --pid-file="$LAB/run/munged.pid" \
        --log-file="$LAB/log/munged.log" --seed-file="$LAB/run/munged.seed" --num-threads=2 --force 2>> "$LAB/log/up.log"
    if [[ ! -d $LAB/mysql/mysql ]]; then
        chown mysql:mysql "$LAB/mysql"
        mariadb-install-db --no-defaults --user=mysql --datadir="$LAB/mysql" \
            --auth-root-authentication-method=socket >> "$LAB/log/up.log" 2>&1
    fi
    setsid mariadbd --no-defaults --user=mysql --datadir="$LAB/mysql" --socket="$LAB/mysql/m.sock" --port="$PORT" \
        --bind-address=127.0.0.1 --pid-file="$LAB/mysql/m.pid" --innodb-buffer-pool-size=64M \
        --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 --innodb-doublewrite=0 \
        --innodb-flush-method=nosync >> "$LAB/log/mariadb.log" 2>&1 < /dev/null &
    # What it knows is worth nothing tomorrow, so nothing of it waits for the disk.
    until_it_works database -e 'select 1'
    database -e "create database if not exists slurm_acct_db;
        create user if not exists 'slurm'@'localhost' identified by 'slurm';
        create user if not exists 'slurm'@'127.0.0.1' identified by 'slurm';
        grant all on slurm_acct_db.* to 'slurm'@'localhost'; grant all on slurm_acct_db.* to 'slurm'@'127.0.0.1';"
    slurmdbd
    until_it_works accounting
    sacctmgr -n show cluster lab format=cluster | grep -q lab || sacctmgr -i -Q add cluster lab > /dev/null
    slurmctld
    until_it_works controller
    for ((i = 1; i <= nodes; i++)); do slurmd -N "n$i"; done
    until_it_works nodes "$nodes"
    sinfo -N -h -o '%N %t, %c cores, %m MiB, %G'
}

# Nodes first, and the database after who writes to it.
down() {
    local file pid i
    for file in "$LAB"/run/slurmd-*.pid "$LAB/run/slurmctld.pid" "$LAB/run/slurmdbd.pid" "$LAB/mysql/m.pid" \
        "$LAB/run/munged.pid"; do
        pid=$(cat "$file" 2> /dev/null) && kill "$pid" 2> /dev/null || continue
        for ((i = 0; i < 100; i++)); do
            case $(ps -o stat= -p "$pid") in '' | Z*) break ;; esac
            sleep 0.1
        done
    done
}

case ${1:-} in
    up)
        if [[ ${WATCH:-} ]]; then
            setsid "$0" watch "$WATCH" > /dev/null 2>&1 < /dev/null &
        fi
        up "${2:-1}"
        ;;
    watch)
        while [[ -d $LAB ]] && kill -0 "$2" 2> /dev/null; do sleep 1; done
        down
        ;;
    down) down ;;
    wipe)
        down
        rm -rf "$LAB"
        ;;
    *)
        echo "usage: LAB=FOLDER $0 up [NODES] | down | wipe" >&2
        exit 2
        ;;
esac
