"""Jobs with the names of pybatch: parameters, a protocol, and a job that is made of both."""

from __future__ import annotations

import json
import os
import posixpath
import shlex
from collections.abc import Iterable
from dataclasses import asdict, fields
from difflib import get_close_matches
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Protocol

from cjdask.backends import BatchBackend, backend_names, get_backend
from cjdask.command import Command
from cjdask.errors import ClusterjobError, UnknownBackendError
from cjdask.job_parameters import LaunchParameters, extra_lines, resources_of
from cjdask.jobscript import JobScript
from cjdask.journal import Entry
from cjdask.protocols import address, protocol_for
from cjdask.protocols.base import Protocol as GenericProtocol
from cjdask.protocols.local import LocalProtocol
from cjdask.protocols.remote import RemoteProtocol
from cjdask.resources import Resources
from cjdask.run import AsyncResult
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.scheduler_embedded import EmbeddedScheduler
from cjdask.status import Reason, Status

__all__ = ["BatchJob", "GenericJob", "GenericProtocol", "create_job", "reload_job"]

LOGS = "logs"
_PAUSED = (Reason.SUSPENDED, Reason.REQUEUED)
_STATES = {
    Status.PENDING: "QUEUED",
    Status.RUNNING: "RUNNING",
    Status.COMPLETED: "FINISHED",
    Status.CANCELLED: "FAILED",
    Status.FAILED: "FAILED",
}
_NODEFILE = """\
LIBBATCH_NODEFILE=$PWD/batch_nodefile{index}.txt
{hosts} >"$LIBBATCH_NODEFILE" || exit
export LIBBATCH_NODEFILE
"""


class GenericJob(Protocol):
    """What `create_job` returns, also for the plugin of somebody else."""

    def submit(self) -> None:
        """Copy the input files and submit the job."""

    def wait(self) -> None:
        """Wait until the job has ended."""

    def state(self) -> str:
        """Return CREATED, QUEUED, RUNNING, PAUSED, FINISHED or FAILED."""

    def exit_code(self) -> int | None:
        """Return the exit code of the command, ``None`` as long as there is none."""

    def cancel(self) -> None:
        """End the job."""

    def get(self, remote_paths: Iterable[str], local_path: str | os.PathLike[str]) -> None:
        """Copy files and folders of the work directory here."""

    def batch_file(self) -> str:
        """Return the text of the script that is submitted."""

    def stdout(self) -> str:
        """Return what the job has written to standard output."""

    def stderr(self) -> str:
        """Return what the job has written to standard error."""

    def dump(self) -> str:
        """Return the job as text, for `reload_job`."""


