# shellcheck shell=bash
# Functions for the scripts that raise and stop real schedulers: tests/{slurm,sge,htcondor}/*.sh source this file.
# Everything here is for one Debian 12 machine, as root, with or without systemd.

export LC_ALL=C PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin DEBIAN_FRONTEND=noninteractive
JOB_USER=hpc   # the normal user whose jobs the tests run beside root's

say() { printf '%s: [%3d s] %s\n' "$NAME" "$SECONDS" "$*" >&2; }
die() { printf '%s: %s\n' "$NAME" "$*" >&2; exit 1; }

set -E
trap 'echo "$NAME: line $LINENO of ${BASH_SOURCE[0]} failed: $BASH_COMMAND" >&2' ERR

# One script at a time for each scheduler.  Sourcing scripts set NAME first.
take_lock() {
  [ "$(id -u)" = 0 ] || die "must be run as root"
  exec 9>"/run/cjdask-$NAME.lock"
  flock -w 900 9 || die "another call has been running for 15 minutes"
}

# wait_for SECONDS WHAT COMMAND...: until the command succeeds
wait_for() {
  local tries=$(($1 * 10)) what=$2
  shift 2
  until "$@" >/dev/null 2>&1; do
    tries=$((tries - 1))
    [ $tries -gt 0 ] || die "timed out waiting for $what"
    sleep 0.1
  done
}

# running PID: there is such a process and it is not a zombie (a container's pid 1 may reap late)
running() {
  local stat
  stat=$(cat "/proc/$1/stat" 2>/dev/null) || return 1
  stat=${stat##*) }
  [ "${stat:0:1}" != Z ]
}

# daemon_pid PIDFILE COMM: print the pid if it is alive and really is that program
daemon_pid() {
  local pid comm
  pid=$(cat "$1" 2>/dev/null) && [ -n "$pid" ] && running "$pid" || return 1
  comm=$(cat "/proc/$pid/comm" 2>/dev/null)
  [ "$comm" = "${2:0:15}" ] && echo "$pid"
}
alive() { daemon_pid "$@" >/dev/null; }

# stop_daemon PIDFILE COMM: TERM, and KILL after 30 s
stop_daemon() {
  local pid
  if pid=$(daemon_pid "$1" "$2"); then
    kill -TERM "$pid" || true
    for _ in $(seq 600); do running "$pid" || break; sleep 0.05; done
    if alive "$1" "$2"; then
      say "$2 ($pid) ignored SIGTERM, killed"
      kill -KILL "$pid" || true
    fi
  fi
  rm -f "$1"
}

# detached LOG COMMAND..., lasting LOG COMMAND...: run a daemon in a session of its own, without inherited descriptors,
# environment, umask or working directory; `detached` waits for one that goes into the background by itself,
# `lasting` puts one there that does not
exec_daemon() {
  local log=$1 fd
  shift
  for fd in "/proc/$BASHPID/fd/"*; do
    fd=${fd##*/}
    if [ "$fd" -gt 2 ] && [ "$fd" -ne 255 ]; then eval "exec $fd>&-"; fi   # 255: this script, closed by exec
  done
  umask 022
  cd /
  exec setsid --wait env -i PATH="$PATH" LANG=C.UTF-8 "$@" </dev/null >>"$log" 2>&1
}
detached() { (exec_daemon "$@"); }
lasting() { (exec_daemon "$@") & }

# install_packages NAME...: what is missing of them; no daemon is started by the installation
install_packages() {
  local missing=() have package log policy=/usr/sbin/policy-rc.d ours=0 done=0
  have=$(dpkg-query -W -f='${Package} ${db:Status-Status}\n' "$@" 2>/dev/null || true)
  for package in "$@"; do
    grep -qx "$package installed" <<<"$have" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]}"
  if [ ! -e $policy ]; then
    printf '#!/bin/sh\nexit 101\n' >$policy
    chmod 755 $policy
    ours=1
  fi
  log=$(mktemp)
  for _ in 1 2 3; do
    if apt-get -o DPkg::Lock::Timeout=900 -y --no-install-recommends install "${missing[@]}" \
      </dev/null >"$log" 2>&1 9>&-; then
      done=1
      break
    fi
    for _ in 1 2 3 4 5 6; do   # no lists yet, or old ones; the lock of the lists has no time-out of its own
      apt-get update </dev/null >>"$log" 2>&1 9>&- && break
      sleep 10
    done
  done
  if [ $ours = 1 ]; then rm -f $policy; fi
  if [ $done = 0 ]; then
    tail -n 30 "$log" >&2
    die "installation of packages failed"
  fi
  rm -f "$log"
}

