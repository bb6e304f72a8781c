"""The contract of a backend: pure knowledge of one scheduler, no I/O and no state."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from cjdask.command import Command, Output
from cjdask.errors import ParseError, SchedulerUnavailableError
from cjdask.resources import Resources
from cjdask.status import JobInfo, Status, combine

__all__ = ["CORE_VARIABLES", "BatchBackend", "ClusterjobBackend"]

CORE_VARIABLES = (
    "CLUSTERJOB_ID",
    "CLUSTERJOB_WORKDIR",
    "CLUSTERJOB_SUBMIT_HOST",
    "CLUSTERJOB_NAME",
    "CLUSTERJOB_NODELIST",
    "CLUSTERJOB_ARRAY_INDEX",
)
"""Environment variables that a body may use and that each backend replaces by its own."""


class ClusterjobBackend(ABC):
    """A scheduler as clusterjob describes it: one run at a time.

    A site may register a class that implements just this; it is then asked about each run
    with a command of its own. The backends of this package are a `BatchBackend`.
    """

    name: str
    """The name by which a job asks for the backend."""
    extension: str
    """The ending of the job scripts' file names, without a dot."""

    @abstractmethod
    def cmd_submit(self, jobscript: Any) -> Sequence[str]:
        """Return the command that submits ``jobscript.filename``."""

    @abstractmethod
    def get_job_id(self, response: str) -> str | None:
        """Read the job id from what the submit command printed, ``None`` if there is none."""

    @abstractmethod
    def cmd_status(self, run: Any, finished: bool = False) -> Sequence[str]:
        """Return the command that asks for the status of ``run.job_id``.

        With ``finished`` it is the one for jobs that have left the queue.
        """

    @abstractmethod
    def get_status(self, response: str, finished: bool = False) -> Status | int | None:
        """Read the status from what that command printed, ``None`` if it does not tell."""

    @abstractmethod
    def cmd_cancel(self, run: Any) -> Sequence[str]:
        """Return the command that cancels ``run.job_id``."""

    @abstractmethod
    def resource_headers(self, jobscript: Any) -> list[str]:
        """Return the header lines for ``jobscript.resources``, in the order to print them."""

    @abstractmethod
    def replace_body_vars(self, body: str) -> str:
        """Replace the core environment variables in a body by the scheduler's own."""


