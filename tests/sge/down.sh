#!/bin/bash
# Stop the Grid Engine of tests/sge/up.sh; whatever else runs on this machine is left alone.
#
#   tests/sge/down.sh           delete all jobs, stop the daemons, remove the execution hosts' network
#   tests/sge/down.sh --keep    leave jobs and network alone: pending and running jobs are there after the next up.sh
#                               (of a job that ended meanwhile Grid Engine takes note up to a minute late)
#   tests/sge/down.sh --wipe    forget everything as well: accounting, job numbers, configuration
#
# Packages and the user hpc stay.
set -euo pipefail
# shellcheck source=tests/sge/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in '' | --keep | --wipe) ;; *) die "unknown option $1" ;; esac
take_lock

no_jobs() { local jobs; jobs=$(timeout 20 qstat -u '*') && [ -z "$jobs" ]; }
if [ "${1:-}" != --keep ] && alive $MASTER_PID sge_qmaster && ! no_jobs; then
  say "deleting all jobs"
  timeout 60 qdel -u '*' >/dev/null 2>&1 || true
  (wait_for 15 "the jobs to end" no_jobs) || true
fi
stop_daemons
if [ "${1:-}" != --keep ]; then
  remove_network $BRIDGE "${NODES[@]/#/cj}"
  set_hosts
fi
if [ "${1:-}" = --wipe ]; then rm -rf $VAR $RUN $LOG $ROOT/default; fi
echo "Grid Engine is down"
