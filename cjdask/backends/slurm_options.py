"""The options of Slurm's sbatch, and how they are written into a job script."""

from __future__ import annotations

import re
from difflib import get_close_matches

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import Resources, clock

__all__ = ["COMMON", "OPTIONS", "SHORT", "headers"]

_LONG = """
account acctg-freq array batch bb bbf begin chdir cluster-constraint clusters comment
consolidate-segments constraint container container-id contiguous core-spec cores-per-socket
cpu-freq cpus-per-gpu cpus-per-task deadline delay-boot dependency distribution error exclude
exclusive export export-file external extra extra-node-info get-user-env gid gpu-bind
gpu-freq gpus gpus-per-node gpus-per-socket gpus-per-task gres gres-flags help hint hold
ignore-pbs input job-name kill-on-invalid-dep licenses mail-type mail-user mcs-label mem
mem-bind mem-per-cpu mem-per-gpu mem-update mincpus network nice no-kill no-requeue nodefile
nodelist nodes ntasks ntasks-per-core ntasks-per-gpu ntasks-per-node ntasks-per-socket
oom-kill-step open-mode output overcommit oversubscribe parsable partition power prefer
priority profile propagate qos quiet reboot requeue reservation resources resv-ports runtime
segment signal sockets-per-node spread-job spread-segments stepmgr switches tasks-per-node
test-only thread-spec threads-per-core time time-min tmp tres-bind tres-per-task uid usage
use-min-nodes verbose version wait wait-all-nodes wckey wrap
"""
OPTIONS = frozenset(_LONG.split())
"""The long options of sbatch(1), of 22.05 and later versions."""

_SHORT = """
a=array A=account b=begin B=extra-node-info c=cpus-per-task C=constraint d=dependency D=chdir
e=error F=nodefile G=gpus h=help H=hold i=input J=job-name k=no-kill L=licenses m=distribution
M=clusters n=ntasks N=nodes o=output O=overcommit p=partition q=qos Q=quiet s=oversubscribe
S=core-spec t=time v=verbose V=version w=nodelist W=wait x=exclude
"""
SHORT = dict(pair.split("=") for pair in _SHORT.split())
"""The short options of sbatch(1) and the long ones that they stand for."""

COMMON = {
    "account": "--account",
    "array": "--array",
    "depends": "--dependency",
    "exclusive": "--exclusive",
    "gpus": "--gres",
    "jobname": "--job-name",
    "mem": "--mem",
    "nodes": "--nodes",
    "ppn": "--tasks-per-node",
    "queue": "--partition",
    "stderr": "--error",
    "stdout": "--output",
    "threads": "--cpus-per-task",
    "time": "--time",
}
"""The option for each common key."""

SAME = {
    "depends": ("kill-on-invalid-dep",),
    "gpus": ("gpus", "gpus-per-node"),
    "mem": ("mem-per-cpu", "mem-per-gpu"),
}
"""Further options that would say again, or otherwise, what a common key says."""

NOT_FOR_JOBS = dict.fromkeys(
    ("help", "parsable", "quiet", "test-only", "usage", "verbose", "version", "wait"),
    "it changes what sbatch prints or does, so that the job's id would be lost; leave it out",
) | {
    "clusters": "squeue and scancel would look for the job on another cluster; set SLURM_CLUSTERS "
    "in the environment, which all of them follow",
    "wrap": "the job has a script; put the command there",
}
"""Options that are refused however they are written, and why."""


def headers(resources: Resources, prefix: str) -> list[str]:
    """Write one header line for each resource.

    Raises:
        ResourcesNotSupportedError: an option that sbatch does not have or that a job must not
            have, or two that say the same.
    """
    lines = []
    said: dict[str, str] = {}
    for key in resources.given():
        if key in resources.native:
            option = _native(key)
            text = _written(option, resources.native[key])
            also: tuple[str, ...] = ()
        else:
            option = COMMON[key]
            text = _written(option, _value(resources, key))
            also = SAME.get(key, ())
        for name in (_long(option), *also):
            if name in said:
                raise ResourcesNotSupportedError(
                    f"{said[name]!r} and {key!r} both mean Slurm's --{name}; give one of them"
                )
            said[name] = key
        if key == "depends":
            text += " --kill-on-invalid-dep=yes"  # else it would be pending for ever
        lines.append(f"{prefix} {text}")
    return lines


def _long(option: str) -> str:
    """Return the long name of an option; ``--ntasks-per-node`` has two."""
    name = option.lstrip("-")
    name = name if option.startswith("--") else SHORT.get(name, name)
    return "ntasks-per-node" if name == "tasks-per-node" else name


def _native(key: str) -> str:
    """Return the option of sbatch for a key that is not a common one."""
    if key.startswith("-"):
        option = key
    else:
        option = f"-{key}" if len(key) == 1 else f"--{key.replace('_', '-')}"
    name = _long(option)
    if name in NOT_FOR_JOBS:
        raise ResourcesNotSupportedError(
            f"{key!r} cannot be asked for on Slurm: {NOT_FOR_JOBS[name]}"
        )
    if key != option and name not in OPTIONS:
        known = {*OPTIONS, *COMMON}
        close = get_close_matches(name, sorted(known), 3)
        raise ResourcesNotSupportedError(
            f"{key!r} is no option of Slurm's sbatch"
            + (f"; similar are {', '.join(close)}" if close else "")
            + f". To pass it on unchecked, for a SPANK plugin for instance, write it as {option!r}"
        )
    return option


def _value(resources: Resources, key: str) -> str | int | bool:
    if key == "depends":
        return "afterok:" + ":".join(resources.depends)
    value = getattr(resources, key)
    if key == "time":
        return clock(value)
    if key == "gpus":
        return f"gpu:{value}"
    return value if value is True else str(value)


def _written(option: str, value: str | float | bool) -> str:
    """Write an option as sbatch reads it from a script (sbatch.c, get_argument).

    In quotes of either kind a backslash still takes the next character as it is, and outside
    of them a ``#`` begins a comment anywhere in a word.
    """
    if value is True:
        return option
    text = str(value)
    if not text or re.search(r"[\s\"'\\#]", text):
        text = '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
    return f"{option}={text}" if option.startswith("--") else f"{option} {text}"
