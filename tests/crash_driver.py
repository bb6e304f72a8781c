"""A script of submissions, as a user has it, that may be told to kill itself at some step.

``python -m tests.crash_driver BACKEND FOLDER COUNT [STEP]`` submits COUNT jobs and waits for them.
With STEP it is killed before or after a step of the submission or the end: the STEPth there is,
or the first that is called so (``"after Scheduler.submit"``). That step is the last line of the
file FOLDER/steps. BACKEND may be one at an ssh host of the tests, ``slurm@cjlogin`` for instance.
"""

from __future__ import annotations

import functools
import hashlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cjdask import JobScript, Status, jobscript_once, jobscript_submit, run_end
from cjdask.journal import JournalFile
from cjdask.protocols.local import LocalProtocol
from cjdask.protocols.ssh import SshProtocol
from cjdask.scheduler import Scheduler

STEPS: list[tuple[Any, str]] = [
    (jobscript_submit, "run_script"),
    (jobscript_once, "begun_as"),
    (run_end, "run_once"),
    (Scheduler, "find"),
    (Scheduler, "submit"),
    (JournalFile, "_open_lock"),
    (JournalFile, "_replace"),
    (JournalFile, "discard"),
    (JournalFile, "discard_epilogues"),
    (LocalProtocol, "create"),
    (LocalProtocol, "run"),
    (SshProtocol, "_open"),
    (SshProtocol, "_execute"),
    (os, "replace"),
    (os, "fsync"),
    (os, "unlink"),
]
"""What leaves the process, or is about to: each is a place to die before and after."""

STARTED = "started"
"""The file of the folder that tells that a driver has its modules and begins."""

RESOURCES: dict[str, dict[str, Any]] = {"slurm": {"time": "5", "mem": 50}}


def jobname(folder: str | Path) -> str:
    """Return the name of the jobs of a folder, which no jobs of another one have."""
    return f"crash-{hashlib.sha256(os.fsencode(folder)).hexdigest()[:10]}"


def deadly(call: Callable[..., Any], last: str, count: list[int], log: int) -> Callable[..., Any]:
    """Wrap a call so that the step ``last`` is the end of the process."""

    def step(when: str) -> None:
        count[0] += 1
        name = f"{when} {call.__qualname__}"
        if last in (str(count[0]), name):
            os.write(log, f"{name}\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    @functools.wraps(call)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        step("before")
        value = call(*args, **kwargs)
        step("after")
        return value

    return wrapped


def main(backend: str, folder: str, count: str, last: str = "") -> None:
    """Submit the jobs, wait for them, and check that all ended well."""
    counter = [0]
    Path(folder, STARTED).touch()
    if last:
        log = os.open(Path(folder, "steps"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for home, name in STEPS:
            setattr(home, name, deadly(getattr(home, name), last, counter, log))
    backend, _, remote = backend.partition("@")
    JobScript.ssh = "ssh -F /var/lib/cjdask-ssh/ssh_config"
    JobScript.cache_folder = os.path.join(folder, "cache")
    runs = [
        JobScript(
            f"echo {i} >>result.{i}",
            jobname(folder),
            backend=backend,
            remote=remote or None,
            rootdir=folder,
            epilogue=f"echo {i} >>{folder}/epilogue.{i}",
            prologue=f"echo {i} >>{folder}/prologue.{i}",
            **RESOURCES.get(backend, {}),
        ).submit(cache_id=f"job/{i}")
        for i in range(int(count))
    ]
    assert {run.get(timeout=100) for run in runs} == {Status.COMPLETED}


if __name__ == "__main__":
    main(*sys.argv[1:])
