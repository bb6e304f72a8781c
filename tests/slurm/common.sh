# shellcheck shell=bash
# Places and daemons of the Slurm that tests/slurm/up.sh raises; sourced by the scripts beside it.
NAME=slurm
# shellcheck source=tests/schedulers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../schedulers.sh"

ETC=/etc/slurm                  # where Debian's clients look: they need no variable
RUN=/run/cjdask-slurm           # pid files, socket of the database
VAR=/var/lib/cjdask-slurm       # database, state of the controller, spool of the nodes
LOG=/var/log/cjdask-slurm
BRIDGE=cjslurm0
NODES=(n1 n2 n3 n4)

start_controller() {
  alive $RUN/slurmctld.pid slurmctld || detached $LOG/slurmctld.out slurmctld
  wait_for 30 slurmctld controller_answers
}
controller_answers() { [[ $(scontrol ping) = *"is UP"* ]]; }
stop_controller() { stop_daemon $RUN/slurmctld.pid slurmctld; }

# jobs are not touched: those that run go on, and all are there again at the next start
stop_daemons() {
  local node
  for node in "${NODES[@]}"; do stop_daemon "$RUN/slurmd-$node.pid" slurmd & done
  wait
  stop_controller
  stop_daemon $RUN/slurmdbd.pid slurmdbd
  stop_daemon $RUN/mysql/mariadbd.pid mariadbd
  if [ -e $RUN/munged.ours ]; then
    stop_daemon /run/munge/munged.pid munged
    rm -f $RUN/munged.ours
  fi
}
