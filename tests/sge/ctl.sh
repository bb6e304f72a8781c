#!/bin/bash
# Stop or start the master (sge_qmaster) of tests/sge/up.sh alone; execution hosts and jobs go on meanwhile.
#
#   tests/sge/ctl.sh stop|start
set -euo pipefail
# shellcheck source=tests/sge/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock
case ${1:-} in
  stop) stop_master ;;
  start) start_master ;;
  *) die "stop or start?" ;;
esac
