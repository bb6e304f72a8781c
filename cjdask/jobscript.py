"""A job script: shell text and what it asks of a scheduler."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from cjdask.backends import BatchBackend, backend_names, get_backend, register_backend
from cjdask.jobscript_cache import cached_run, cached_runs, clear_cache
from cjdask.jobscript_defaults import Defaults, folder_of
from cjdask.jobscript_settings import read_settings_file
from cjdask.jobscript_submit import Submission
from cjdask.journal import journal_file
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol
from cjdask.resources import Resources
from cjdask.run import AsyncResult
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.status import Status

if TYPE_CHECKING:
    from cjdask.protocols import ConnectionParameters
    from cjdask.protocols.remote import RemoteProtocol

__all__ = ["JobScript"]

DEFAULT_CACHE_FOLDER = os.path.join(".cjdask", "runs")
"""Where a run is recorded that has a cache_id but no cache_folder."""

_PLACEHOLDER = re.compile(
    r"\{(\{[A-Za-z_]\w*(?:![rsa])?(?::[^{}\n]*)?\})\}|(\$?)\{([A-Za-z_]\w*)((?:![rsa])?(?::[^{}\s'\"]*)?)\}"
)
"""``{{name}}``, which stands for itself, or ``{name}`` with an optional format."""


class JobScript(metaclass=Defaults):
    """Shell text to run on a cluster, and the resources that it asks for.

    Keyword arguments that name one of the attributes below set it on the instance; all others
    are resources: the common ones (`cjdask.resources.COMMON_KEYS`) or options of the
    scheduler. Class attributes are the defaults of all jobs and can be changed for a session:
    ``JobScript.backend = "pbs"``, ``JobScript.resources["queue"] = "long"``. Any further
    attribute that is set on an instance can be used in the body.

    In the body ``{name}`` is replaced by a resource, an attribute of the instance or of the
    class, in that order, with a format if wanted (``{threads:03d}``); ``{{name}}`` stands for
    ``{name}``. Other uses of braces are shell text and stay. The core variables
    ``$CLUSTERJOB_ID``, ``_WORKDIR``, ``_SUBMIT_HOST``, ``_NAME``, ``_NODELIST`` and
    ``_ARRAY_INDEX`` are replaced by those of the scheduler.

    >>> job = JobScript("echo {greeting} $CLUSTERJOB_ID", "hello", time="10")
    >>> job.greeting = "Hi"
    >>> print(job)
    #!/bin/bash
    #SBATCH --job-name=hello
    #SBATCH --time=00:10:00
    echo Hi $SLURM_JOB_ID
    """

    backend: str = "slurm"
    """The name of the scheduler's backend."""
    shell: str = "/bin/bash"
    """The program that runs scripts without a ``#!`` line of their own."""
    rootdir: str = "."
    """The folder that `workdir` is in."""
    workdir: str = "."
    """The folder that the script is written to and submitted from, in `rootdir`."""
    prologue: str = ""
    """A script to run on this machine before the submission, written as the body is."""
    epilogue: str = ""
    """A script to run on this machine once the job is known to have ended."""
    max_sleep_interval: float = 60.0
    """Seconds between two questions for the status at most."""

    remote: str | ConnectionParameters | RemoteProtocol | None = None
    """The machine whose scheduler gets the job, ``user@host`` for instance; ``None`` is this one.
    Its files are there; prologue, epilogue and the journal are here."""
    ssh: str = "ssh"
    """The program by which other machines are reached, with options if wanted."""
    scp: str = "scp"
    """Of no effect: files go over the one connection that `ssh` makes."""
    input_files: Sequence[str | os.PathLike[str]] = ()
    """Files and folders of this machine that are copied into the job's folder beforehand."""
    output_files: Sequence[str] = ()
    """Files and folders of the job's folder that are copied, when the job has ended, into the
    folder of this machine that it was submitted from."""
    exit_record: bool = True
    """Whether the script leaves a record of its end in the folder ``.cjdask`` beside it."""

    cache_folder: ClassVar[str | os.PathLike[str] | None] = None
    """Where runs are recorded, so that each is submitted once; ``None`` for nowhere."""
    cache_prefix: ClassVar[str] = "clusterjob"
    """How the names of the files in `cache_folder` begin."""
    resources: ClassVar[dict[str, Any]] = {}
    """The default resources; an instance starts with a copy."""
    _own_class_attributes: ClassVar[frozenset[str]] = frozenset(
        {"cache_folder", "cache_prefix", "resources"}
    )
    _named: dict[str, Any] | None = None
    """The resources that placeholders stand for, where others are asked of the scheduler."""
    _directives: Sequence[str] = ()
    """Further lines for the scheduler, behind the headers."""
    _preamble: Sequence[str] = ()
    _postscript: str = ""

    def __init__(
        self,
        body: str,
        jobname: str,
        aux_scripts: dict[str, str] | None = None,
        **kwargs: Any,
    ) -> None:
        self.body = body
        self.aux_scripts = dict(aux_scripts or {})
        self.__dict__["resources"] = {**type(self).resources, "jobname": jobname}
        self._filename: str | None = None
        for name, value in kwargs.items():
            known = _attributes(type(self)) | self._own_class_attributes
            if name == "filename" or name in known:
                setattr(self, name, value)
            else:
                self.resources[name] = value

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self._own_class_attributes:
            raise AttributeError(
                f"{name!r} of an instance cannot be replaced; change its entries, or set "
                f"JobScript.{name} for all jobs"
            )
        super().__setattr__(name, folder_of(value) if name in ("rootdir", "workdir") else value)

    @classmethod
    def register_backend(cls, backend: Any, name: str | None = None) -> None:
        """Make a backend known under its name; see `cjdask.backends.register_backend`."""
        register_backend(backend, name)

    @classmethod
    def clear_cache_folder(cls) -> None:
        """Forget all runs that are recorded in `cache_folder`; other files stay.

        Raises:
            JournalError: a file cannot be removed.
        """
        if cls.cache_folder is not None:
            clear_cache(cls.cache_folder, cls.cache_prefix)

    @classmethod
    def cached_run(
        cls, cache_id: str, cache_folder: str | os.PathLike[str] | None = None
    ) -> AsyncResult:
        """Return a recorded run by its id, submitted in whichever process.

        Without a folder it is that of the class, else ``.cjdask/runs`` of the current folder.

        Raises:
            FileNotFoundError: there is none; the message has similar ids.
            JournalError: its file cannot be read, or has no run that was submitted.
        """
        folder = cache_folder or cls.cache_folder or DEFAULT_CACHE_FOLDER
        return cached_run(folder, cls.cache_prefix, cache_id)

    @classmethod
    def cached_runs(cls, cache_folder: str | os.PathLike[str] | None = None) -> list[AsyncResult]:
        """Return all recorded runs of a folder, the first one first; no scheduler is asked.

        What cannot be read is logged and left out.

        Raises:
            JournalError: the folder cannot be read.
        """
        folder = cache_folder or cls.cache_folder or DEFAULT_CACHE_FOLDER
        return cached_runs(folder, cls.cache_prefix)

    @classmethod
    def read_defaults(cls, filename: str | os.PathLike[str] | None = None) -> None:
        """Set class attributes and default resources from an INI file.

        What the file does not name stays as it is. Without a file all is as it was when this
        class was made.

        Raises:
            FileNotFoundError: there is no such file.
            SettingsError: it is wrong; nothing is set.
        """
        if filename is None:
            cls.reset()
            return
        settings = read_settings_file(filename, cls._values(), cls._fixed())
        if "filename" in settings.attributes:
            raise settings.refuse("filename", "all jobs would have one file; set it for a job")
        for name, value in settings.attributes.items():
            setattr(cls, name, value)
        cls.resources = {**cls.resources, **settings.resources}

    def read_settings(self, filename: str | os.PathLike[str]) -> None:
        """Set attributes and resources of this job from an INI file, as `read_defaults` does.

        Raises:
            FileNotFoundError: there is no such file.
            SettingsError: it is wrong; nothing is set.
        """
        settings = read_settings_file(filename, self._values(), self._fixed())
        for name in self._own_class_attributes & settings.attributes.keys():
            why = f"{name!r} is a setting of all jobs; read the file by JobScript.read_defaults"
            raise settings.refuse(name, why)
        for name, value in settings.attributes.items():
            setattr(self, name, value)
        self.resources.update(settings.resources)

    @classmethod
    def _values(cls) -> dict[str, Any]:
        """Return the attributes that a file may set, with values of their types."""
        names = _attributes(JobScript) | JobScript._own_class_attributes
        return {"filename": "", **{name: getattr(JobScript, name) for name in names}} | {
            "cache_folder": ""
        }

    @classmethod
    def _fixed(cls) -> set[str]:
        return {name for name in dir(cls) if callable(getattr(cls, name))} | {
            "aux_scripts",
            "backends",
            "body",
            "folder",
        }

    @property
    def backends(self) -> list[str]:
        """The names of all known backends, sorted."""
        return backend_names()

    @property
    def filename(self) -> str:
        """The name of the script's file, by default made of the job's name."""
        if self._filename is not None:
            return self._filename
        return f"{self._stem()}.{get_backend(self.backend).extension}"

    @filename.setter
    def filename(self, value: str | None) -> None:
        self._filename = value

    def _stem(self) -> str:
        return re.sub(r"[^\w.+-]+", "_", str(self.resources["jobname"])).lstrip(".-") or "job"

    @property
    def folder(self) -> str:
        """The folder of the script: `workdir` in `rootdir`."""
        return os.path.normpath(os.path.join(self.rootdir, self.workdir))

    def render_script(self, text: str, jobscript: bool = False) -> str:
        """Return text as it will run: with ``#!`` line, core variables and placeholders.

        With ``jobscript`` the resource headers follow the ``#!`` line.

        Raises:
            KeyError: a placeholder has no value.
            ResourcesNotSupportedError: a resource cannot be asked for.
            UnknownBackendError: there is no such backend.
        """
        backend = self._scheduler().renderer
        shebang, newline, body = text.partition("\n") if text.startswith("#!") else ("", "", text)
        lines = [shebang or f"#!{self.shell}"]
        if jobscript:
            Resources.of(self.resources)  # also for a backend that does not check
            lines += [*backend.resource_headers(self), *self._directives, *self._preamble]
        body = _PLACEHOLDER.sub(self._substitute, backend.replace_body_vars(body))
        return "\n".join(lines) + (("\n" + body) if body or newline else "")

    def __str__(self) -> str:
        return self.render_script(self.body, jobscript=True).removesuffix("\n")

    def _writes_itself(self) -> bool:
        """Tell whether a subclass composes the text, which is then submitted as it is."""
        return type(self).__str__ is not JobScript.__str__

    def _substitute(self, match: re.Match[str]) -> str:
        literal, dollar, name, form = match.groups()
        if literal:
            return str(literal)
        if dollar:
            return match[0]
        resources = self.resources if self._named is None else self._named
        if name in resources:
            value = resources[name]
        elif name in self.__dict__ or name == "filename" or name in _attributes(type(self)):
            value = getattr(self, name)
        else:
            raise KeyError(
                f"{{{name}}} in the script of job {self.resources['jobname']!r} is neither a "
                f"resource nor an attribute; write {{{{{name}}}}} to get {{{name}}}"
            )
        return ("{0" + form + "}").format(value)

    def write(self, filename: str | os.PathLike[str] | None = None) -> None:
        """Write the rendered script, executable, and its auxiliary scripts beside it.

        A ``filename`` names a local file; without one it is the file `filename` in `folder`
        on the job's machine, where ``~`` is the home folder there.
        """
        protocol: Protocol = self._scheduler().protocol
        if filename is None:
            path = os.path.join(protocol.expand(self.folder), self.filename)
        else:
            protocol = LocalProtocol()
            path = os.path.abspath(os.path.expanduser(os.fspath(filename)))
        files = {path: f"{self}{self._postscript}\n"}
        beside = {name: self.render_script(text) for name, text in self.aux_scripts.items()}
        backend = self._scheduler().backend
        if isinstance(backend, BatchBackend):
            resources = Resources.of(self.resources)
            beside |= backend.submission_files(resources, os.path.basename(path))
        files |= {os.path.join(os.path.dirname(path), name): text for name, text in beside.items()}
        for target, text in files.items():
            protocol.create(target, text, executable=True)

    @overload
    def submit(
        self,
        block: Literal[False] = False,
        cache_id: str | None = None,
        force: bool = False,
        retry: bool = True,
        cache_folder: str | os.PathLike[str] | None = None,
    ) -> AsyncResult: ...
    @overload
    def submit(
        self,
        block: Literal[True],
        cache_id: str | None = None,
        force: bool = False,
        retry: bool = True,
        cache_folder: str | os.PathLike[str] | None = None,
    ) -> Status: ...

    def submit(
        self,
        block: bool = False,
        cache_id: str | None = None,
        force: bool = False,
        retry: bool = True,
        cache_folder: str | os.PathLike[str] | None = None,
    ) -> AsyncResult | Status:
        """Write the script and submit it; return the run, or with ``block`` its final status.

        With a `cache_folder`, of the class or given here, or a ``cache_id`` the run is recorded
        in the journal before and after the submission. Then a run that is there under the same
        id is returned, and nothing is submitted, whichever process did it and however that
        ended. Without an id it is made from the content: the script, its folder, the resources,
        the prologue. An id without a folder is kept in ``.cjdask/runs`` of the current folder.

        ``force`` forgets the recorded run and submits again; ``retry`` submits one again that was
        CANCELLED or FAILED, of an array only the tasks that did not end well, if the scheduler can
        be asked for them alone.

        The prologue is run before that, in the current folder of this process.

        Raises:
            ScriptError: the prologue failed, and nothing was submitted; or with ``block`` the
                epilogue did.
            JobFailed, JobCancelled: a run that this one depends on ended so; nothing was submitted.
            JournalError: the run cannot be recorded, or what is recorded cannot be read;
                nothing was submitted.
            SubmitError: the scheduler refused the job; its own words are in the message.
            SchedulerUnavailableError, ProtocolError: it could not be asked.
        """
        submission = Submission.of(self, self._scheduler())
        folder = cache_folder or self.cache_folder
        if folder is None and cache_id is None:
            run = submission.now()
        else:
            name = cache_id or f"{self._stem()}-{submission.content[:24]}"
            file = journal_file(folder or DEFAULT_CACHE_FOLDER, self.cache_prefix, name)
            run = submission.once(file, name, force, retry)
        return run.get() if block else run

    def _scheduler(self) -> Scheduler:
        return scheduler_for(self.backend, *self._place())

    def _place(self) -> tuple[Any, ...]:
        return (self.remote, self.ssh) if self.remote else ()


def _attributes(cls: type[JobScript]) -> set[str]:
    """Return the names of the attributes that are settings of a job."""
    return {
        name
        for base in cls.__mro__
        for name, value in vars(base).items()
        if not name.startswith("_")
        and name not in JobScript._own_class_attributes
        and not callable(value)
        and not isinstance(value, property | classmethod | staticmethod)
    }
