#!/bin/bash
# Raise a real HTCondor on this machine: one pool with four execute nodes, node1..node4.
#
#   tests/htcondor/up.sh      install what is missing, configure, start what does not run, wait until it is ready
#   . /opt/htcondor/env       puts its commands on PATH; works the same after down.sh, and for every user
#
# For Debian 12 as root, with or without systemd.  May be called again at any time: what runs is left alone, and if the
# configuration has changed the pool is restarted.  tests/htcondor/down.sh stops it all; tests/htcondor/ctl.sh stops and
# starts the schedd alone.
#
# HTCondor accepts no job of root.  The commands that /opt/htcondor/env puts on PATH therefore run as the user hpc when
# root calls them, in the same directory and with the same environment: what they and the jobs read and write must be
# open to hpc.  Root's own are in /opt/htcondor/bin, with CONDOR_CONFIG from the same file.
#
#   each node    4 CPUs and 4096 MB as a partitionable slot, for all universes but parallel; and one slot of 2 CPUs for
#                the parallel universe alone (machine_count up to 4)
#   network      loopback only.  Nodes are names, not machines: the host name is this machine's in all jobs
#   policy       no memory limit is enforced; all cycles are short
#
# PYTHON_HOME=DIR  lets the user hpc run a Python that lies under root's private home.
set -euo pipefail
# shellcheck source=tests/htcondor/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
# shellcheck source=tests/htcondor/prefix.sh
. "$(dirname "${BASH_SOURCE[0]}")/prefix.sh"
take_lock

# ---- software, users, directories
build_prefix
make_job_user
getent passwd condor >/dev/null || useradd --system --no-create-home -d $VAR -s /usr/sbin/nologin -U condor
install -d -m 755 $VAR
install -d -m 755 -o condor -g condor $VAR/{spool,run,execute} "${NODES[@]/#/$VAR/execute/}" $LOG
install -d -m 1777 $VAR/lock
install -d -m 700 $VAR/{tokens.d,passwords.d}

