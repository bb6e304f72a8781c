#!/bin/bash
# Raise a real OAR 2.5 on this machine: PostgreSQL, the server, and two nodes oarn1 and oarn2 of 8 cores.
#
#   tests/oar/up.sh        install what is missing, write /etc/oar, start what does not run, wait until it is ready
#
# For Debian 12 as root, with or without systemd, where the controllers cpuset, cpu, cpuacct, devices and freezer are
# mounted as cgroups of version 1 under /sys/fs/cgroup: OAR needs them.  May be called again at any time: what runs is
# left alone.  Clients (oarsub and so on) need no variables.  tests/oar/down.sh stops it all.
#
# Every node is a machine of its own as far as network, host name and cgroups go, and shares files, /tmp included.
# Jobs must be those of a normal user, such as hpc: OAR refuses root's.
#
# PYTHON_HOME=DIR  lets the user hpc run a Python that lies under root's private home.
set -euo pipefail
# shellcheck source=tests/oar/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock
for controller in "${CGROUPS[@]}"; do
  [ -w "$CGROUP/$controller/cgroup.procs" ] || die "needs cgroups of version 1: there is no $CGROUP/$controller"
done

# ---- packages, users, directories
install_packages oar-server oar-server-pgsql oar-user oar-user-pgsql oar-node openssh-server postgresql-15 \
  libjson-perl libyaml-perl taktuk iproute2 util-linux
make_job_user
install -d -m 755 $VAR $LOG
install -d -m 755 $RUN
install -d -m 755 -o postgres -g postgres $RUN/db
install -d -m 755 -o oar -g oar $RUNTIME
install -d -m 755 /run/sshd

# ---- network
SUBNET=$(choose_subnet $BRIDGE 10.163.61 10.163.62 10.217.7 172.29.165)
address() { echo "$SUBNET.$((10 + ${1#oarn}))"; }
make_bridge $BRIDGE "$SUBNET"
for node in "${NODES[@]}"; do join_bridge $BRIDGE "cjoar-$node" "${node#oarn}" "$(address "$node")"; done
mapfile -t lines < <(echo "$SUBNET.1 $SERVER"; for node in "${NODES[@]}"; do echo "$(address "$node") $node"; done)
set_hosts "${lines[@]}"
printf '%s\n' "127.0.0.1 localhost" "${lines[@]}" >$RUN/hosts

# ---- database: files of its own, so that another one on the machine does not mind
sql() { runuser -u postgres -- psql -h $RUN/db -p $DB_PORT -qAt "$@"; }
if ! alive $DB_PID postgres; then
  if [ ! -s $VAR/db/PG_VERSION ]; then
    rm -rf $VAR/db
    install -d -m 700 -o postgres -g postgres $VAR/db
    runuser -u postgres -- /usr/lib/postgresql/15/bin/initdb -D $VAR/db -E UTF8 --locale=C.UTF-8 \
      --auth-local=trust --auth-host=md5 >$LOG/initdb.out 2>&1 9>&-
    cat >>$VAR/db/postgresql.conf <<CONF
listen_addresses = '*'
port = $DB_PORT
unix_socket_directories = '$RUN/db'
external_pid_file = '$DB_PID'
fsync = off
synchronous_commit = off
full_page_writes = off
CONF
  fi
  grep -q "$SUBNET.0/24" $VAR/db/pg_hba.conf || echo "host all all $SUBNET.0/24 md5" >>$VAR/db/pg_hba.conf
  lasting $LOG/postgres.out runuser -u postgres -- /usr/lib/postgresql/15/bin/postgres -D $VAR/db
fi
wait_for 60 PostgreSQL sql -c "select 1" postgres

# ---- configuration
# OAR's own manager of cgroups removes all that the user of a job has under /tmp, /var/tmp and /dev/shm, and the
# user's shared memory, when the last job of the user on a node has ended; here that is this machine's: never.
manager=$ETC/job_resource_manager_cjdask.pl
sed -e 's/^my @Tmp_dir_to_clear = .*/my @Tmp_dir_to_clear = ();/' -e 's/if (\$#cpusets < 0) {/if (0) {/' \
  $ETC/job_resource_manager_cgroups.pl >$manager
[ "$(grep -cE 'if \(0\) \{|Tmp_dir_to_clear = \(\);' $manager)" -ge 2 ] || die "could not disarm $manager"
chmod 644 $manager
setting() {
  if grep -qE "^#?$1=" $ETC/oar.conf; then
    sed -i -E "0,/^#?$1=.*/s||$1=\"$2\"|" $ETC/oar.conf
  else
    echo "$1=\"$2\"" >>$ETC/oar.conf
  fi
}
setting DB_HOSTNAME $SERVER
setting DB_PORT $DB_PORT
setting DB_BASE_PASSWD oarpw
setting DB_BASE_PASSWD_RO oarropw
setting SERVER_HOSTNAME $SERVER
setting OAR_RUNTIME_DIRECTORY $RUNTIME
setting JOB_RESOURCE_MANAGER_FILE $manager
setting SCHEDULER_JOB_SECURITY_TIME 1
setting SCHEDULER_MIN_TIME_BETWEEN_2_CALLS 0
chown oar:root $ETC/oar.conf
chmod 600 $ETC/oar.conf
# Almighty looks for commands and for walltimes every 10 s, for which there is no setting
sed -i -E 's/^(my \$(read_commands_timeout|villainstimeout)) = 10;/\1 = 1;/' /usr/lib/oar/Almighty

