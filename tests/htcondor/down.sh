#!/bin/bash
# Stop the HTCondor of tests/htcondor/up.sh; whatever else runs on this machine is left alone.
#
#   tests/htcondor/down.sh           remove all jobs, stop the daemons
#   tests/htcondor/down.sh --keep    leave jobs in the queue: pending ones are there after the next up.sh, and those that
#                                    run start again, 40 s later
#   tests/htcondor/down.sh --wipe    forget everything as well: history, job numbers, configuration and the software
#
# The user hpc stays.
set -euo pipefail
# shellcheck source=tests/htcondor/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in '' | --keep | --wipe) ;; *) die "unknown option $1" ;; esac
take_lock

no_jobs() { local jobs; jobs=$(tool condor_q -allusers -af ClusterId) && [ -z "$jobs" ]; }
if [ "${1:-}" != --keep ] && alive $MASTER_PID condor_master && ! no_jobs; then
  say "removing all jobs"
  tool condor_rm -all >/dev/null 2>&1 || true
  (wait_for 15 "the jobs to end" no_jobs) || tool condor_rm -all -forcex >/dev/null 2>&1 || true
fi
stop_daemons
if [ "${1:-}" = --wipe ]; then rm -rf $VAR $LOG $PREFIX; fi
echo "HTCondor is down"
