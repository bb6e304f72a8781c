# shellcheck shell=bash
# Places of the HTCondor that tests/htcondor/up.sh raises; sourced by the scripts beside it.
NAME=htcondor
# shellcheck source=tests/schedulers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../schedulers.sh"

PREFIX=/opt/htcondor            # the software, and the file env
VAR=/var/lib/cjdask-htcondor    # jobs, scratch directories, pid file
LOG=/var/log/cjdask-htcondor
CONFIG=$PREFIX/etc/condor_config
MASTER_PID=$VAR/run/master.pid
NODES=(node1 node2 node3 node4)

# the master stops all other daemons.  On SIGTERM running jobs are sent back to the queue
stop_daemons() { stop_daemon $MASTER_PID condor_master; }
tool() { PATH=$PREFIX/bin:$PREFIX/sbin:$PATH CONDOR_CONFIG=$CONFIG timeout 60 "$@"; }
