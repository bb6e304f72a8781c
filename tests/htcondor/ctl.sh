#!/bin/bash
# Stop or start the schedd of tests/htcondor/up.sh alone; execute nodes and jobs go on meanwhile.
#
#   tests/htcondor/ctl.sh stop|start
set -euo pipefail
# shellcheck source=tests/htcondor/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock
answers() { tool condor_q -totals; }
silent() { ! answers; }
case ${1:-} in
  stop)
    tool condor_off -fast -daemon schedd >/dev/null
    wait_for 30 "the end of the schedd" silent
    ;;
  start)
    tool condor_on -daemon schedd >/dev/null
    wait_for 30 "the schedd" answers
    ;;
  *) die "stop or start?" ;;
esac
