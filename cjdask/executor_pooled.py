"""What a pool of calls is made of, what it sends, and how it tells of deaths."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from pickle import dumps
from typing import TYPE_CHECKING, Any

from cjdask.backends import BatchBackend
from cjdask.errors import JobDied
from cjdask.executor_batch import TAIL
from cjdask.executor_calls import BY_VALUE, Call, Task, job_name, setup_of
from cjdask.executor_folder import CallFolder
from cjdask.executor_options import CallOptions
from cjdask.executor_script import setup_lines
from cjdask.status import JobInfo, Reason, Status

if TYPE_CHECKING:
    from cjdask.cluster_calls import CallCluster
    from cjdask.executor_worker import BatchResult

__all__ = [
    "LONGEST_TURN",
    "batch_size",
    "clean_logs",
    "cluster_options",
    "job_died",
    "packed",
    "process_died",
    "running",
]

TURN = 0.1
"""Seconds that a batch of short calls should take."""
MOST = 250
"""How many calls a batch has at most."""
LONGEST_TURN = 0.5
"""Seconds after which a process makes no further call of its batch."""
LOGS = "pool-logs"
"""The folder of the jobs' logs, in that of the executor."""
ORPHANED = "15m"
"""After which a pool on another machine ends that has no calls and nobody connected."""


def cluster_options(options: CallOptions, folder: CallFolder) -> dict[str, Any]:
    """Return the options of the Dask cluster that makes the calls.

    A worker makes one call at a time, whatever threads that has. It has no nanny: the process
    that makes the calls is another one, which the worker replaces. On another machine the Dask
    scheduler runs there, and ends by itself some time after this process was killed.
    """
    backend = options.machine.backend
    directives, lines = setup_lines(options, backend)
    prefix = backend.prefix if isinstance(backend, BatchBackend) else ""
    asked = dict(options.resources)
    if not options.remote:
        place: dict[str, Any] = {
            "remote": "",
            "python": options.python or sys.executable,
            "scheduler_options": {"dashboard_address": ":0", "allowed_failures": 0},
        }
    else:
        place = {"remote": options.remote, "ssh": options.ssh, "idle_timeout": ORPHANED}
        place["python"] = shlex.join(options.command)
    return {
        **asked,
        "jobs": 1,
        "jobname": asked["jobname"],
        "backend": options.backend,
        "nanny": False,
        "worker_extra_args": ["--nthreads", "1", "--no-dashboard"],
        "job_script_prologue": lines,
        "job_extra_directives": [line[len(prefix) :].strip() for line in directives],
        "log_directory": folder.batch_there(LOGS),
        "shared_temp_directory": folder.there,
        "silence_logs": "critical",  # what goes wrong with a worker is told of its calls
        **place,
    }


def batch_size(waiting: int, workers: int, slow: float | None) -> int:
    """Return how many calls to send a worker of which the slowest lately took ``slow`` seconds.

    >>> batch_size(1000, 2, None), batch_size(1000, 2, 0.01), batch_size(8, 2, 0.01)
    (1, 10, 2)
    """
    if slow is None:
        return 1
    share = math.ceil(waiting / (2 * max(1, workers)))
    return min(max(1, int(TURN / slow)), share, MOST)


def packed(options: CallOptions, batch: str, items: Sequence[tuple[Task, Call]]) -> bytes:
    """Pack calls for `cjdask.executor_runner.serve`."""
    functions: dict[bytes, int] = {}
    calls = [
        (call.name, functions.setdefault(task.fn, len(functions)), call.args)
        for task, call in items
    ]
    by_value = any(BY_VALUE in blob for blob in functions) or any(
        BY_VALUE in args for _, _, args in calls
    )
    first = items[0][0]
    folder = first.folder
    own = {"batch": batch, "results": folder.results_there, "durable": folder.durable}
    setup = {**setup_of(options, first, by_value), **own}
    message = {"setup": setup, "seconds": LONGEST_TURN}
    return dumps({**message, "functions": list(functions), "calls": calls}, -1)


def running(info: JobInfo | None) -> JobInfo | None:
    """Return what is known of a job whose worker is there: it runs, whoever knows that."""
    return info and replace(info, status=Status.RUNNING, reason=Reason.NONE, message="")


def process_died(cluster: CallCluster, address: str, call: Call, result: BatchResult) -> JobDied:
    """Return the error of a call that ended its process; the job goes on with another."""
    code = result.exit_code or 0
    known = cluster.info(address) or JobInfo("", Status.RUNNING)
    reason = Reason.SIGNALED if code < 0 else Reason.NONZERO_EXIT if code else Reason.NONE
    info = replace(
        known,
        status=Status.FAILED,
        reason=Reason.OUT_OF_MEMORY if result.out_of_memory else reason,
        exit_code=128 - code if code < 0 else code,
        signal=-code if code < 0 else None,
        message="",
    )
    path = cluster.call_log(address)
    message = (
        f"{call.label} has no result: its process in job {job_name(info)} is "
        f"{info.describe()}; its log is {path}"
    )
    return JobDied(message, info, "\n".join(result.log.splitlines()[-TAIL:]), path)


def job_died(cluster: CallCluster, address: str, call: Call) -> JobDied:
    """Return the error of a call whose worker has gone."""
    info = cluster.info(address) or JobInfo("", Status.FAILED, reason=Reason.LOST)
    if cluster.left_in_time(address) and info.status is not Status.CANCELLED:
        early = "the walltime of the job came before the call had ended"
        info = replace(info, reason=Reason.TIMEOUT, exit_code=None, message=early)
        info = replace(info, status=Status.FAILED)
    elif not info.status.ended:
        lost = "its process is gone, but the scheduler says that the job goes on"
        info = replace(info, status=Status.FAILED, reason=Reason.LOST, message=lost)
    log, path = cluster.job_log(address)
    where = f"; its log is {path}" if path else ""
    message = f"{call.label} has no result: job {job_name(info)} is {info.describe()}{where}"
    return JobDied(message, info, log, path)


def clean_logs(folder: CallFolder, keep: set[str | None]) -> None:
    """Remove the logs of a pool that has ended, but for those to keep."""
    folder.clean(LOGS, [path for path in keep if path is not None])