class BatchJob:
    """A command that runs as a job, on this machine or where a protocol leads to.

    It can be pickled, or dumped as text, at any time; what comes of it connects by itself when
    it is used. No password is in either.
    """

    def __init__(
        self,
        params: LaunchParameters,
        protocol: GenericProtocol | None = None,
        backend: str = "slurm",
    ) -> None:
        self.job_params = params
        self.backend = backend
        self.protocol: GenericProtocol = protocol or LocalProtocol()
        self.run: AsyncResult | None = None

    def __repr__(self) -> str:
        number = f" {self.jobid}" if self.jobid else ""
        return f"<BatchJob {self.job_params.jobname!r} on {self.backend}{number}>"

    @property
    def jobid(self) -> str:
        """The scheduler's id of the job, empty before it is submitted."""
        return "" if self.run is None else self.run.job_id

    def submit(self) -> None:
        """Make the work directory, copy the input files and submit the job.

        Raises:
            SubmitError: the scheduler refused it.
            FileNotFoundError: an input file is not there; nothing was submitted.
            ProtocolError: the machine could not be asked.
        """
        script = self._script()
        self._make_folder(posixpath.join(self._folder(), LOGS))
        self.run = script.submit()

    def wait(self) -> None:
        """Wait until the job has ended; do nothing for one that was not submitted."""
        if self.run is not None:
            self.run.wait()

    def state(self) -> str:
        """Return where the job is: CREATED, QUEUED, RUNNING, PAUSED, FINISHED or FAILED.

        Where the scheduler does not answer it is what was last known.
        """
        if self.run is None:
            return "CREATED"
        info = self.run.info
        return "PAUSED" if info.reason in _PAUSED else _STATES[info.status]

    def exit_code(self) -> int | None:
        """Return the exit code of the command, ``None`` as long as there is none.

        It is the number of a signal that ended the command, and of an array the code of a task
        that failed, if one has.
        """
        if self.run is None or not self.run.info.status.ended:
            return None
        info = self.run.info
        return info.exit_code or info.signal or info.exit_code

    def cancel(self) -> None:
        """End the job; one that has ended stays as it is."""
        if self.run is not None:
            self.run.cancel()

    def get(self, remote_paths: Iterable[str], local_path: str | os.PathLike[str]) -> None:
        """Copy files and folders of the work directory here; ``"."`` is all that is in it.

        Raises:
            FileNotFoundError: one is not there.
        """
        folder = self._folder()
        paths: list[str] = []
        for name in [remote_paths] if isinstance(remote_paths, str) else remote_paths:
            path = posixpath.normpath(posixpath.join(folder, name))
            paths += self._inside(folder) if path == folder else [path]
        whole = f"{os.fspath(local_path)}/" if len(paths) > 1 else local_path
        self.protocol.download(paths, whole)

    def _inside(self, folder: str) -> list[str]:
        argv = ("find", folder, "-mindepth", "1", "-maxdepth", "1", "-print0")
        found = self.protocol.run(Command.ask(*argv), 60)
        return [os.fsdecode(path) for path in found.raw_stdout.split(b"\0") if path]

    def batch_file(self) -> str:
        """Return the text of the script that is submitted."""
        return f"{self._script()}\n"

    def stdout(self) -> str:
        """Return what the job has written to standard output, of an array task by task."""
        return self._log("output")

    def stderr(self) -> str:
        """Return what the job has written to standard error, of an array task by task."""
        return self._log("error")

    def _log(self, name: str) -> str:
        count = self.job_params.total_jobs
        texts = []
        for index in [""] if count == 1 else [f"-{i}" for i in range(count)]:
            path = posixpath.join(self._folder(), LOGS, f"{name}{index}.log")
            try:
                texts.append(self.protocol.read(path).decode("utf-8", "backslashreplace"))
            except FileNotFoundError:
                if self.run is not None and count == 1 and self.run.info.status.ended:
                    raise
        return "".join(texts)

    def dump(self) -> str:
        """Return the job as text, for `reload_job`."""
        return json.dumps(self._state(), indent=1)

    # -- how it is made ------------------------------------------------------------------------

    def _scheduler(self) -> Scheduler:
        there = (self.protocol,) if isinstance(self.protocol, RemoteProtocol) else ()
        scheduler = scheduler_for(self.backend, *there)
        if isinstance(scheduler, EmbeddedScheduler) and self.job_params.python_exe != "python3":
            scheduler.python = self.job_params.python_exe
        return scheduler

    def _folder(self) -> str:
        if self.run is not None:
            return self.run._folder
        return self.protocol.expand(self.job_params.work_directory)

    def _make_folder(self, path: str) -> None:
        made = self.protocol.run(Command.ask("mkdir", "-p", "--", path), 60)
        if made.exit_code != 0:
            raise ClusterjobError(f"{path} cannot be made: {made.stderr.strip()}")

    def _script(self) -> JobScript:
        """Return the job script; the command is an attribute, so that its text stays as it is."""
        params, backend = self.job_params, self._scheduler().renderer
        if not isinstance(backend, BatchBackend):
            raise ClusterjobError(f"backend {self.backend!r} cannot run jobs described so")
        resources = resources_of(params, backend)
        several = params.total_jobs > 1
        mark = f"-{backend.task_mark}" if several and backend.task_mark else ""
        if several and not mark:
            raise ClusterjobError(f"{self.backend} has no log of its own for each task of an array")
        logs = {"stdout": f"{LOGS}/output{mark}.log", "stderr": f"{LOGS}/error{mark}.log"}
        script = JobScript(
            "{extra_lines}{nodefile}{command_line}" + (" $CLUSTERJOB_ARRAY_INDEX" * several),
            params.jobname,
            backend=self.backend,
            remote=self.protocol if isinstance(self.protocol, RemoteProtocol) else None,
            rootdir=params.work_directory,
            workdir=".",
            input_files=list(params.input_files),
            prologue="",
            epilogue="",
            filename="batch.cmd",
        )
        script.shell = "/bin/bash -l"
        script.resources.update({"jobname": params.jobname, **logs, **resources})
        text = script.__dict__
        text["extra_lines"] = "".join(f"{line}\n" for line in extra_lines(params, backend))
        text["command_line"] = shlex.join(params.command)
        text["nodefile"] = self._nodefile(backend, Resources.of(resources), script)
        return script

    def _nodefile(self, backend: BatchBackend, resources: Resources, script: JobScript) -> str:
        if not self.job_params.create_nodefile:
            return ""
        if "ntasks" in script.resources:  # Slurm spreads them as it likes, and tells srun
            hosts = "srun hostname"
        else:
            hosts = backend.launcher(resources, "uname -n")
        index = "-$CLUSTERJOB_ARRAY_INDEX" if self.job_params.total_jobs > 1 else ""
        return backend.replace_body_vars(_NODEFILE.format(index=index, hosts=hosts))

    # -- how it is kept ------------------------------------------------------------------------

    def _state(self) -> dict[str, Any]:
        remote = address(self.protocol) if isinstance(self.protocol, RemoteProtocol) else None
        params = asdict(self.job_params)
        params["input_files"] = [os.fspath(path) for path in self.job_params.input_files]
        ssh = getattr(self.protocol, "ssh", "ssh")
        run = None if self.run is None else self.run._entry.with_end(self.run._final())
        return {
            "format": 1,
            "backend": self.backend,
            "remote": remote,
            "ssh": ssh,
            "params": params,
            "run": run and {each.name: getattr(run, each.name) for each in fields(run)},
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return reload_job, (self.dump(),)


def reload_job(dump: str) -> BatchJob:
    """Return the job that `BatchJob.dump` gave as text; it connects when it is used.

    Raises:
        ValueError: it is no such text.
    """
    try:
        state = json.loads(dump)
        if state["format"] != 1:
            raise ValueError(f"format {state['format']!r} is of another version of cjdask")
        remote, ssh = state["remote"], state["ssh"]
        job = BatchJob(
            LaunchParameters(**state["params"]),
            protocol_for(remote, ssh) if remote else None,
            state["backend"],
        )
        if state["run"] is not None:
            job.run = AsyncResult(job._scheduler(), Entry(**state["run"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"this is no job that was dumped: {error}") from error
    return job


# -- plugins ---------------------------------------------------------------------------------


class _Plugin:
    """Makes jobs for one backend; where there is a protocol, on that machine."""

    backend = "slurm"

    def create_job(self, params: LaunchParameters, protocol: GenericProtocol | None) -> GenericJob:
        """Return a job that is not yet submitted."""
        return BatchJob(params, protocol, self.backend)


class SlurmPlugin(_Plugin):
    """Jobs on Slurm."""


class NoBatchPlugin(_Plugin):
    """Jobs on a host without a scheduler, over any protocol."""

    backend = "local"


class LocalPlugin(NoBatchPlugin):
    """Jobs on this machine without a scheduler."""

    def create_job(self, params: LaunchParameters, protocol: GenericProtocol | None) -> GenericJob:
        if isinstance(protocol, RemoteProtocol):
            where = protocol.host
            raise ValueError(f"plugin 'local' is for this machine; 'nobatch' runs at {where}")
        return super().create_job(params, protocol)


@cache
def _plugin(name: str) -> Any:
    for entry in entry_points(group="cjdask.jobs", name=name):
        return entry.load()()
    return None


def create_job(
    plugin_name: str, params: LaunchParameters, protocol: GenericProtocol | None = None
) -> GenericJob:
    """Return a job that is not yet submitted, made by a plugin.

    Plugins are found through the entry point group ``cjdask.jobs``: classes with a method
    ``create_job(params, protocol)``. There are ``slurm``, ``nobatch`` and ``local``; any
    backend's name works too.

    Raises:
        UnknownBackendError: there is no such plugin and no such backend.
    """
    plugin = _plugin(plugin_name)
    if plugin is not None:
        job: GenericJob = plugin.create_job(params, protocol)
        return job
    if plugin_name not in backend_names():
        own = sorted(entry.name for entry in entry_points(group="cjdask.jobs"))
        names = sorted({*own, *backend_names()})
        close = get_close_matches(str(plugin_name), names, 1)
        raise UnknownBackendError(
            f"unknown plugin {plugin_name!r}{f', did you mean {close[0]!r}?' if close else '.'} "
            f"Known are {', '.join(names)}"
        )
    get_backend(plugin_name)
    return BatchJob(params, protocol, plugin_name)
