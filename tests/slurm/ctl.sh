#!/bin/bash
# Stop or start the controller (slurmctld) of tests/slurm/up.sh alone; nodes, jobs and accounting go on meanwhile.
#
#   tests/slurm/ctl.sh stop|start
set -euo pipefail
# shellcheck source=tests/slurm/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock
case ${1:-} in
  stop) stop_controller ;;
  start) start_controller ;;
  *) die "stop or start?" ;;
esac
