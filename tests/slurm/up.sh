#!/bin/bash
# Raise a real Slurm on this machine: munge, mariadb, slurmdbd, slurmctld and four nodes n1..n4.
#
#   tests/slurm/up.sh      install what is missing, write /etc/slurm, start what does not run, wait until it is ready
#
# For Debian 12 as root, with or without systemd.  May be called again at any time: what runs is left alone, and if
# the configuration has changed the daemons are restarted and the jobs kept.  Clients (sbatch and so on) need no
# variables.  tests/slurm/down.sh stops it all; tests/slurm/ctl.sh stops and starts the controller alone.
#
# Every node declares 8 CPUs and 16000 MB, and is a machine of its own as far as the network goes: own host name, own
# address on a private bridge, 127.0.0.1 its own.  Files, /tmp included, and processes are those of this machine.
# Nodes reach this machine, by its host name and by the bridge's address, and it reaches them by theirs.
#
#   partitions  debug (default, at most 60 min), long, short (at most 1 min), gpu (n4 alone, which has gres gpu:2)
#   users       root, hpc and who called sudo, each in the accounts project (default) and other
#   qos         normal, high, tiny (at most 3 jobs of a user in the queue, further ones are refused)
#
# PYTHON_HOME=DIR  lets the user hpc run a Python that lies under root's private home.
set -euo pipefail
# shellcheck source=tests/slurm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock

WRITTEN_BY="# written by cjdask's tests/slurm/up.sh"
if [ -s $ETC/slurm.conf ] && ! grep -qxF "$WRITTEN_BY" $ETC/slurm.conf; then
  die "$ETC/slurm.conf is not from this script: there seems to be another Slurm here"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ---- packages, users, directories
install_packages munge slurmctld slurmd slurmdbd slurm-client slurm-wlm-basic-plugins mariadb-server mariadb-client \
  iproute2 util-linux
getent passwd slurm >/dev/null || useradd -r -M -d /nonexistent -s /usr/sbin/nologin slurm
make_job_user
USERS=(root "$JOB_USER")
if [ -n "${SUDO_USER:-}" ] && [ "$SUDO_USER" != root ]; then USERS+=("$SUDO_USER"); fi
install -d -m 755 $VAR $VAR/spool $VAR/gpu $ETC
install -d -m 755 -o slurm -g slurm $RUN $LOG $VAR/ctld
install -d -m 755 -o mysql -g mysql $RUN/mysql

# ---- network
SUBNET=$(choose_subnet $BRIDGE 10.163.41 10.163.42 10.217.5 172.29.163)
address() { echo "$SUBNET.$((10 + ${1#n}))"; }
make_bridge $BRIDGE "$SUBNET"
for node in "${NODES[@]}"; do join_bridge $BRIDGE "cjslurm-$node" "${node#n}" "$(address "$node")"; done
mapfile -t lines < <(for node in "${NODES[@]}"; do echo "$(address "$node") $node"; done)
set_hosts "${lines[@]}"
names=$(hostname -s)
if [ "$(hostname)" != "$names" ]; then names+=" $(hostname)"; fi
printf '%s\n' "127.0.0.1 localhost" "$SUBNET.1 $names" "${lines[@]}" >$RUN/hosts

# ---- configuration
if [ -w /sys/fs/cgroup/freezer/tasks ] && [ -w /sys/fs/cgroup/memory/memory.oom_control ]; then
  # cgroup v1: strays are killed, memory limits enforced, each job has an .extern step, as on most clusters
  tracking="ProctrackType=proctrack/cgroup
TaskPlugin=task/cgroup
PrologFlags=Contain"
  constrain=yes
else
  tracking="ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherParams=OverMemoryKill"
  constrain=no
