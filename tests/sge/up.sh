#!/bin/bash
# Raise a real (Son of) Grid Engine on this machine: the master here and two execution hosts, sgen1 and sgen2.
#
#   tests/sge/up.sh      install what is missing, configure, start what does not run, wait until it is ready
#
# For Debian 12 as root, with or without systemd.  May be called again at any time: what runs is left alone.  Clients
# (qsub and so on) need no variables.  tests/sge/down.sh stops it all; tests/sge/ctl.sh stops and starts the master alone.
#
# The execution hosts are machines of their own as far as the network goes: own host name, own address on a private
# bridge, 127.0.0.1 their own.  Files, /tmp included, and processes are those of this machine, which they reach by its
# host name or as sgehead.
#
#   queue                  all.q: 8 slots on each host, sgen1 filled first
#   parallel environments  smp (one host), mpi ($fill_up), rr ($round_robin), two (2 on each host)
#   resources              gpu: 2 on each host, as in -l gpu=1
#   users                  everyone; root and hpc exist
#
# PYTHON_HOME=DIR  lets the user hpc run a Python that lies under root's private home.
set -euo pipefail
# shellcheck source=tests/sge/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock

if [ -s $COMMON/act_qmaster ] && [ "$(cat $COMMON/act_qmaster)" != $MASTER ]; then
  die "$COMMON/act_qmaster names $(cat $COMMON/act_qmaster): there seems to be another Grid Engine here"
fi
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# ---- packages, users, directories
if [ ! -x /usr/sbin/sge_qmaster ]; then   # the package is not to configure a cluster of its own
  echo "gridengine-common shared/gridengineconfig boolean false" | debconf-set-selections
fi
install_packages gridengine-master gridengine-exec gridengine-client iproute2 util-linux
make_job_user
install -d -m 755 -o sgeadmin -g sgeadmin $VAR $VAR/execd $RUN $COMMON
install -d -m 755 $LOG
# hosts share /tmp, and job ids: one place for each, or the first task that ends removes the $TMPDIR of the others
for node in "${NODES[@]}"; do install -d -m 1777 "$VAR/tmp-$node"; done