if [ -z "$(sql -c "select 1 from pg_database where datname = 'oar'" postgres)" ]; then
  if [ -z "$(sql -c "select 1 from pg_roles where rolname = 'oaradmin'" postgres)" ]; then
    sql -c "create role oaradmin superuser login password 'oaradm'" postgres
    sql -c "create database oaradmin" postgres
  fi
  oar-database --create --db-admin-user oaradmin --db-admin-pass oaradm >$LOG/oar-database.out 2>&1 9>&- ||
    die "oar-database failed, see $LOG/oar-database.out"
fi

# ---- server
alive $SERVER_PID Almighty || detached $LOG/server.out /usr/sbin/oar-server
listens() { (exec 3<>"/dev/tcp/$SERVER/6666"); }
wait_for 30 "the server, see /var/log/oar.log" listens

# ---- nodes: sshd of OAR, in a network, a host name, cgroups and a runtime directory of its own
[ -s $ETC/oar_ssh_host_rsa_key ] || ssh-keygen -q -t rsa -N '' -f $ETC/oar_ssh_host_rsa_key
chown root:root $ETC/oar_ssh_host_rsa_key
chmod 600 $ETC/oar_ssh_host_rsa_key
# shellcheck disable=SC2016
IN_OAR_NODE='set -e
node=$1 files=$2 hosts=$3 pidfile=$4 root=$5 runtime=$6
shift 6
hostname "$node"
mount -t tmpfs none "$root"     # the node sees its own cgroups as the roots
for controller; do mkdir "$root/$controller"; mount -t cgroup -o "$controller" none "$root/$controller"; done
mount --bind "$files" "$runtime"
mount --bind "$hosts" /etc/hosts
if [ -e /etc/resolv.conf ]; then mount --bind /dev/null /etc/resolv.conf; fi
exec /usr/sbin/sshd -f /etc/oar/sshd_config -o "PidFile=$pidfile" -o Port=6667'
start_node() {
  local node=$1 controller dir
  for controller in "${CGROUPS[@]}"; do
    for dir in "$CGROUP/$controller/cjdask-oar" "$CGROUP/$controller/cjdask-oar/$node"; do
      mkdir -p "$dir"
      if [ "$controller" = cpuset ]; then
        cat "$dir/../cpuset.cpus" >"$dir/cpuset.cpus"
        cat "$dir/../cpuset.mems" >"$dir/cpuset.mems"
      fi
    done
    echo $BASHPID >"$CGROUP/$controller/cjdask-oar/$node/cgroup.procs"
  done
  rm -rf "$VAR/runtime-$node"
  install -d -m 755 -o oar -g oar "$VAR/runtime-$node"
  exec_daemon "$LOG/sshd-$node.out" nsenter "--net=/run/netns/cjoar-$node" \
    unshare --uts --mount --cgroup --propagation private bash -c "$IN_OAR_NODE" node \
    "$node" "$VAR/runtime-$node" $RUN/hosts "$RUN/sshd-$node.pid" $CGROUP $RUNTIME "${CGROUPS[@]}"
}
for node in "${NODES[@]}"; do
  if pid=$(daemon_pid "$RUN/sshd-$node.pid" sshd); then
    repair_hosts "$pid" $RUN/hosts
    continue
  fi
  (start_node "$node")
  wait_for 20 "sshd of $node, see $LOG" alive "$RUN/sshd-$node.pid" sshd
done

# ---- resources
known=$(oarproperty -l)
has_property() { grep -qx "$1" <<<"$known"; }
has_property host || oarproperty -a host -c >/dev/null
has_property memnode || oarproperty -a memnode >/dev/null
for property in cpu core; do has_property $property || oarproperty -a $property >/dev/null; done
there=$(oarnodes -l)
count=0
for node in "${NODES[@]}"; do
  for ((core = 0; core < CORES; core++)); do
    count=$((count + 1))
    grep -qx "$node" <<<"$there" && continue
    oarnodesetting -a -h "$node" -p "host=$node" -p "cpu=${node#oarn}" -p core=$count -p memnode=16000 \
      -p "cpuset=$((core % $(nproc)))" >>$LOG/resources.out 2>&1
  done
  oarnodesetting -s Alive -h "$node" >>$LOG/resources.out 2>&1
done
ready() { [ "$(oarnodes -s | grep -c ': Alive$')" = $((CORES * ${#NODES[@]})) ]; }
wait_for 60 "the nodes, see $LOG and /var/log/oar.log" ready
echo "OAR $(oarsub -V | sed 's/.* : //') is ready: nodes ${NODES[*]}; this machine is $SUBNET.1 to them"