fi
last=${NODES[-1]}
all=$(IFS=,; echo "${NODES[*]}")
cat >"$work/slurm.conf" <<CONF
$WRITTEN_BY
ClusterName=cjdask
SlurmctldHost=$(hostname -s)($SUBNET.1)
SlurmUser=slurm
AuthType=auth/munge
CredType=cred/munge
StateSaveLocation=$VAR/ctld
SlurmdSpoolDir=$VAR/spool/%n
SlurmctldPidFile=$RUN/slurmctld.pid
SlurmdPidFile=$RUN/slurmd-%n.pid
SlurmctldLogFile=$LOG/slurmctld.log
SlurmdLogFile=$LOG/slurmd-%n.log
MailProg=/bin/true
# nodes: more CPUs and memory than the machine has
SlurmdParameters=config_overrides
ReturnToService=2
SlurmdTimeout=300
MpiDefault=none
PropagateResourceLimits=NONE
$tracking
# jobs
MaxJobCount=50000
MaxArraySize=10001
MinJobAge=10
InactiveLimit=0
KillWait=2
# a step cannot end while the controller is stopped, as a test does; no node is to be drained for that
UnkillableStepTimeout=600
EnforcePartLimits=ALL
# scheduling, tuned for a short wait: batch jobs start at the next tick of the backfill, 1 s being the shortest
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,sched_min_interval=0,bf_interval=1,bf_continue,bf_max_job_test=1000,default_queue_depth=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
PriorityType=priority/multifactor
DefMemPerCPU=1000
GresTypes=gpu
# accounting
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=$SUBNET.1
AccountingStorageEnforce=associations,limits,qos
AccountingStorageTRES=gres/gpu
AccountingStoreFlags=job_comment
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
# nodes and partitions
$(for node in "${NODES[@]}"; do
  echo "NodeName=$node NodeAddr=$(address "$node") CPUs=8 Boards=1 SocketsPerBoard=1 CoresPerSocket=8 ThreadsPerCore=1" \
    "RealMemory=16000$([ "$node" != "$last" ] || echo ' Gres=gpu:2 Feature=gpu')"
done)
PartitionName=debug Nodes=$all Default=YES MaxTime=60 DefaultTime=10
PartitionName=long Nodes=$all MaxTime=INFINITE DefaultTime=60
PartitionName=short Nodes=$all MaxTime=1 DefaultTime=1 PriorityTier=2
PartitionName=gpu Nodes=$last MaxTime=60 DefaultTime=10
CONF
cat >"$work/gres.conf" <<CONF
NodeName=$last Name=gpu File=$VAR/gpu/gpu[0-1]
CONF
cat >"$work/cgroup.conf" <<CONF
CgroupPlugin=cgroup/v1
CgroupAutomount=no
ConstrainRAMSpace=$constrain
MinRAMSpace=10
CONF
cat >"$work/slurmdbd.conf" <<CONF
DbdHost=localhost
SlurmUser=slurm
LogFile=$LOG/slurmdbd.log
PidFile=$RUN/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
CONF
for gpu in gpu0 gpu1; do ln -sfn /dev/null $VAR/gpu/$gpu; done
changed=0
for file in slurm.conf gres.conf cgroup.conf slurmdbd.conf; do
  cmp -s "$work/$file" $ETC/$file && continue
  changed=1
  mode=644
  if [ $file = slurmdbd.conf ]; then mode=600; fi   # slurmdbd insists
  install -o slurm -g slurm -m $mode "$work/$file" $ETC/$file
done
if [ $changed = 1 ] && [ -n "$(ls $RUN/*.pid 2>/dev/null)" ]; then
  say "the configuration has changed: restarting"
  stop_daemons
fi

# ---- munge
munge_works() { munge -n | unmunge; }
if ! munge_works >/dev/null 2>&1; then
  install -d -m 700 -o munge -g munge /etc/munge /var/lib/munge /var/log/munge
  install -d -m 755 -o munge -g munge /run/munge
  if [ ! -s /etc/munge/munge.key ]; then
    (umask 077; head -c 128 /dev/urandom >/etc/munge/munge.key)
    chown munge:munge /etc/munge/munge.key
  fi
  touch $RUN/munged.ours
  detached $LOG/munged.out runuser -u munge -- munged --force
  wait_for 20 munge munge_works
fi

