#!/bin/bash
# Stop the OAR of tests/oar/up.sh; whatever else runs on this machine is left alone.
#
#   tests/oar/down.sh           end all jobs, stop the daemons, remove the nodes' network
#   tests/oar/down.sh --keep    the server and the database alone: jobs run on, and are there after the next up.sh
#   tests/oar/down.sh --wipe    forget everything as well: jobs, job numbers
#
# Packages and the user hpc stay.
set -euo pipefail
# shellcheck source=tests/oar/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in '' | --keep | --wipe) ;; *) die "unknown option $1" ;; esac
take_lock
if [ "${1:-}" = --keep ]; then
  stop_server
  stop_database
  echo "OAR's server is down"
  exit
fi
stop_daemons
remove_network $BRIDGE "${NODES[@]/#/cjoar-}"
set_hosts
if [ "${1:-}" = --wipe ]; then rm -rf $VAR $RUN $LOG $RUNTIME; fi
echo "OAR is down"