# make_job_user: the user, and where PYTHON_HOME is set (a Python or virtual environment under root's private home
# that jobs of the user are to run) the right to pass through that home: to pass, not to list, for this user alone
make_job_user() {
  getent passwd $JOB_USER >/dev/null || useradd -m -s /bin/bash $JOB_USER || getent passwd $JOB_USER >/dev/null
  [ -n "${PYTHON_HOME:-}" ] || return 0
  reaches_python && return
  install_packages acl
  setfacl -m "u:$JOB_USER:--x" "$HOME"
  reaches_python || die "$JOB_USER may not enter $PYTHON_HOME"
}
reaches_python() { setpriv --reuid $JOB_USER --regid $JOB_USER --init-groups test -x "$PYTHON_HOME"; }

# set_hosts LINE...: this scheduler's lines of /etc/hosts become these (none: removed).  Written in place:
# a rename would undo the bind mounts that other namespaces have over the file
set_hosts() {
  local tag="# cjdask-$NAME" text line
  (
    exec 8>/run/cjdask-hosts.lock
    flock -w 60 8
    text=$(grep -v "$tag\$" /etc/hosts || true)
    for line in "$@"; do text+=$'\n'"$line $tag"; done
    [ "$text" = "$(cat /etc/hosts)" ] || printf '%s\n' "$text" >/etc/hosts
  )
}

# choose_subnet BRIDGE CANDIDATE...: print the /24 (three numbers) the bridge has, else the first nobody uses
choose_subnet() {
  local bridge=$1 used subnet
  shift
  used=$({ ip -o -4 addr show dev "$bridge" 2>/dev/null || true; } | sed -n 's|.* inet \([0-9.]*\)\.1/24 .*|\1|p')
  if [ -n "$used" ]; then echo "$used"; return; fi
  used=$(ip -o -4 addr show; ip -4 route show)
  for subnet in "$@"; do
    case $used in *" $subnet."* | "$subnet."* | *$'\n'"$subnet."*) ;; *) echo "$subnet"; return ;; esac
  done
  die "none of these subnets is free: $*"
}

# make_bridge BRIDGE SUBNET: the machine itself is SUBNET.1
make_bridge() {
  ip link show "$1" >/dev/null 2>&1 || ip link add "$1" type bridge
  case $(ip -o -4 addr show dev "$1") in *" $2.1/"*) ;; *) ip addr add "$2.1/24" dev "$1" ;; esac
  ip link set "$1" up
}

# join_bridge BRIDGE NETNS NUMBER ADDRESS: a network namespace on the bridge
join_bridge() {
  local bridge=$1 netns=$2 port=$1p$3 subnet=${4%.*}
  case $'\n'$(ip netns list) in *$'\n'"$netns"[[:space:]]* | *$'\n'"$netns") ;; *) ip netns add "$netns" ;; esac
  ip -n "$netns" link show eth0 >/dev/null 2>&1 && return
  ip link add "$port" type veth peer name eth0 netns "$netns"
  ip link set "$port" master "$bridge" up
  ip -n "$netns" addr add "$4/24" dev eth0
  ip -n "$netns" link set lo up
  ip -n "$netns" link set eth0 up
  ip -n "$netns" route add default via "$subnet.1"
}

# in_node NETNS HOSTNAME HOSTS COMMAND...: replace this shell by the command on a machine of its own: network of the
# namespace, own host name, own /etc/hosts; no name server (none can be reached: look-ups fail at once), all other
# files, /tmp included, those of this machine.
# shellcheck disable=SC2016
IN_NODE='set -e
hostname "$1"
mount --bind "$2" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind /dev/null /etc/resolv.conf; fi
shift 2
exec "$@"'
node_command() { # NETNS HOSTNAME HOSTS COMMAND... -> the array NODE_COMMAND
  local netns=$1
  shift
  NODE_COMMAND=(nsenter "--net=/run/netns/$netns" unshare --uts --mount --propagation slave bash -c "$IN_NODE" node "$@")
}

# repair_hosts PID HOSTS: a rename over the machine's /etc/hosts (as by sed -i) drops the bind mount of the node
repair_hosts() {
  nsenter -t "$1" -m cmp -s /etc/hosts "$2" || nsenter -t "$1" -m mount --bind "$2" /etc/hosts
}

# remove_network BRIDGE NETNS...
remove_network() {
  local bridge=$1 netns port
  shift
  # the ports first: those of a deleted namespace would go some time later
  for port in $(ip -o link show master "$bridge" 2>/dev/null | sed 's/^[0-9]*: \([^@:]*\).*/\1/'); do ip link del "$port"; done
  for netns in "$@"; do
    [ ! -e "/run/netns/$netns" ] || ip netns del "$netns"
  done
  if ip link show "$bridge" >/dev/null 2>&1; then ip link del "$bridge"; fi
}
