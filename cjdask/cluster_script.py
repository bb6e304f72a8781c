"""The scripts of the jobs of a Dask cluster."""

from __future__ import annotations

import logging
import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files as package_files
from pathlib import Path
from typing import Any

from distributed.security import Security

from cjdask.backends import BatchBackend, ClusterjobBackend
from cjdask.cluster_drain import ENDS, MARGIN
from cjdask.cluster_folder import join_there
from cjdask.cluster_options import DASK_CUDA, DASK_WORKER, DEFAULT, ClusterOptions
from cjdask.errors import ProtocolError, ResourcesNotSupportedError, SchedulerError
from cjdask.jobscript import JobScript
from cjdask.resources import Resources, clock, parse_time

__all__ = ["Recipe", "WorkerScript", "command_words", "quote"]

logger = logging.getLogger(__name__)

_PROBE = """\
for CLUSTERJOB_DASK_HOST in {hosts}; do
    timeout 3 bash -c "exec 3<>/dev/tcp/$CLUSTERJOB_DASK_HOST/{port}" 2>/dev/null && break
    CLUSTERJOB_DASK_HOST=
done
if [ -z "$CLUSTERJOB_DASK_HOST" ]; then
    echo "The Dask scheduler cannot be reached from $(hostname) on any of {hosts}, port {port}." >&2
    echo "It has ended, or it needs interface=... or host=... of a network that nodes see." >&2
    exit 1
fi
export CLUSTERJOB_DASK_HOST"""
"""Finds the address of the Dask scheduler that works from the node of the job."""


NOTICED_WITHIN = 20.0
"""Seconds between two questions for the jobs at most, while nothing changes."""


DRAIN = "cjdask_drain.py"
"""The name of the copy of `cjdask.cluster_drain` that workers load."""


def quote(text: str) -> str:
    """Quote a word for a shell, but let ``$NAME``, ``${NAME}`` and ``~/`` be expanded.

    >>> print(quote("/scratch/$USER/a b"), quote("it's"), quote("plain"), quote("$5"))
    "/scratch/$USER/a b" 'it'"'"'s' plain '$5'
    """
    if text == "~" or text.startswith("~/"):
        text = "$HOME" + text[1:]
    variable = r"\$(?=[A-Za-z_]|\{[A-Za-z_]\w*\})"
    if not re.search(variable, text):
        return shlex.quote(text)
    return '"' + re.sub(rf'[\\"`]|\$(?!{variable[2:]})', r"\\\g<0>", text) + '"'


def command_words(command: str | None) -> list[str]:
    """Split a command of several words; a path to a program may have blanks.

    Without one it is the Python of this process.
    """
    command = command or sys.executable
    return [command] if os.path.exists(command) else shlex.split(command)


def _arguments(arguments: Sequence[str]) -> list[str]:
    """Return the words of arguments: ``"--lifetime 55m"`` is two, as with dask-jobqueue."""
    words = []
    for argument in arguments:
        several = re.match(r"-[^\s=]*\s", argument)
        words += shlex.split(argument) if several else [argument]
    return words


