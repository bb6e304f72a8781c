# shellcheck shell=bash
# Places and daemons of the Grid Engine that tests/sge/up.sh raises; sourced by the scripts beside it.
NAME=sge
# shellcheck source=tests/schedulers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../schedulers.sh"

ROOT=/var/lib/gridengine        # where Debian's clients look: they need no variable
COMMON=$ROOT/default/common
RUN=/run/cjdask-sge             # pid files of the execution daemons
VAR=/var/lib/cjdask-sge         # jobs, configuration, spool of the nodes, temporary directories of jobs
LOG=/var/log/cjdask-sge
BRIDGE=cjsge0
MASTER=sgehead                  # this machine, as Grid Engine calls it
NODES=(sgen1 sgen2)
MASTER_PID=$VAR/qmaster/qmaster.pid

start_master() {
  # shellcheck disable=SC2016
  alive $MASTER_PID sge_qmaster ||
    detached $LOG/qmaster.out unshare --uts bash -c 'hostname "$1"; exec sge_qmaster' master $MASTER
  wait_for 30 "sge_qmaster, see $LOG/qmaster.out and $VAR/qmaster/messages" qconf -sh
}
stop_master() { stop_daemon $MASTER_PID sge_qmaster; }

# jobs are not touched: those that run go on, and all are there again at the next start
stop_daemons() {
  local node
  for node in "${NODES[@]}"; do stop_daemon "$RUN/execd-$node.pid" sge_execd & done
  wait
  stop_master
}
