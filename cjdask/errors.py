"""The errors that cjdask raises.

::

    ClusterjobError
      ResourcesNotSupportedError     a resource that cannot be asked for (also ValueError)
      UnknownBackendError            no scheduler of that name (also ValueError)
      ProtocolError                  the machine could not be reached or asked (also OSError)
        UnreachableError               there is no connection; nothing was run there
          LoginError                     it does not accept who we say we are
          HostKeyError                   it may not be the machine that it was
        LinkLostError                  the link broke while something ran there
      SchedulerError                 the scheduler refused, or answered what is not understood
        SubmitError                    it refused a job
        ParseError                     its answer is not understood
        SchedulerUnavailableError      it does not answer at the moment
      JournalError                   the journal cannot be used (also OSError)
      SettingsError                  a file of settings is wrong (also ValueError)
      StagingError                   output files of a job are not there
      ScriptError                    a prologue or epilogue failed
      PayloadError                   a call or its result cannot travel to or from a job
      RemoteException                a call raised what cannot be brought here as it is
      JobError                       a job ended without a result
        JobFailed
        JobCancelled
        JobDied                        one that ran a call
"""

from __future__ import annotations

import shlex

from cjdask.command import Output
from cjdask.status import JobInfo, Reason, Status

__all__ = [
    "ClusterjobError",
    "HostKeyError",
    "JobCancelled",
    "JobDied",
    "JobError",
    "JobFailed",
    "JournalError",
    "LinkLostError",
    "LoginError",
    "ParseError",
    "PayloadError",
    "ProtocolError",
    "RemoteException",
    "ResourcesNotSupportedError",
    "SchedulerError",
    "SchedulerUnavailableError",
    "ScriptError",
    "SettingsError",
    "StagingError",
    "SubmitError",
    "UnknownBackendError",
    "UnreachableError",
]


class ClusterjobError(Exception):
    """The base of all errors that cjdask raises on purpose."""


class ResourcesNotSupportedError(ClusterjobError, ValueError):
    """A resource has a value that cannot be, or that this scheduler cannot be asked for."""


class UnknownBackendError(ClusterjobError, ValueError):
    """There is no backend of that name; the message lists those that there are."""


class ProtocolError(ClusterjobError, OSError):
    """A machine could not be reached, or a command could not be run there."""


class UnreachableError(ProtocolError):
    """No connection to a machine could be made; nothing was run there."""


class LoginError(UnreachableError):
    """A machine does not accept the user, key or password."""


class HostKeyError(UnreachableError):
    """The key of a machine is not known, or is another than it was."""


class LinkLostError(ProtocolError):
    """The link to a machine broke; whether what ran there came to its end is not known."""


class SchedulerError(ClusterjobError):
    """A scheduler was asked and refused, or answered what is not understood.

    ``output`` holds what was run, where, and what came back.
    """

    def __init__(self, message: str, output: Output | None = None) -> None:
        self.output = output
        if output is not None:
            message += "\n" + _dialogue(output)
        super().__init__(message)


class SubmitError(SchedulerError):
    """A scheduler refused a job; its own words are in the message."""


class ParseError(SchedulerError):
    """A scheduler answered what no rule understands; the text is in the message."""


class SchedulerUnavailableError(SchedulerError):
    """A scheduler does not answer at the moment. This says nothing about any job."""


class JournalError(ClusterjobError, OSError):
    """A file of the journal cannot be read, believed or written. Nothing was submitted."""


class SettingsError(ClusterjobError, ValueError):
    """A file of settings is wrong; the message has file, line and remedy."""


class StagingError(ClusterjobError):
    """Output files of a job that ended are not there."""


class ScriptError(ClusterjobError):
    """A prologue or epilogue failed; ``output`` holds its exit code and what it printed."""

    def __init__(self, message: str, output: Output) -> None:
        self.output = output
        super().__init__(f"{message}\n{_dialogue(output)}")


class JobError(ClusterjobError):
    """A job ended without a result; ``info`` says how, ``log`` is the tail of its log."""

    def __init__(self, message: str, info: JobInfo | None = None, log: str = "") -> None:
        self.info = info
        self.log = log
        if log:
            message += "\n" + "\n".join(f"  | {line}" for line in log.splitlines())
        super().__init__(message)


class JobFailed(JobError):
    """A job ended as FAILED."""


class JobCancelled(JobError):
    """A job was cancelled."""


class JobDied(JobError):
    """The job, or the task of an array, that ran a call ended without leaving its result.

    ``info`` says how the job ended, ``log`` is the end of what it wrote, and ``log_file`` is
    where all of that is.
    """

    def __init__(
        self, message: str, info: JobInfo | None = None, log: str = "", log_file: str | None = None
    ) -> None:
        super().__init__(message, info, log)
        self.log_file = log_file

    @property
    def status(self) -> Status | None:
        """How the job ended."""
        return self.info.status if self.info else None

    @property
    def reason(self) -> Reason:
        """Why, as far as it is known."""
        return self.info.reason if self.info else Reason.NONE

    @property
    def exit_code(self) -> int | None:
        """The exit code of the job; one from 129 on tells of the signal 128 less."""
        return self.info.exit_code if self.info else None


class PayloadError(ClusterjobError):
    """A call or its result cannot travel: it cannot be pickled, or the two sides differ."""


class RemoteException(ClusterjobError):
    """A call raised an exception; ``error`` is the text of its traceback, from the node.

    It is raised where the exception itself cannot be brought here, or should not be
    (SystemExit would end this process). Else it is the cause of the exception.
    """

    def __init__(self, error: str) -> None:
        super().__init__(error)
        self.error = error

    def __str__(self) -> str:
        return "\n" + self.error.strip()


def _dialogue(output: Output, limit: int = 4000) -> str:
    """Show a command and its answer the way a terminal would."""
    lines = [f"  $ {shlex.join(output.argv)}   (on {output.host}, exit code {output.exit_code})"]
    for text in (output.stdout, output.stderr):
        text = text.strip()
        if len(text) > limit:
            text = text[:limit] + " ..."
        lines += [f"  | {line}" for line in text.splitlines()]
    return "\n".join(lines)
