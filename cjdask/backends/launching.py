"""Shell text that starts the processes of a job, on one node or on all of its nodes.

For backends whose scheduler has no launcher of its own that gives each process its rank and
the environment of the job script (as Slurm's ``srun`` does), but a command that starts a
program on another node of the job: ``pbs_tmrsh``, ``pbsdsh``, ``blaunch``, ``qrsh -inherit``,
``oarsh``. It needs bash 4 on the nodes.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from cjdask.resources import Resources

__all__ = ["launch", "local_processes", "over_hosts"]

# The names start with _cj_ so that none is a variable that the job script has exported: the
# processes would see it changed.

_START = """
_cj_start() {
    local _cj_i _cj_pid _cj_code _cj_worst=0 _cj_pids=()
    for ((_cj_i = 0; _cj_i < _cj_ppn; _cj_i++)); do
        CLUSTERJOB_RANK=$((_cj_node * _cj_ppn + _cj_i)) CLUSTERJOB_LOCAL_RANK=$_cj_i \\
            CLUSTERJOB_NODE_RANK=$_cj_node @GPUS@/bin/bash -c "$_cj_command" </dev/null &
        _cj_pids+=($!)
    done
    for _cj_pid in "${_cj_pids[@]}"; do
        _cj_code=0
        wait "$_cj_pid" || _cj_code=$?
        ((_cj_code <= _cj_worst)) || _cj_worst=$_cj_code
    done
    return "$_cj_worst"
}
"""
"""Starts the processes of one node; ends when all have, with their highest exit code."""

_SHARE = """
_cj_share() {
    local IFS=, _cj_devices _cj_n _cj_first _cj_next
    _cj_devices=${CUDA_VISIBLE_DEVICES:-$(@DEVICES@)}
    _cj_devices=(${_cj_devices:-$(seq -s, 0 $((@COUNT@ - 1)))})
    _cj_n=${#_cj_devices[@]}
    _cj_first=$(($1 * _cj_n / _cj_ppn)) _cj_next=$((($1 + 1) * _cj_n / _cj_ppn))
    ((_cj_n >= _cj_ppn)) || _cj_first=$(($1 % _cj_n)) _cj_next=$(($1 % _cj_n + 1))
    echo "${_cj_devices[*]:_cj_first:_cj_next - _cj_first}"
}
"""
"""Prints the GPUs of a process of this node.

Where the scheduler does not say which the job has, they are counted from 0: a scheduler that
hides those of others has no need to say.
"""

_LOCAL = """
_cj_ppn=$1 _cj_command=$2 _cj_node=@NODE@
_cj_start
"""

_OVER_HOSTS = """
_cj_nodes=$1 _cj_ppn=$2 _cj_command=$3 _cj_own=$4 _cj_check=$5 _cj_each=$6
_cj_fail() { echo "cjdask launcher: $1" >&2; exit 1; }
mapfile -t _cj_hosts < <(@HOSTS@ |
    awk -v each="$_cj_each" 'NF && (!seen[$1]++ || each) {print NR - 1, $1}')
((${#_cj_hosts[@]})) || _cj_fail "the scheduler names no nodes of this job"

# The file with program and environment must be seen by all nodes under a name that needs no
# quoting: the starters disagree about who quotes.
_cj_dir=$PWD
if [[ ! -w $_cj_dir || $_cj_dir == *[!A-Za-z0-9_./+-]* ]]; then _cj_dir=$HOME; fi
_cj_umask=$(umask)
umask 077
_cj_file=$(mktemp "$_cj_dir/.cjdask-launch.XXXXXXXXXX") || _cj_fail "cannot write to $_cj_dir"
trap 'rm -f "$_cj_file" "$_cj_file".*' EXIT
{
    (
        unset $_cj_own
        export -n SHELLOPTS BASHOPTS
        export -p
        export -pf
    ) 2>/dev/null
    printf 'umask %s\\ncd %q || exit 1\\n' "$_cj_umask" "$PWD"
    printf '_cj_ppn=%s _cj_command=%q _cj_node=$1\\n' "$_cj_ppn" "$_cj_command"
    declare -f _cj_start
    declare -f _cj_share || :
    printf '_cj_start\\n_cj_code=$?\\n'
    if [[ $_cj_check ]]; then
        printf '[[ -e %s ]] && (umask 077; echo "$_cj_code" >%s.$1)\\n' "$_cj_file" "$_cj_file"
    fi
    printf 'exit "$_cj_code"\\n'
} >"$_cj_file" || _cj_fail "cannot write $_cj_file"
umask "$_cj_umask"

# The first host is the one that this script runs on. Where the job has fewer hosts than
# nodes were asked for, several of its nodes share a host.
_cj_pids=() _cj_worst=0
for ((_cj_node = 0; _cj_node < _cj_nodes; _cj_node++)); do
    read -r _cj_index _cj_host <<<"${_cj_hosts[_cj_node % ${#_cj_hosts[@]}]}"
    if [[ $_cj_host == "${_cj_hosts[0]#* }" ]]; then
        /bin/bash "$_cj_file" "$_cj_node" &
    else
        @START@ </dev/null &
    fi
    _cj_pids+=($!)
done
for ((_cj_node = 0; _cj_node < _cj_nodes; _cj_node++)); do
    _cj_code=0
    wait "${_cj_pids[_cj_node]}" || _cj_code=$?
    if [[ $_cj_check && $_cj_code == 0 ]]; then
        for ((_cj_try = 0; _cj_try < 100; _cj_try++)); do
            [[ -s $_cj_file.$_cj_node ]] && break
            sleep 0.1
        done
        _cj_code=$(cat "$_cj_file.$_cj_node" 2>/dev/null) || _cj_code=1
    fi
    ((_cj_code <= _cj_worst)) || _cj_worst=$_cj_code
done
exit "$_cj_worst"
"""


def _bash(program: str, *arguments: str) -> str:
    """Return one shell command that runs a bash program, whatever shell the job script has."""
    return shlex.join(["/bin/bash", "-c", program.strip("\n"), "launcher", *arguments])


def _start(gpus: int, devices: str) -> str:
    """Return shell functions that start the processes of a node, each with its GPUs."""
    if not gpus:
        return _START.replace("@GPUS@", "")
    share = _SHARE.replace("@DEVICES@", devices).replace("@COUNT@", str(gpus))
    return share + _START.replace("@GPUS@", 'CUDA_VISIBLE_DEVICES=$(_cj_share "$_cj_i") ')


def local_processes(
    count: int, command: str, *, node: str = "0", gpus: int = 0, devices: str = ":"
) -> str:
    """Return shell text that runs ``command`` in ``count`` processes on this machine.

    It is the node that ``node`` says, a number or shell text that gives one; the ranks of node
    0 are 0 to ``count - 1``. A process that fails does not end the others; the exit code is the
    highest of all. For ``gpus`` and ``devices`` see `over_hosts`.
    """
    program = _start(gpus, devices) + _LOCAL.replace("@NODE@", node)
    return _bash(program, str(count), command)


def over_hosts(
    nodes: int,
    ppn: int,
    command: str,
    *,
    hosts: str,
    start: str,
    own: Sequence[str] = (),
    returns_code: bool = True,
    each: bool = False,
    gpus: int = 0,
    devices: str = ":",
) -> str:
    """Return shell text that runs ``command`` in ``ppn`` processes on each of ``nodes`` nodes.

    The processes have the environment of the job script (also values of several lines and
    exported functions), its folder and its umask. What they need for that is in a file in
    this folder, or in ``$HOME`` where the folder cannot be used; only the user can read it,
    and it is removed at the end. The exit code is the highest of all processes.

    Args:
        nodes: how many nodes.
        ppn: processes on each.
        command: shell text, run by bash.
        hosts: a shell command that prints a host of the job on each line, that of the job
            script first; a host may come several times.
        start: the shell command that runs a program on another host and waits for it. In it
            ``{host}`` stands for the host, ``{index}`` for the number of the line of ``hosts``
            that named it first (from 0), and ``{program}`` for the program with its arguments,
            several words without characters that any shell would change.
        own: variables that belong to a host, and are not to be those of the job script.
        returns_code: whether the exit code of ``start`` is that of the program; if not, it
            comes back through a file.
        each: each line of ``hosts`` is for one node, so that a host that comes several times
            is that of several nodes.
        gpus: how many GPUs the job has on each node. The processes of a node share them out
            by ``CUDA_VISIBLE_DEVICES``, if there are more processes several use the same.
        devices: a shell command that prints the GPUs of a node, with commas between them,
            where the scheduler does not set ``CUDA_VISIBLE_DEVICES``.
    """
    words = {"{host}": '"$_cj_host"', "{index}": '"$_cj_index"'}
    words["{program}"] = '/bin/bash "$_cj_file" "$_cj_node"'
    for word, text in words.items():
        start = start.replace(word, text)
    program = _start(gpus, devices)
    program += _OVER_HOSTS.replace("@HOSTS@", hosts).replace("@START@", start)
    check = "" if returns_code else "yes"
    own_names = " ".join(["HOSTNAME", *(["CUDA_VISIBLE_DEVICES"] if gpus else []), *own])
    return _bash(program, str(nodes), str(ppn), command, own_names, check, "yes" if each else "")


def launch(
    resources: Resources,
    command: str,
    *,
    hosts: str,
    start: str,
    own: Sequence[str] = (),
    returns_code: bool = True,
    each: bool = False,
    devices: str = ":",
) -> str:
    """Return shell text as `BatchBackend.launcher` must: on one node directly, else `over_hosts`.

    A backend's ``launcher`` is one call of this.
    """
    nodes, ppn, gpus = resources.nodes or 1, resources.ppn or 1, resources.gpus or 0
    if nodes == 1:
        return local_processes(ppn, command, gpus=gpus, devices=devices)
    return over_hosts(
        *(nodes, ppn, command),
        hosts=hosts,
        start=start,
        own=own,
        returns_code=returns_code,
        each=each,
        gpus=gpus,
        devices=devices,
    )