class BatchBackend(ClusterjobBackend):
    """A scheduler that is asked about many jobs with one command.

    Subclasses are data and parse functions. Every ``*_command`` method returns what to run,
    the ``parse_*`` method beside it reads the `Output`. A parser raises
    `SchedulerUnavailableError` where the scheduler does not answer, `ParseError` with the
    text where no rule matches a line, and leaves out jobs that the scheduler does not list:
    not listed is not an end.
    """

    prefix: ClassVar[str]
    """How a header line starts, ``#SBATCH`` for instance."""
    job_vars: ClassVar[Mapping[str, str]]
    """The scheduler's variable for each of `CORE_VARIABLES`, or shell text ``$(...)``."""
    programs: ClassVar[tuple[str, ...]]
    """The commands whose presence tells that the scheduler is installed; none for ``local``."""
    max_ids: ClassVar[int] = 1000
    """How many ids one command is given at most."""
    poll_interval: ClassVar[float] = 2.0
    """Seconds between two questions while things change."""
    max_array_size: int | None = None
    """How many tasks one array has at most; ``None`` where the backend has no arrays.

    A site may have another limit; see `probed` and `array_command`."""

    task_mark: ClassVar[str] = ""
    """What stands for the task of an array in the name of a log file; ``""`` where the scheduler
    adds it by itself."""

    exit_trap: ClassVar[str] = ""
    """Commands of a trap on EXIT in the headers, which look at ``$?``: a trap that takes its
    place must have them too."""
    own_id: ClassVar[str] = "$CLUSTERJOB_ID"
    """Shell text that is, inside a job, the id that submitting it gave."""
    one_script: ClassVar[bool] = True
    """Whether a job of several nodes runs its script once."""

    # -- rendering ---------------------------------------------------------------------------

    @abstractmethod
    def headers(self, resources: Resources) -> list[str]:
        """Return one header line for each resource, without a line break.

        Raises:
            ResourcesNotSupportedError: a key that this scheduler cannot be asked for; the
                message names the key, the backend and what to do instead.
        """

    @abstractmethod
    def launcher(self, resources: Resources, command: str) -> str:
        """Return shell text that runs ``command`` in ``nodes*ppn`` processes of the job.

        ``command`` is shell text. Each process finds ``CLUSTERJOB_RANK`` (0 to
        ``nodes*ppn - 1``), ``CLUSTERJOB_LOCAL_RANK`` (on its node) and
        ``CLUSTERJOB_NODE_RANK`` in its environment, beside the environment of the job
        script. The text ends when all processes have ended.
        """

    @abstractmethod
    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        """Return where a job writes ``"stdout"`` or ``"stderr"``, relative to its work folder."""

    def submission_files(self, resources: Resources, script: str) -> dict[str, str]:
        """Return files (name to text) that submitting needs beside the job script."""
        return {}

    # -- finding out ---------------------------------------------------------------------------

    def probe_commands(self) -> Sequence[Command]:
        """Return commands whose answers tell how this site's scheduler wants to be spoken to.

        They are run once per scheduler, before anything else is asked.
        """
        return ()

    def probed(self, outputs: Sequence[Output]) -> BatchBackend:
        """Return the backend that fits what the probe commands answered.

        It is of the same class, so that one that a site has derived stays what it is.
        """
        return self

    def array_command(self) -> Command | None:
        """Return the command that tells how long arrays may be at this site, if one does."""
        return None

    def parse_array(self, output: Output) -> int:
        """Read how many tasks an array may have at most; 0 where the site has no arrays."""
        return self.max_array_size or 0

    # -- asking ------------------------------------------------------------------------------

    @abstractmethod
    def submit_command(self, resources: Resources, script: str) -> Command:
        """Return the command that submits the file ``script``."""

    @abstractmethod
    def parse_submit(self, output: Output) -> str:
        """Read the id of the new job.

        Raises:
            SubmitError: the scheduler refused it.
        """

    @abstractmethod
    def query_command(self, ids: Sequence[str]) -> Command:
        """Return the one command that asks for all these jobs while they are in the queue."""

    @abstractmethod
    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        """Read what the scheduler told about ``ids``: one record a job, or one a task.

        A record of an array without a task speaks of all tasks that have no record of their
        own. With empty ``ids`` all records of the output are returned.
        """

    def ended_command(self, ids: Sequence[str]) -> Command | None:
        """Return the one command that asks for jobs that left the queue, if there is one."""
        return None

    def parse_ended(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        """Read what `ended_command` printed, as `parse_query` does."""
        return []

    @abstractmethod
    def cancel_command(self, ids: Sequence[str]) -> Command:
        """Return the one command that cancels all these jobs or tasks (see `task_id`)."""

    @abstractmethod
    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        """Check that the cancel command was understood; a job that had ended is no error.

        Raises:
            SchedulerError: the scheduler refused.
        """

    @abstractmethod
    def task_id(self, job_id: str, task: int) -> str:
        """Return the name that the cancel command knows a task of an array by."""

    # -- finding a job again -----------------------------------------------------------------

    def tagged(self, resources: Mapping[str, Any], tag: str) -> dict[str, Any]:
        """Return resources that make a job carry a tag, for `find_commands`.

        The name of the script that is submitted has the tag too, which some schedulers show.
        """
        return dict(resources)

    def find_commands(self, tag: str, age: float) -> Sequence[Command]:
        """Return commands that list jobs with their tags: those in the queue, ended ones.

        ``age`` is how many seconds ago the job may have been submitted at most. There are none
        where a scheduler shows nothing of a job that could hold a tag.
        """
        return ()

    def parse_find(self, output: Output, tag: str) -> str | None:
        """Read the id of the job with that tag: here the number that its line begins with."""
        if output.exit_code != 0:
            raise SchedulerUnavailableError(f"{self.name} cannot be asked for jobs", output)
        for line in output.stdout.splitlines():
            if tag in line:
                match = re.match(r"\s*([0-9]+)", line)
                if match is None:
                    raise ParseError(f"{self.name}: no id before the tag: {line}", output)
                return match[1]
        return None

    # -- the contract of one run, derived ------------------------------------------------------

    def cmd_submit(self, jobscript: Any) -> Sequence[str]:
        return self.submit_command(Resources.of(jobscript.resources), jobscript.filename).argv

    def get_job_id(self, response: str) -> str | None:
        return self.parse_submit(Output.of(response)) or None

    def cmd_status(self, run: Any, finished: bool = False) -> Sequence[str]:
        ids = [str(run.job_id)]
        command = self.ended_command(ids) if finished else None
        return (command or self.query_command(ids)).argv

    def get_status(self, response: str, finished: bool = False) -> Status | int | None:
        output = Output.of(response)
        infos = self.parse_ended(output, ()) if finished else self.parse_query(output, ())
        return combine([info.status for info in infos]) if infos else None

    def cmd_cancel(self, run: Any) -> Sequence[str]:
        return self.cancel_command([str(run.job_id)]).argv

    def resource_headers(self, jobscript: Any) -> list[str]:
        return self.headers(Resources.of(jobscript.resources))

    def replace_body_vars(self, body: str) -> str:
        for name, native in self.job_vars.items():
            if native.startswith("$("):
                plain = native.replace("\\", "\\\\")
                body = re.sub(rf"\$(?:{name}\b|\{{{name}\}})", plain, body)
            else:
                body = re.sub(rf"\$(\{{?){name}\b", rf"$\g<1>{native}", body)
        return body