# ---- network and names
SUBNET=$(choose_subnet $BRIDGE 10.163.51 10.163.52 10.217.15 172.29.173)
make_bridge $BRIDGE "$SUBNET"
lines=("$SUBNET.1 $MASTER")
for node in "${NODES[@]}"; do
  address=$SUBNET.$((10 + ${node#sgen}))
  join_bridge $BRIDGE "cj$node" "${node#sgen}" "$address"
  lines+=("$address $node")
done
set_hosts "${lines[@]}"
printf '%s\n' "127.0.0.1 localhost" "${lines[@]/%$MASTER/$MASTER $(hostname)}" >$RUN/hosts
# the address of a client here may resolve to this machine's name or to localhost: both are to mean the master
echo "$MASTER $(hostname) localhost" >"$work/host_aliases"
if ! cmp -s "$work/host_aliases" $COMMON/host_aliases; then
  install -m 644 "$work/host_aliases" $COMMON/host_aliases
  stop_daemons
fi

# ---- the cell, and the master
if [ ! -e $VAR/spooldb/sge ]; then
  rm -rf $VAR/qmaster $VAR/spooldb $VAR/configured
  install -d -m 755 -o sgeadmin -g sgeadmin $VAR/qmaster $VAR/qmaster/job_scripts $VAR/spooldb
  sed "s|/var/spool/gridengine/|$VAR/|" /usr/share/gridengine/default-bootstrap >$COMMON/bootstrap
  echo $MASTER >$COMMON/act_qmaster
  chown sgeadmin:sgeadmin $COMMON/bootstrap $COMMON/act_qmaster
  runuser -u sgeadmin -- /usr/share/gridengine/scripts/init_cluster $ROOT default $VAR/spooldb sgeadmin \
    >$LOG/init.out 2>&1 9>&- || { rm -rf $VAR/spooldb; die "no cluster could be made, see $LOG/init.out"; }
fi
start_master

# ---- configuration, when it is new or this script has changed
change() { # change FILE KEY VALUE: in what qconf shows
  if grep -q "^$2 " "$1"; then sed -i "s|^$2 .*|$2 $3|" "$1"; else echo "$2 $3" >>"$1"; fi
}
configure() {
  local show=(env SGE_SINGLE_LINE=1 qconf) node pe rule control

  for node in $MASTER "${NODES[@]}"; do
    qconf -ah "$node"   # may administer
    qconf -as "$node"   # may submit
  done

  "${show[@]}" -sconf global | sed '/^#/d' >global
  change global execd_spool_dir $VAR/execd
  change global min_uid 0   # root's jobs too
  change global min_gid 0
  change global load_report_time 00:00:05
  change global max_unheard 00:00:30
  change global mailer /bin/true
  change global administrator_mail none
  change global reporting_params "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 joblog=true sharelog=00:00:00"
  qconf -Mconf global

  "${show[@]}" -ssconf >scheduler
  change scheduler schedule_interval 0:0:1
  change scheduler flush_submit_sec 1
  change scheduler flush_finish_sec 1
  change scheduler schedd_job_info true
  change scheduler job_load_adjustments NONE
  change scheduler load_adjustment_decay_time 0:0:0
  change scheduler queue_sort_method seqno
  qconf -Msconf scheduler

  qconf -sc >complexes
  change complexes gpu "gpu INT <= YES YES 0 0"
  qconf -Mc complexes

  for node in "${NODES[@]}"; do
    printf '%s\n' "hostname $node" "load_scaling NONE" "complex_values gpu=2" "user_lists NONE" "xuser_lists NONE" \
      "projects NONE" "xprojects NONE" "usage_scaling NONE" "report_variables NONE" >host
    add_or_change e "$node" host
  done
  printf '%s\n' "group_name @allhosts" "hostlist ${NODES[*]}" >hosts
  add_or_change hgrp @allhosts hosts

  while read -r pe rule control; do
    printf '%s\n' "pe_name $pe" "slots 999" "user_lists NONE" "xuser_lists NONE" "start_proc_args NONE" \
      "stop_proc_args NONE" "allocation_rule $rule" "control_slaves $control" "job_is_first_task FALSE" \
      "urgency_slots min" "accounting_summary FALSE" "qsort_args NONE" >pe
    add_or_change p "$pe" pe
  done <<'PES'
smp $pe_slots FALSE
mpi $fill_up TRUE
rr $round_robin TRUE
two 2 TRUE
PES

  local limits tmpdir=/tmp seq_no=0 i=0
  for node in "${NODES[@]}"; do
    i=$((i + 1))
    tmpdir+=",[$node=$VAR/tmp-$node]"
    seq_no+=",[$node=$i]"
  done
  limits=$(for limit in rt cpu fsize data stack core rss vmem; do printf 's_%s INFINITY\nh_%s INFINITY\n' $limit $limit; done)
  cat >queue <<QUEUE
qname all.q
hostlist @allhosts
seq_no $seq_no
load_thresholds NONE
suspend_thresholds NONE
nsuspend 1
suspend_interval 00:05:00
priority 0
min_cpu_interval 00:05:00
processors UNDEFINED
qtype BATCH INTERACTIVE
ckpt_list NONE
pe_list smp mpi rr two
rerun FALSE
slots 8
tmpdir $tmpdir
shell /bin/sh
prolog NONE
epilog NONE
shell_start_mode posix_compliant
starter_method NONE
suspend_method NONE
resume_method NONE
terminate_method NONE
notify 00:00:05
owner_list NONE
user_lists NONE
xuser_lists NONE
subordinate_list NONE
complex_values NONE
projects NONE
xprojects NONE
calendar NONE
initial_state default
$limits
QUEUE
  add_or_change q all.q queue
}
add_or_change() { # KIND NAME FILE
  if qconf "-s$1" "$2" >/dev/null 2>&1; then qconf "-M$1" "$3"; else qconf "-A$1" "$3"; fi
}
version=$(sha256sum <"${BASH_SOURCE[0]}")
if [ "$(cat $VAR/configured 2>/dev/null)" != "$version" ]; then
  set +e   # in a condition errors would not end the function
  (set -e; cd "$work"; configure) >$LOG/configure.out 2>&1
  result=$?
  set -e
  [ $result = 0 ] || { tail -n 3 $LOG/configure.out >&2; die "not configured, see $LOG/configure.out"; }
  echo "$version" >$VAR/configured
fi

# ---- execution daemons
for node in "${NODES[@]}"; do
  if pid=$(daemon_pid "$RUN/execd-$node.pid" sge_execd); then
    repair_hosts "$pid" $RUN/hosts
    continue
  fi
  node_command "cj$node" "$node" $RUN/hosts sge_execd
  detached "$LOG/execd-$node.out" SGE_EXECD_PIDFILE="$RUN/execd-$node.pid" "${NODE_COMMAND[@]}"
done

ready() { # both queue instances have no state letter: no u (unheard of), a (load unknown), E (error)
  [ "$(qstat -f -q all.q | awk '/^all.q@/ && NF == 5' | wc -l)" = ${#NODES[@]} ]
}
wait_for 60 "the execution hosts, see $LOG" ready
echo "Grid Engine $(dpkg-query -W -f='${Version}' gridengine-master | cut -d+ -f1 | cut -d- -f1) is ready:" \
  "execution hosts ${NODES[*]}; this machine is $MASTER, $SUBNET.1, to them"