def _split_resources(arguments: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Return the Dask resources that arguments of a worker name, and the other arguments.

    >>> _split_resources(["--resources=A=1,B=2", "--lifetime", "55m"])
    ({'A': '1', 'B': '2'}, ['--lifetime', '55m'])
    """
    given: list[str] = []
    rest: list[str] = []
    for word in arguments:
        if rest and rest[-1] == "--resources":
            given.append(word)
            rest.pop()
        elif word.startswith("--resources="):
            given.append(word.partition("=")[2])
        else:
            rest.append(word)
    pairs = (pair.partition("=") for pair in " ".join(given).replace(",", " ").split())
    return {name: amount for name, _, amount in pairs}, rest


class WorkerScript(JobScript):
    """A job script whose text is all for the shell, and whose headers can be edited."""

    prologue = ""
    epilogue = ""
    cache_folder = None
    directives_skip: tuple[str, ...] = ()
    extra_directives: tuple[str, ...] = ()

    def _substitute(self, match: re.Match[str]) -> str:
        return match[0]

    def __str__(self) -> str:
        first, *rest = super().__str__().split("\n")
        native = self._scheduler().backend.resource_headers(self)
        return "\n".join([first, *self.headers(), *rest[len(native) :]])

    def headers(self) -> list[str]:
        """Return the directives: without those to skip, with the extra ones."""
        backend = self._scheduler().backend
        native = backend.resource_headers(self)
        headers = [h for h in native if not any(skip in h for skip in self.directives_skip)]
        if self.extra_directives:
            prefix = getattr(backend, "prefix", "")
            if not prefix:
                raise ResourcesNotSupportedError(
                    f"job_extra_directives: job scripts of {backend.name!r} have no directives"
                )
            headers += [f"{prefix} {directive}" for directive in self.extra_directives]
        return headers


@dataclass(frozen=True)
class Recipe:
    """How the jobs of one pool are written: what they all share.

    ``folder`` is for the scripts; ``workdir`` is where jobs run.
    """

    options: ClusterOptions
    folder: str
    workdir: str
    tls: tuple[str, ...] = ()
    """Arguments that name the files of the workers' certificates."""
    certificates: Mapping[str, str] = field(default_factory=dict)
    """Those that are in no file yet, by the name that they are to have in `folder`."""
    pool: str = DEFAULT
    """A resource of the workers, by which tasks can ask for them."""

    @classmethod
    def plan(cls, options: ClusterOptions, prefix: str, security: Security | None) -> Recipe:
        """Decide on the folder of the job scripts and what goes into it."""
        protocol = options.machine.protocol
        workdir = os.getcwd() if options.remote is None else protocol.expand("~")
        folder = join_there(protocol, workdir, options.shared_temp_directory or "", f".{prefix}")
        arguments: list[str] = []
        certificates: dict[str, str] = {}
        tls = security.get_tls_config_for_role("worker") if security is not None else {}
        for key, value in tls.items():
            if value is None or key == "ciphers":
                continue
            if options.remote is not None and "\n" not in value:
                value = Path(value).expanduser().read_text()
            if "\n" in value:  # the certificate itself, not the path of a file
                certificates[f"{key}.pem"] = value
                value = os.path.join(folder, f"{key}.pem")
            arguments += [f"--tls-{key.replace('_', '-')}", value]
        return cls(options, folder, workdir, tuple(arguments), certificates)

    @property
    def files(self) -> dict[str, str]:
        """What `folder` must hold beside the scripts: certificates, and what workers load."""
        if not self._drains:
            return dict(self.certificates)
        drain = package_files("cjdask").joinpath("cluster_drain.py").read_text()
        return {**self.certificates, DRAIN: drain}

    @property
    def _drains(self) -> bool:
        """Whether workers load `DRAIN`; a program that is not known need not, without margin."""
        options = self.options
        return bool(options.walltime_margin) or options.worker_command in (DASK_WORKER, DASK_CUDA)

    @property
    def resources(self) -> dict[str, str]:
        """The Dask resources of each worker, by which tasks ask for it, and how much of them.

        Beside those that the user gives there is one for each thread that is called as the
        pool; a program of workers that is not known need not understand that for the first.
        """
        options = self.options
        given, _ = _split_resources(_arguments(options.worker_extra_args))
        if self.pool == DEFAULT and options.worker_command not in (DASK_WORKER, DASK_CUDA):
            return given
        return {self.pool: str(options.threads), **given}

    @property
    def log_directory(self) -> str | None:
        """The folder of the jobs' logs, ``None`` where the scheduler decides."""
        logs = self.options.log_directory
        return join_there(self.options.machine.protocol, self.workdir, logs) if logs else None

    def most_tasks(self) -> int:
        """Return how many jobs can be one array: 1 where they cannot, or are not to be."""
        machine = self.options.machine
        backend = machine.backend
        if not self.options.arrays or not isinstance(backend, BatchBackend):
            return 1
        try:
            backend.headers(Resources.of({**self.options.resources, "array": _tasks(2)}))
            return max(1, machine.array_limit())
        except ResourcesNotSupportedError:
            return 1
        except (SchedulerError, ProtocolError) as error:
            logger.warning("it is not known how long arrays may be, so none is used: %s", error)
            return 1

    def script(self, addresses: Sequence[str], name: str, tasks: int = 1) -> WorkerScript:
        """Return the script of the job ``name`` for a Dask scheduler at one of ``addresses``.

        With several ``tasks`` it is that of an array of this job and those numbered next.
        """
        options = self.options
        backend = options.machine.backend
        resources = dict(options.resources)
        if tasks > 1:
            resources["array"] = _tasks(tasks)
        if self.log_directory is not None:
            logs = os.path.join(self.log_directory, _log_name(name, tasks, backend))
            resources.setdefault("stdout", f"{logs}.out")
            resources.setdefault("stderr", f"{logs}.err")
        probe, address = _find_scheduler(addresses)
        number, own_name = _find_name(name, tasks)
        command = self.worker_command(address, own_name)
        checked = Resources.of({**resources, "jobname": options.job_name})
        if isinstance(backend, BatchBackend):
            launch = backend.launcher(checked, command)
        elif options.workers == 1:
            launch = f"export CLUSTERJOB_RANK=0\n{command}"
        else:
            raise ResourcesNotSupportedError(
                f"backend {backend.name!r} cannot start {options.workers} workers in one job; "
                "give nodes=1 and ppn=1"
            )
        first = [options.shebang] if options.shebang else []
        end = _tell_the_end(options)
        body = [*first, *end, *options.prologue, *number, *probe, launch, *options.epilogue]
        text = "\n".join(body) + "\n"
        return self._script(name, text, {**resources, "jobname": options.job_name})

    def server_script(self, name: str, text: str) -> WorkerScript:
        """Return the script of the job that the Dask scheduler runs in: one process, one core.

        What it asks for is as for the workers, where ``scheduler_resources`` says nothing else.
        """
        options = self.options
        shape: dict[str, Any] = {"nodes": 1, "ppn": 1, "threads": 1}
        left_out = {"gpus", "exclusive", "depends", "stdout", "stderr"}
        of_workers = {k: v for k, v in options.resources.items() if k not in left_out}
        resources = {**of_workers, **shape, **options.scheduler_resources}
        if "time" in resources:
            resources["time"] = clock(parse_time(resources["time"]))
        if self.log_directory is not None:
            logs = os.path.join(
                self.log_directory, f"{os.path.basename(self.folder)[1:]}-scheduler"
            )
            resources = {"stdout": f"{logs}.out", "stderr": f"{logs}.err", **resources}
        return self._script(name, text + "\n", {**resources, "jobname": f"{options.job_name}-dask"})

    def _script(self, name: str, text: str, resources: dict[str, Any]) -> WorkerScript:
        options = self.options
        filename = os.path.join(self.folder, f"{name}.{options.machine.backend.extension}")
        if filename.startswith(self.workdir.rstrip("/") + "/"):
            filename = os.path.relpath(filename, self.workdir)
        script = WorkerScript(
            text,
            resources["jobname"],
            backend=options.backend,
            remote=options.remote,
            ssh=options.ssh,
            rootdir="/",
            workdir=self.workdir,
            filename=filename,
            max_sleep_interval=NOTICED_WITHIN,
            directives_skip=options.directives_skip,
            extra_directives=options.extra_directives,
        )
        script.resources.clear()
        script.resources.update(resources)
        return script

    def worker_command(self, address: str, name: str) -> str:
        """Return the shell command that starts one worker; its rank completes its name."""
        options = self.options
        limit = options.worker_memory
        words = [quote(word) for word in command_words(options.python)]
        words += ["-m", *(quote(word) for word in shlex.split(options.worker_command))]
        words += [quote(address), "--name", quote(f"{name}-$CLUSTERJOB_RANK")]
        words += ["--nthreads", str(options.threads)]
        if limit is not None:
            words += ["--memory-limit", f"{limit}B" if limit % 2**20 else f"{limit // 2**20}MiB"]
        if options.worker_command == DASK_WORKER:
            words += ["--nworkers", "1", "--nanny" if options.nanny else "--no-nanny"]
        for flag, value in (
            ("--death-timeout", options.death_timeout),
            ("--local-directory", options.local_directory),
            ("--interface", options.interface),
            ("--protocol", options.protocol),
            ("--worker-class", options.worker_class),
        ):
            if value is not None:
                words += [flag, quote(str(value))]
        if self._drains:
            words += ["--preload", quote(os.path.join(self.folder, DRAIN))]
        _, extra = _split_resources(_arguments(options.worker_extra_args))
        if self.resources:
            pairs = (f"{name}={amount}" for name, amount in self.resources.items())
            extra = ["--resources", ",".join(pairs), *extra]
        return " ".join([*words, *map(shlex.quote, self.tls), *map(quote, extra)])


def _tasks(count: int) -> range:
    return range(1, count + 1)  # several schedulers have no task 0


def _log_name(name: str, tasks: int, backend: ClusterjobBackend) -> str:
    """Return the beginning of the names of a job's log files, ``w-7-to-9.%a`` for an array."""
    if tasks == 1:
        return name
    mark = backend.task_mark if isinstance(backend, BatchBackend) else ""
    last = int(name.rpartition("-")[2]) + tasks - 1
    return f"{name}-to-{last}" + (f".{mark}" if mark else "")


def _tell_the_end(options: ClusterOptions) -> list[str]:
    """Return shell text that tells the workers when the job, which has just begun, ends."""
    if not options.walltime_margin:
        return []
    ends = f"{ENDS}=$(($(date +%s) + {options.walltime}))"
    return [f"export {ends} {MARGIN}={options.walltime_margin:g}"]


def _find_name(name: str, tasks: int) -> tuple[list[str], str]:
    """Return shell text that finds the number of a job in an array, and the name to use."""
    if tasks == 1:
        return [], name
    stem, _, first = name.rpartition("-")
    text = f"export CLUSTERJOB_DASK_NUMBER=$(({int(first) - 1} + $CLUSTERJOB_ARRAY_INDEX))"
    return [text], f"{stem}-$CLUSTERJOB_DASK_NUMBER"


def _find_scheduler(addresses: Sequence[str]) -> tuple[list[str], str]:
    """Return shell text that finds the address that works, and the address to use.

    Also where there is but one: a job that starts when the cluster is gone is to end at once.
    """
    parts = [re.fullmatch(r"((?:tcp|tls)://)([\w.-]+):(\d+)", address) for address in addresses]
    if len(addresses) == 1 and parts[0] is None:
        return [], addresses[0]
    hosts = " ".join(shlex.quote(part[2]) for part in parts if part)
    protocol, port = (parts[0][1], parts[0][3]) if parts[0] else ("tcp://", "")
    text = _PROBE.replace("{hosts}", hosts).replace("{port}", port)
    several = f"{protocol}$CLUSTERJOB_DASK_HOST:{port}"
    return [text], several if len(addresses) > 1 else addresses[0]
