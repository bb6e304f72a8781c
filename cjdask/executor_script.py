"""The job scripts that run the calls of an executor."""

from __future__ import annotations

import os
import re
import shlex

from cjdask.backends import BatchBackend, ClusterjobBackend
from cjdask.executor_folder import CallFolder
from cjdask.executor_options import CallOptions
from cjdask.executor_worker import runner_program
from cjdask.jobscript import JobScript

__all__ = ["CallScript", "array_limit", "batch_script", "setup_lines"]

NOTICED_WITHIN = 20.0
"""Seconds between two questions for the jobs at most, while nothing changes."""

_WAIT = """\
export CJDASK_BEGAN=$(date +%s)
{command} &
cj_pid=$!
trap 'kill -USR2 $cj_pid 2>/dev/null' TERM USR1 USR2
while :; do
    wait $cj_pid
    cj_code=$?
    [ $cj_code -gt 128 ] && kill -0 $cj_pid 2>/dev/null || break
done"""
"""Runs a call that may save itself: whichever process is told of the end, Python must know."""


class CallScript(JobScript):
    """A job script whose text is all for the shell."""

    backend = "local"
    shell = "/bin/bash"
    prologue = ""
    epilogue = ""
    cache_folder = None
    cache_prefix = "run"
    max_sleep_interval = NOTICED_WITHIN
    remote = None
    ssh = "ssh"
    workdir = "."
    input_files = ()
    output_files = ()

    def _substitute(self, match: re.Match[str]) -> str:
        return match[0]


def array_limit(options: CallOptions) -> int:
    """Return how many calls one submission can have."""
    backend = options.machine.backend
    if not isinstance(backend, BatchBackend) or backend.max_array_size is None:
        return 1
    several = (options.checked.nodes or 1) > 1
    return 1 if several and not backend.one_script else backend.max_array_size


def setup_lines(options: CallOptions, backend: ClusterjobBackend) -> tuple[list[str], list[str]]:
    """Return the directives for the head of a script, and the lines before the call."""
    prefix = getattr(backend, "prefix", "")
    directives = [line for line in options.setup_lines if prefix and line.startswith(prefix)]
    lines = [line for line in options.setup_lines if line not in directives]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in options.env.items()]
    return directives, [*lines, *options.prologue]


def batch_script(
    options: CallOptions, folder: CallFolder, batch: str, count: int, hook: bool = False
) -> CallScript:
    """Return the script of a batch of ``count`` tasks: an array, or one job for one task.

    It is one compound command, which the shell has read to its end before it begins: the file
    may be gone when the calls are.
    """
    backend = options.machine.backend
    directives, lines = setup_lines(options, backend)
    resources = dict(options.resources)
    if count > 1:
        limit = f"%{options.max_workers}" if options.max_workers else ""
        resources["array"] = f"1-{count}{limit}"
    lines.append("export CJDASK_INDEX=" + ("$CLUSTERJOB_ARRAY_INDEX" if count > 1 else "1"))
    place = folder.batch_there(batch)
    program = runner_program(options.command, "main", place, folder=folder.runner)
    command = f'{shlex.join(program)} "$CJDASK_INDEX"'
    if options.ranks > 1:
        assert isinstance(backend, BatchBackend)
        command = backend.launcher(options.checked, command)
    if hook:
        lines.append(_WAIT.format(command=command))
    else:
        lines += [command, "cj_code=$?"]
    code = shlex.quote(os.path.join(folder.results_there, batch)) + ".$CJDASK_INDEX.exit"
    note = f"echo $cj_code >{code}.new && mv -f {code}.new {code}"
    lines.append(f"[ $cj_code = 0 ] || {{ {note}; }}")
    lines += ["exit $cj_code"]
    script = CallScript(
        "\n".join(["{", *lines, "}"]),
        str(resources.pop("jobname")),
        backend=options.backend,
        remote=options.remote,
        ssh=options.ssh,
        rootdir=place,
        exit_record=folder.durable,
    )
    script.resources.clear()
    script.resources.update(resources, jobname=options.resources["jobname"])
    script._directives = directives
    return script