# ---- configuration
new=$(
  cat <<CONF
# written by cjdask's tests/htcondor/up.sh
CONDOR_IDS = $(id -u condor).$(id -g condor)
RELEASE_DIR = $PREFIX
BIN = $PREFIX/bin
SBIN = $PREFIX/sbin
LIB = $PREFIX/lib
LIBEXEC = $PREFIX/libexec
ETC = $PREFIX/etc
LOCAL_DIR = $VAR
LOG = $LOG
SPOOL = $VAR/spool
LOCK = $VAR/lock
RUN = $VAR/run
EXECUTE = $VAR/execute
LOCAL_CONFIG_DIR =
REQUIRE_LOCAL_CONFIG_FILE = false
SEC_TOKEN_SYSTEM_DIRECTORY = $VAR/tokens.d
SEC_PASSWORD_DIRECTORY = $VAR/passwords.d
MAIL = /bin/true

# one machine
NETWORK_INTERFACE = 127.0.0.1
ENABLE_IPV6 = False
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:9618
NETWORK_HOSTNAME = head.test
UID_DOMAIN = test
FILESYSTEM_DOMAIN = test
TRUST_UID_DOMAIN = True
SOFT_UID_DOMAIN = True
COLLECTOR_NAME = test
SCHEDD_NAME = head.test

# who one is, a file in /tmp proves
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS
SEC_CLIENT_AUTHENTICATION_METHODS = FS
# unknown to 23.9; newer clients, as the Python bindings of 25, otherwise refuse that proof
SEC_FS_ENFORCE_CHANNEL_BINDING = False
SEC_DEFAULT_ENCRYPTION = OPTIONAL
SEC_DEFAULT_INTEGRITY = OPTIONAL
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_NEGOTIATOR = *
ALLOW_DAEMON = root@test condor@test
ALLOW_ADMINISTRATOR = root@test condor@test
ALLOW_ADVERTISE_MASTER = \$(ALLOW_DAEMON)
ALLOW_ADVERTISE_STARTD = \$(ALLOW_DAEMON)
ALLOW_ADVERTISE_SCHEDD = \$(ALLOW_DAEMON)
QUEUE_SUPER_USERS = root, condor

# short cycles
NEGOTIATOR_INTERVAL = 1
NEGOTIATOR_MIN_INTERVAL = 0
NEGOTIATOR_CYCLE_DELAY = 0
# spread the jobs: a slot just freed is known with its old claim for 1-2 s, in which it cannot be claimed
NEGOTIATOR_PRE_JOB_RANK = random(1000000)
SCHEDD_INTERVAL = 5
SCHEDD_MIN_INTERVAL = 0
UPDATE_INTERVAL = 10
POLLING_INTERVAL = 2
PERIODIC_EXPR_INTERVAL = 2
MAX_PERIODIC_EXPR_INTERVAL = 5
STARTER_UPDATE_INTERVAL = 5
STARTER_INITIAL_UPDATE_INTERVAL = 2
SHADOW_QUEUE_UPDATE_INTERVAL = 5
MASTER_UPDATE_INTERVAL = 20
NEGOTIATOR_UPDATE_INTERVAL = 20
COLLECTOR_UPDATE_INTERVAL = 20
CLASSAD_LIFETIME = 60
JOB_START_DELAY = 0
# a job whose node was lost is run again after this many seconds (2400 otherwise)
JOB_DEFAULT_LEASE_DURATION = 40
UNUSED_CLAIM_TIMEOUT = 20
# SIGTERM, SIGKILL 5 s later
MachineMaxVacateTime = 5
KILLING_TIMEOUT = 10

# nodes run what comes, and look for nothing (docker, java, GPUs, benchmarks) on this machine
SUSPEND = FALSE
PREEMPT = FALSE
KILL = FALSE
WANT_SUSPEND = FALSE
WANT_VACATE = FALSE
RUNBENCHMARKS = FALSE
BENCHMARKS_JOBLIST =
STARTD_CRON_JOBLIST =
DOCKER = /bin/false
SINGULARITY =
JAVA =
VM_TYPE =
FILETRANSFER_PLUGINS = \$(LIBEXEC)/curl_plugin, \$(LIBEXEC)/data_plugin
# the master would change the machine's sysctls
ENABLE_KERNEL_TUNING = FALSE
LINUX_KERNEL_TUNING_SCRIPT =
BASE_CGROUP =
MOUNT_UNDER_SCRATCH =
STARTD_NOCLAIM_SHUTDOWN = 0
NUM_CPUS = 6
MEMORY = 6144
DISK = 10000000

# the schedd (23.9.6) dies of a parallel job on a partitionable slot: a static one for them
SLOT_TYPE_1 = cpus=4, memory=4096, disk=50%, swap=50%
SLOT_TYPE_1_PARTITIONABLE = True
NUM_SLOTS_TYPE_1 = 1
SLOT_TYPE_2 = cpus=2, memory=2048, disk=50%, swap=50%
SLOT_TYPE_2_PARTITIONABLE = False
NUM_SLOTS_TYPE_2 = 1
START = (TARGET.JobUniverse =?= 11) == (MY.SlotTypeID == 2)
SLOT_TYPE_2_DedicatedScheduler = "DedicatedScheduler@head.test"
SLOT_TYPE_2_STARTD_ATTRS = DedicatedScheduler
RANK = Scheduler =?= MY.DedicatedScheduler

DAEMON_LIST = MASTER COLLECTOR NEGOTIATOR SCHEDD ${NODES[@]^^}
DC_DAEMON_LIST = + ${NODES[@]^^}
CONF
  for node in "${NODES[@]}"; do
    cat <<CONF
${node^^} = \$(STARTD)
${node^^}_ARGS = -f -local-name $node
${node^^}_ENVIRONMENT = "_CONDOR_NETWORK_HOSTNAME=$node.test _CONDOR_STARTD_NAME=$node.test"
${node^^}.STARTD_LOG = $LOG/StartLog.$node
${node^^}.STARTD_ADDRESS_FILE = $VAR/run/startd_address.$node
${node^^}.EXECUTE = $VAR/execute/$node
CONF
  done
)
if [ "$new" != "$(cat $CONFIG 2>/dev/null)" ]; then
  if alive $MASTER_PID condor_master; then
    say "the configuration has changed: restarting"
    stop_daemons
  fi
  echo "$new" >$CONFIG
fi

# ---- the commands for tests
if [ ! -e $PREFIX/env ]; then
  mkdir -p $PREFIX/client
  for command in $PREFIX/bin/condor_*; do
    cat >"$PREFIX/client/${command##*/}" <<CLIENT
#!/bin/sh
[ "\$(id -u)" = 0 ] && exec runuser -u $JOB_USER -- $command "\$@"
exec $command "\$@"
CLIENT
    chmod 755 "$PREFIX/client/${command##*/}"
  done
  printf '%s\n' "export CONDOR_CONFIG=$CONFIG" "export PATH=$PREFIX/client:\$PATH" >$PREFIX/env
fi

# ---- the pool
alive $MASTER_PID condor_master ||
  detached $LOG/master.out CONDOR_CONFIG=$CONFIG $PREFIX/sbin/condor_master -pidfile $MASTER_PID
ready() {
  [ "$(tool condor_status -af Name | grep -c '^slot[12]@node')" = $((2 * ${#NODES[@]})) ] &&
    [ -n "$(tool condor_status -schedd -af Name)" ]
}
wait_for 60 "the nodes, see $LOG" ready
echo "HTCondor $(awk '{print $2; exit}' $PREFIX/complete) is ready: execute nodes ${NODES[*]};" \
  "its commands by: . $PREFIX/env (root's calls run as $JOB_USER)"
