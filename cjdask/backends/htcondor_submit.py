"""The file that HTCondor's condor_submit reads, made from resources."""

from __future__ import annotations

import re
from typing import Any

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import Resources

__all__ = ["CLUSTER", "LIMITS", "NODE", "TASK", "description", "log_file"]

CLUSTER = "$(ClusterId)"
TASK = "$(cjdask_task)"
RANK = "$(cjdask_rank)"
NODE = "$(cjdask_node)"
"""Macros: the job, the task of an array, the rank of a node, ``.RANK`` but of the first."""

LIMITS = {46: "TIMEOUT", 47: "TIMEOUT", 34: "OUT_OF_MEMORY"}
"""Codes of holds that are the end of a job (HoldReasonCode in the manual's job attributes)."""

_REFUSED = {
    "depends": "HTCondor knows dependencies only in DAGMan; submit the job when the others have "
    "ended (run.get()), or write a DAG",
    "exclusive": "HTCondor shares machines by what jobs ask for; ask for all cores of a machine "
    "by ppn and threads, or for a machine of the site's choice by requirements=...",
    "queue": "HTCondor has no queues; choose machines by requirements=...",
}


def description(resources: Resources, script: str) -> str:
    """Write the submit file for a script beside it.

    Raises:
        ResourcesNotSupportedError: a resource that HTCondor cannot be asked for.
    """
    lines = {
        "executable": f"$Fp(SUBMIT_FILE){script}",
        "should_transfer_files": "IF_NEEDED",
        "getenv": "True",  # and no `environment`, with which values with a ; would be dropped
        "output": log_file(resources, "stdout"),
        "error": log_file(resources, "stderr"),
    }
    if resources.cores_per_node > 1:
        lines["request_cpus"] = str(resources.cores_per_node)
    for key in resources.given():
        if key in _REFUSED:
            raise ResourcesNotSupportedError(
                f"{key}={getattr(resources, key)!r} cannot be asked for: {_REFUSED[key]}"
            )
        if key in resources.native:
            lines[_native(key)] = str(resources.native[key])
        elif key in _COMMON:
            lines |= _COMMON[key](getattr(resources, key))
    if (resources.mem or resources.time) and "periodic_remove" not in lines:
        codes = " || ".join(f"HoldReasonCode =?= {code}" for code in LIMITS)
        lines["periodic_remove"] = f"JobStatus == 5 && ({codes})"
    text = "".join(f"{key} = {value}\n" for key, value in lines.items())
    return f"# condor_submit is given this file; the job is {script}\n{text}{_queue(resources)}\n"


_COMMON: dict[str, Any] = {
    "account": lambda value: {"accounting_group": value},
    "gpus": lambda value: {"request_gpus": value},
    "jobname": lambda value: {"batch_name": _plain(value)},
    "mem": lambda value: {"request_memory": value},
    "time": lambda value: {"allowed_job_duration": value},
}


def _queue(resources: Resources) -> str:
    """Write the end of the file: how many procs, and what tells them apart."""
    nodes, array = resources.nodes or 1, resources.array
    if array is None and nodes == 1:
        return "queue"
    if array is None:
        items = [f"{rank} {f'.{rank}' if rank else ''}".strip() for rank in range(nodes)]
        marks = [f"+CjdaskNodes = {nodes}", f"+CjdaskRank = {RANK}"]
        return "\n".join([*marks, "queue cjdask_rank, cjdask_node from (", *items, ")"])
    if nodes > 1:
        raise ResourcesNotSupportedError(
            f"array={str(array)!r} and nodes={nodes} together: a task is one proc on HTCondor; "
            "submit a job of several nodes for each task"
        )
    marks = [f'+CjdaskArray = "{array.ranges()}"', f"+CjdaskTask = {TASK}"]
    limit = [f"max_materialize = {array.limit}"] if array.limit else []
    return "\n".join([*marks, *limit, "queue cjdask_task from (", *map(str, array.indices), ")"])


def _plain(text: str) -> str:
    """Write text in which no macro is filled in."""
    return text.replace("$", "$(DOLLAR)")


def _native(key: str) -> str:
    if key.startswith("-"):
        raise ResourcesNotSupportedError(
            f"{key!r} is no command of a submit file; native resources of HTCondor are those of "
            "condor_submit's manual, such as requirements or +Attribute"
        )
    return key


def log_file(resources: Resources, stream: str) -> str:
    """Return the name of a log file, with macros.

    A later job with the same file truncates it, so that each task and node has its own.
    """
    path: str | None = getattr(resources, stream)
    if path is None:
        name = re.sub(r"[^\w.+-]+", "_", resources.jobname or "job")
        path = f"{name}.{CLUSTER}.{stream[3:]}"
    if resources.array and not re.search(r"\$\((Proc(Id|ess)|cjdask_task)\)", path, re.I):
        return f"{path}.{TASK}"
    return path + NODE if (resources.nodes or 1) > 1 else path
