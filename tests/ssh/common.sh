# shellcheck shell=bash
# Places and daemons of the ssh hosts that tests/ssh/up.sh raises; sourced by the scripts beside it.
NAME=ssh
# shellcheck source=tests/schedulers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../schedulers.sh"

RUN=/run/cjdask-ssh             # pid files, host names
VAR=/var/lib/cjdask-ssh         # keys, configuration for clients, the password; a small disk
LOG=/var/log/cjdask-ssh
BRIDGE=cjssh0
SLURM_BRIDGE=cjslurm0           # of tests/slurm/up.sh, if that is up
HOSTS=(cjlogin cjplain)         # the login node of the Slurm, and a host without a scheduler
CLIENT=cjclient                 # can reach nothing but the ssh ports of these

# ours SIGNAL HOST: to each sshd of a host, its sessions included; nothing else in its network is touched
ours() {
  local pid
  for pid in $(ip netns pids "cjssh-$2" 2>/dev/null); do
    if [ "$(cat "/proc/$pid/comm" 2>/dev/null)" = sshd ]; then kill "-$1" "$pid" 2>/dev/null || true; fi
  done
}

start_host() {
  alive "$RUN/$1.pid" sshd && return
  node_command "cjssh-$1" "$1" $RUN/hosts /usr/sbin/sshd -f "$VAR/$1/sshd_config" -E "$LOG/$1.log"
  detached "$LOG/$1.out" "${NODE_COMMAND[@]}"
  wait_for 10 "the sshd of $1" test -s "$RUN/$1.pid"
}

stop_host() {
  stop_daemon "$RUN/$1.pid" sshd
  ours KILL "$1"
}
