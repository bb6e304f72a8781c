#!/bin/bash
# Stop the ssh hosts of tests/ssh/up.sh; whatever else runs on this machine is left alone.
#
#   tests/ssh/down.sh           stop the daemons, remove the network
#   tests/ssh/down.sh --wipe    forget keys and password as well
#
# Packages and the user hpc stay; without --wipe it keeps its password.
set -euo pipefail
# shellcheck source=tests/ssh/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
case ${1:-} in '' | --wipe) ;; *) die "unknown option $1" ;; esac
take_lock

for host in "${HOSTS[@]}"; do stop_host "$host"; done
remove_network $BRIDGE "${HOSTS[@]/#/cjssh-}" "cjssh-$CLIENT"
set_hosts
if [ "${1:-}" = --wipe ]; then
  ! mountpoint -q $VAR/full || umount $VAR/full
  rm -rf $VAR $RUN $LOG
  usermod -L "$JOB_USER"
fi
echo "the ssh hosts are down"
