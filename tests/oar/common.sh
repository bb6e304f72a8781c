# shellcheck shell=bash
# Places and daemons of the OAR that tests/oar/up.sh raises; sourced by the scripts beside it.
NAME=oar
# shellcheck source=tests/schedulers.sh
. "$(dirname "${BASH_SOURCE[0]}")/../schedulers.sh"

ETC=/etc/oar                    # where Debian's clients look: they need no variable
RUN=/run/cjdask-oar             # pid files, socket of the database
VAR=/var/lib/cjdask-oar         # database, files of the jobs on each node
LOG=/var/log/cjdask-oar
BRIDGE=cjoar0
SERVER=oarserver                # this machine, as OAR calls it
NODES=(oarn1 oarn2)
CORES=8                         # of each node
DB_PORT=5444
DB_PID=$RUN/db/postgres.pid
RUNTIME=/var/lib/cjdask-oar-runtime   # the same name on all nodes, with files of its own on each
CGROUPS=(cpuset cpu cpuacct devices freezer)
CGROUP=/sys/fs/cgroup

# oar-server(8) writes the pid of the process that becomes Almighty
SERVER_PID=/var/run/oar-server.pid

# children PID: the processes below it, the deepest first
children() {
  local child
  for child in $(cat "/proc/$1/task/"*/children 2>/dev/null || true); do
    children "$child"
    echo "$child"
  done
}

stop_server() {
  local pid signal below=()
  if pid=$(daemon_pid $SERVER_PID Almighty); then mapfile -t below < <(children "$pid"); fi
  stop_daemon $SERVER_PID Almighty
  for signal in TERM KILL; do   # its modules; a pid that is another's by now is not of the user oar
    for pid in "${below[@]}"; do
      [ "$(stat -c %U "/proc/$pid" 2>/dev/null)" != oar ] || kill "-$signal" "$pid" 2>/dev/null || true
    done
    [ ${#below[@]} = 0 ] || sleep 0.5
  done
}

# what runs in the nodes: the processes in their cgroups, which are nobody else's
empty_cgroups() {
  local controller dir pids
  for controller in "${CGROUPS[@]}"; do
    while read -r dir; do
      for _ in $(seq 50); do
        pids=$(cat "$dir/cgroup.procs")
        [ -n "$pids" ] || break
        # shellcheck disable=SC2086
        kill -KILL $pids 2>/dev/null || true
        sleep 0.1
      done
      rmdir "$dir" || true
    done < <(find "$CGROUP/$controller/cjdask-oar" -depth -type d 2>/dev/null)
  done
}

stop_database() {
  # fast shutdown: open sessions are ended
  local pid
  if pid=$(daemon_pid $DB_PID postgres); then kill -INT "$pid"; fi
  stop_daemon $DB_PID postgres
}

stop_daemons() {
  local node
  stop_server
  for node in "${NODES[@]}"; do stop_daemon "$RUN/sshd-$node.pid" sshd; done
  empty_cgroups
  stop_database
}