# ---- mariadb: no network, files of its own, so that another one on the machine does not mind
socket=$RUN/mysql/mysqld.sock
sql() { mariadb --no-defaults --protocol=socket --socket=$socket --user=root "$@"; }
if ! alive $RUN/mysql/mariadbd.pid mariadbd; then
  if [ ! -d $VAR/mysql/mysql ]; then
    rm -rf $VAR/mysql $VAR/users
    install -d -m 700 -o mysql -g mysql $VAR/mysql
    mariadb-install-db --no-defaults --user=mysql --datadir=$VAR/mysql --skip-test-db \
      --auth-root-authentication-method=socket >$LOG/mariadb-install.out 2>&1 9>&- ||
      { rm -rf $VAR/mysql; die "mariadb-install-db failed, see $LOG/mariadb-install.out"; }
  fi
  lasting $LOG/mariadbd.out mariadbd --no-defaults --user=mysql --datadir=$VAR/mysql --socket=$socket \
    --pid-file=$RUN/mysql/mariadbd.pid --skip-networking --innodb-buffer-pool-size=256M \
    --innodb-log-file-size=64M --innodb-lock-wait-timeout=900 --innodb-flush-log-at-trx-commit=0 \
    --max-allowed-packet=16M
  wait_for 60 mariadb sql -e "select 1"
fi
if [ ! -d $VAR/mysql/slurm_acct_db ]; then
  sql -e "create database slurm_acct_db;
    create user if not exists slurm@localhost identified via unix_socket;
    grant all on slurm_acct_db.* to slurm@localhost;"
fi

# ---- slurmdbd and the accounts
alive $RUN/slurmdbd.pid slurmdbd || detached $LOG/slurmdbd.out MYSQL_UNIX_PORT=$socket runuser -u slurm -- slurmdbd
if [ "$(cat $VAR/users 2>/dev/null)" != "${USERS[*]}" ]; then
  wait_for 60 slurmdbd sacctmgr -n list cluster
  has() { [ -n "$(sacctmgr -n -P list "$@")" ]; }
  manage() { sacctmgr -i -Q "$@" >/dev/null; }
  has cluster cluster=cjdask || manage add cluster cjdask
  for account in project other; do
    has account account=$account || manage add account $account Description=$account Organization=$account
  done
  has qos name=high || manage add qos high Priority=1000
  has qos name=tiny || manage add qos tiny Flags=DenyOnLimit MaxSubmitJobsPerUser=3 MaxJobsPerUser=1
  for user in "${USERS[@]}"; do
    for account in project other; do
      has assoc user="$user" account=$account || manage add user "$user" account=$account
    done
    manage modify user "$user" set DefaultAccount=project
  done
  manage modify account project,other,root set qos=normal,high,tiny
  echo "${USERS[*]}" >$VAR/users
fi

# ---- slurmctld and the nodes
start_controller
for node in "${NODES[@]}"; do
  if pid=$(daemon_pid "$RUN/slurmd-$node.pid" slurmd); then
    repair_hosts "$pid" $RUN/hosts
    continue
  fi
  install -d -m 755 "$VAR/spool/$node"
  node_command "cjslurm-$node" "$node" $RUN/hosts slurmd -N "$node"
  detached "$LOG/slurmd-$node.out" "${NODE_COMMAND[@]}"
done

states() { sinfo -h -N -o '%N %T' | sort -u; }
usable() { [ "$(states | grep -cE ' (idle|mixed|allocated|completing)$')" = ${#NODES[@]} ]; }
wait_briefly() { (wait_for 5 "the nodes" usable) 2>/dev/null; }
if ! wait_briefly; then   # a node may have been left down or drained by an earlier life
  while read -r node state; do
    case $state in down* | drain*) scontrol update "NodeName=$node" State=RESUME || true ;; esac
  done < <(states)
  wait_for 60 "the nodes, see $LOG" usable
fi
echo "Slurm $(sinfo -V | cut -d' ' -f2) is ready: nodes $all; this machine is $SUBNET.1 to them"
