#!/bin/bash
# Raise hosts to reach by ssh on this machine: real sshds of Debian, each in a network namespace.
#
#   tests/ssh/up.sh      install what is missing, make keys, start what does not run
#
# For Debian 12 as root, with or without systemd.  May be called again at any time: what runs is left alone.
#
#   cjlogin     the login node of the Slurm of tests/slurm/up.sh, if that is up: in the network of its nodes too
#   cjplain     a host without a scheduler
#   cjclient    a network namespace (cjssh-cjclient), no host: from there nothing but the ssh ports of both can be reached
#
# One logs in as the user hpc, by a key or by a password.  What clients need is in /var/lib/cjdask-ssh, for root or who called sudo:
# ssh_config (both hosts, the key, the host keys), key, password, known_hosts.  The folder `full` there is a disk of 1 MB.
# Files and processes are those of this machine; each host has a name and a network of its own.
#
# PYTHON_HOME=DIR  lets the user hpc run a Python that lies under root's private home.
set -euo pipefail
# shellcheck source=tests/ssh/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
take_lock

install_packages openssh-server openssh-client nftables iproute2 util-linux
make_job_user
install -d -m 755 $RUN $LOG /run/sshd
install -d -m 711 $VAR
for host in "${HOSTS[@]}"; do install -d -m 755 "$VAR/$host"; done

# ---- network
SUBNET=$(choose_subnet $BRIDGE 10.163.61 10.163.62 10.217.7 172.29.165)
make_bridge $BRIDGE "$SUBNET"
declare -A ADDRESS=([cjlogin]=$SUBNET.11 [cjplain]=$SUBNET.12)
number=0
for host in "${HOSTS[@]}"; do
  number=$((number + 1))
  join_bridge $BRIDGE "cjssh-$host" $number "${ADDRESS[$host]}"
done
join_bridge $BRIDGE "cjssh-$CLIENT" 9 "$SUBNET.99"
ip netns exec "cjssh-$CLIENT" nft -f - <<NFT
table inet cjdask
delete table inet cjdask
table inet cjdask {
  chain output {
    type filter hook output priority 0; policy drop
    oifname "lo" accept
    ip daddr { ${ADDRESS[cjlogin]}, ${ADDRESS[cjplain]} } tcp dport 22 accept
  }
}
NFT

# ---- the login node is in the network of the Slurm's nodes too
others=""
if ip link show $SLURM_BRIDGE >/dev/null 2>&1; then
  slurm=$(ip -o -4 addr show dev $SLURM_BRIDGE | sed -n 's|.* inet \([0-9.]*\)\.1/24 .*|\1|p')
  if ! ip -n cjssh-cjlogin link show eth1 >/dev/null 2>&1; then
    ip link add "${SLURM_BRIDGE}p50" type veth peer name eth1 netns cjssh-cjlogin
    ip link set "${SLURM_BRIDGE}p50" master $SLURM_BRIDGE up
    ip -n cjssh-cjlogin addr add "$slurm.50/24" dev eth1
    ip -n cjssh-cjlogin link set eth1 up
  fi
  others=$(cat /run/cjdask-slurm/hosts)
fi
mapfile -t lines < <(for host in "${HOSTS[@]}"; do echo "${ADDRESS[$host]} $host"; done)
set_hosts "${lines[@]}"
printf '%s\n' "${others:-127.0.0.1 localhost}" "${lines[@]}" >$RUN/hosts

# ---- keys and the password
[ -s $VAR/key ] || ssh-keygen -q -t ed25519 -N '' -C 'cjdask test' -f $VAR/key
install -d -m 755 $VAR/authorized
install -m 644 $VAR/key.pub "$VAR/authorized/$JOB_USER"
if [ ! -s $VAR/password ]; then
  (umask 077; head -c 18 /dev/urandom | base64 | tr -d '\n' >$VAR/password)
  printf '%s:%s\n' "$JOB_USER" "$(cat $VAR/password)" | chpasswd
fi
for host in "${HOSTS[@]}"; do
  [ -s "$VAR/$host/key" ] || ssh-keygen -q -t ed25519 -N '' -C "$host" -f "$VAR/$host/key"
  cat >"$VAR/$host/sshd_config" <<CONF
ListenAddress 0.0.0.0
HostKey $VAR/$host/key
PidFile $RUN/$host.pid
AuthorizedKeysFile $VAR/authorized/%u
AllowUsers $JOB_USER
UsePAM no
PasswordAuthentication yes
KbdInteractiveAuthentication no
LogLevel VERBOSE
PrintMotd no
X11Forwarding no
UseDNS no
Subsystem sftp /usr/lib/openssh/sftp-server
CONF
done
for host in "${HOSTS[@]}"; do
  echo "$host,${ADDRESS[$host]} $(cut -d' ' -f1,2 "$VAR/$host/key.pub")"
done >$VAR/known_hosts
{
  for host in "${HOSTS[@]}"; do printf 'Host %s\n  HostName %s\n' "$host" "${ADDRESS[$host]}"; done
  cat <<CONF
Host *
  User $JOB_USER
  IdentityFile $VAR/key
  IdentitiesOnly yes
  UserKnownHostsFile $VAR/known_hosts
  GlobalKnownHostsFile /dev/null
CONF
} >$VAR/ssh_config
# root, or who called sudo, is who runs the tests
chown "${SUDO_USER:-root}" $VAR/{ssh_config,known_hosts,key,password}
chmod 600 $VAR/ssh_config $VAR/known_hosts

# ---- a disk that is soon full
mkdir -p $VAR/full
mountpoint -q $VAR/full || mount -t tmpfs -o size=1m,mode=777 cjdask-full $VAR/full

for host in "${HOSTS[@]}"; do start_host "$host"; done
answers() { ssh -F $VAR/ssh_config -o BatchMode=yes -o ConnectTimeout=5 "$1" true </dev/null; }
for host in "${HOSTS[@]}"; do wait_for 20 "$host, see $LOG/$host.log" answers "$host"; done
echo "the ssh hosts are ready: ${HOSTS[*]}"
