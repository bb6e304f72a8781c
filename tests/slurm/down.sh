#!/bin/bash
# Stop the Slurm of tests/slurm/up.sh; whatever else runs on this machine is left alone.
#
#   tests/slurm/down.sh           cancel all jobs, stop the daemons, remove the nodes' network
#   tests/slurm/down.sh --keep    leave jobs and network alone: pending and running jobs are there after the next up.sh
#   tests/slurm/down.sh --wipe    forget everything as well: accounting, job numbers, configuration
#
# Packages and the user hpc stay.
set -euo pipefail
# shellcheck source=tests/slurm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in '' | --keep | --wipe) ;; *) die "unknown option $1" ;; esac
take_lock

queue_is_empty() { [ -z "$(timeout 20 squeue -h -o %F)" ]; }
if [ "${1:-}" != --keep ] && alive $RUN/slurmctld.pid slurmctld; then
  # %F: scancel does nothing for the raw number (%A) of a task of an array
  mapfile -t jobs < <(timeout 20 squeue -h -o %F | sort -un)
  if [ ${#jobs[@]} -gt 0 ]; then
    say "cancelling ${#jobs[@]} jobs"
    timeout 60 scancel -f "${jobs[@]}" || true
    (wait_for 15 "the jobs to end" queue_is_empty) || true
  fi
fi
stop_daemons
if [ "${1:-}" != --keep ]; then
  remove_network $BRIDGE "${NODES[@]/#/cjslurm-}"
  set_hosts
fi
if [ "${1:-}" = --wipe ]; then
  rm -rf $VAR $RUN $LOG
  rm -f $ETC/{slurm,gres,cgroup,slurmdbd}.conf
fi
echo "Slurm is down"
