#!/bin/bash
# Break and mend what tests/ssh/up.sh has raised.
#
#   tests/ssh/ctl.sh stop|start HOST    kill the sshd of a host with all its sessions; start it again
#   tests/ssh/ctl.sh cut|mend HOST      take down its network towards ssh clients; put it up again
set -euo pipefail
# shellcheck source=tests/ssh/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock
host=${2:-}
case " ${HOSTS[*]} " in *" $host "*) ;; *) die "which host? ${HOSTS[*]}" ;; esac
case ${1:-} in
  stop) stop_host "$host" ;;
  start) start_host "$host" ;;
  cut) ip -n "cjssh-$host" link set eth0 down ;;
  mend) ip -n "cjssh-$host" link set eth0 up ;;
  *) die "stop, start, cut or mend?" ;;
esac
