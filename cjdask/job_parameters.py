"""What pybatch describes a job by, and what that is in nodes, ppn and memory per node."""

from __future__ import annotations

import os
import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cjdask.backends import BatchBackend
from cjdask.errors import ResourcesNotSupportedError

__all__ = ["LaunchParameters", "extra_lines", "resources_of"]

FREE = ("local",)
"""Backends without queues and projects: what is for those of a big machine is left out."""


@dataclass
class LaunchParameters:
    """A job as pybatch describes it.

    ``command`` runs in ``work_directory``, which is made there; ``input_files`` of this machine
    are copied into it before. With ``total_jobs`` above 1 it is an array, of which at most
    ``max_simul_jobs`` run at a time, and the index, from 0 on, is the command's last argument.
    ``nodes``, ``ntasks`` and texts that are empty are left to the scheduler. ``wall_time`` has
    the forms of `time_to_seconds`, memory those of Slurm (``"32G"``). ``extra_as_list`` are
    options of the scheduler, ``extra_as_string`` lines for the top of the script.
    ``create_nodefile`` writes the node of each task to ``batch_nodefile.txt``, which the command
    finds by ``LIBBATCH_NODEFILE``. ``python_exe`` is a Python for a host without a scheduler.
    """

    command: list[str]
    work_directory: str
    name: str = ""
    total_jobs: int = 1
    max_simul_jobs: int = 1
    nodes: int = 0
    ntasks: int = 0
    exclusive: bool = False
    wall_time: str = ""
    mem_per_node: str = ""
    mem_per_cpu: str = ""
    queue: str = ""
    partition: str = ""
    wckey: str = ""
    extra_as_string: str = ""
    extra_as_list: list[str] = field(default_factory=list)
    input_files: list[str | Path] = field(default_factory=list)
    is_posix: bool = True
    python_exe: str = "python3"
    create_nodefile: bool = False

    def check(self) -> None:
        """Check what no scheduler could make something of.

        Raises:
            ResourcesNotSupportedError: a value cannot be; the message names it.
        """
        if isinstance(self.command, str) or not self.command:
            raise _wrong("command", self.command, "give a list: program and arguments")
        if not self.work_directory:
            raise _wrong("work_directory", self.work_directory, "give a folder")
        for name, least in (("total_jobs", 1), ("max_simul_jobs", 1), ("nodes", 0), ("ntasks", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise _wrong(name, value, f"give a whole number from {least} on")
        if not self.is_posix:
            raise _wrong("is_posix", self.is_posix, "jobs run on Linux only")

    @property
    def jobname(self) -> str:
        """The name of the job, by default that of its program."""
        return self.name or os.path.basename(self.command[0]) or "job"


def _wrong(name: str, value: object, what: str) -> ResourcesNotSupportedError:
    return ResourcesNotSupportedError(f"{name}={value!r}: {what}")


def resources_of(params: LaunchParameters, backend: BatchBackend) -> dict[str, Any]:
    """Return the resources that a job is to ask a scheduler for.

    Raises:
        ResourcesNotSupportedError: it cannot be asked so.
    """
    params.check()
    asked: dict[str, Any] = {"time": params.wall_time or None}
    asked |= {"exclusive": params.exclusive or None, **_processes(params, backend)}
    asked |= _memory(params, backend, asked.get("ppn") or 1)
    if backend.name not in FREE:
        asked["queue"] = params.partition or params.queue or None
        if params.partition and params.queue:
            asked |= _only_slurm("queue", params.queue, backend, "qos", "give one of both")
        if params.wckey:
            asked |= _only_slurm("wckey", params.wckey, backend, "wckey", "leave it out")
        options, _ = _extra(params, backend)
        asked |= options
    if params.total_jobs > 1:
        asked["array"] = f"0-{params.total_jobs - 1}%{params.max_simul_jobs}"
    return {key: value for key, value in asked.items() if value is not None}


def _only_slurm(
    name: str, value: str, backend: BatchBackend, option: str, instead: str
) -> dict[str, Any]:
    if backend.name != "slurm":
        raise _wrong(name, value, f"{backend.name} has no such thing; {instead}")
    return {option: value}


def _processes(params: LaunchParameters, backend: BatchBackend) -> dict[str, Any]:
    """Return nodes and processes per node; Slurm itself spreads tasks over nodes as it likes."""
    nodes, tasks = params.nodes, params.ntasks
    if backend.name == "local" and nodes > 1:
        raise _wrong("nodes", nodes, "a host without a scheduler is one node")
    if not tasks:
        return {"nodes": nodes or None}
    if nodes and tasks % nodes == 0:
        return {"nodes": nodes, "ppn": tasks // nodes}
    if backend.name == "slurm":
        return {"nodes": nodes or None, "ntasks": tasks}
    if nodes:
        raise _wrong("ntasks", tasks, f"{backend.name} takes a multiple of nodes={nodes}")
    return {"nodes": 1, "ppn": tasks}


def _memory(params: LaunchParameters, backend: BatchBackend, ppn: int) -> dict[str, Any]:
    if params.mem_per_node and params.mem_per_cpu:
        raise _wrong("mem_per_cpu", params.mem_per_cpu, "give it or mem_per_node, not both")
    if params.mem_per_node:
        return {"mem": _megabytes("mem_per_node", params.mem_per_node)}
    if not params.mem_per_cpu:
        return {}
    each = _megabytes("mem_per_cpu", params.mem_per_cpu)
    return {"mem_per_cpu": f"{each}M"} if backend.name == "slurm" else {"mem": each * ppn}


def _megabytes(name: str, text: str) -> int:
    """Read memory as Slurm does: units of 1024, megabytes without one."""
    match = re.fullmatch(r"\s*(\d+)\s*([KMGT]?)I?B?\s*", text, re.IGNORECASE)
    if not match or int(match[1]) == 0:
        raise _wrong(name, text, "write a number with K, M, G or T, such as '32G'")
    power: int = {"K": -1, "": 0, "M": 0, "G": 1, "T": 2}[match[2].upper()]
    kilobytes: int = int(match[1]) * 1024 ** (power + 1)
    return -(-kilobytes // 1024)


def extra_lines(params: LaunchParameters, backend: BatchBackend) -> list[str]:
    """Return the lines of ``extra_as_string`` that are no options of the scheduler."""
    return _extra(params, backend)[1]


def _extra(params: LaunchParameters, backend: BatchBackend) -> tuple[dict[str, Any], list[str]]:
    """Return the options of the scheduler that are given as text, and what is none."""
    words, lines = list(params.extra_as_list), []
    for line in params.extra_as_string.splitlines():
        if line.startswith(backend.prefix):
            words += shlex.split(line.removeprefix(backend.prefix))
        elif line.strip():
            lines.append(line)
    options: dict[str, Any] = {}
    while words:
        name, equals, value = words.pop(0).partition("=")
        if not name.startswith("-"):
            raise _wrong("extra_as_list", name, "an option begins with '-', such as '--qos=high'")
        if not equals and words and not words[0].startswith("-"):
            value = equals = words.pop(0)
        options[name] = value if equals else True
    return options, lines
