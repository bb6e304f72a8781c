"""A scheduler: a backend spoken to over a protocol. The only place where commands are run."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from cjdask.backends import BatchBackend, ClusterjobBackend, get_backend
from cjdask.backends.local import LocalBackend
from cjdask.command import Command, Output
from cjdask.errors import ProtocolError, SchedulerError, SubmitError
from cjdask.protocols import ConnectionParameters, address, protocol_for
from cjdask.protocols.base import Protocol
from cjdask.protocols.local import LocalProtocol
from cjdask.protocols.remote import RemoteProtocol
from cjdask.resources import Resources
from cjdask.scheduler_once import check_claimed, claiming, find_receipt
from cjdask.status import JobInfo, Status

__all__ = ["Scheduler", "scheduler_for"]

logger = logging.getLogger(__name__)

COMMAND_TIMEOUT = 120.0
"""Seconds after which a command counts as unanswered. A Slurm client gives up after 18 s."""
CLAIM_GRACE = 20.0
"""Seconds beyond that in which a submit command must have been ended on another machine."""
REMOTE_INTERVAL = 2.0
"""Seconds between two questions to another machine at least."""


class Scheduler:
    """Submits, asks and cancels; one command serves any number of jobs.

    ``commands`` counts the commands that were run, by what for: ``submit``, ``query``,
    ``ended``, ``find``, ``cancel``, ``probe``. All methods may be called from several threads
    at once.
    """

    def __init__(self, backend: ClusterjobBackend, protocol: Protocol) -> None:
        self.protocol = protocol
        self.commands: Counter[str] = Counter()
        self._backend = backend
        self._probed = False
        self._probing = threading.Lock()
        self._lock = threading.Lock()
        self._absent: set[str] = set()
        self._array_limit: int | None = None

    def __repr__(self) -> str:
        return f"<Scheduler {self._backend.name} on {self.protocol.host}>"

    @property
    def name(self) -> str:
        """The name of the backend."""
        return self._backend.name

    @property
    def remote(self) -> str | None:
        """The machine, as `scheduler_for` takes it; ``None`` for this one."""
        return address(self.protocol) if isinstance(self.protocol, RemoteProtocol) else None

    @property
    def ssh(self) -> str:
        """The program by which that is reached."""
        return getattr(self.protocol, "ssh", "ssh")

    @property
    def poll_interval(self) -> float:
        """Seconds between two questions while things change."""
        known = self._backend if isinstance(self._backend, BatchBackend) else BatchBackend
        there = isinstance(self.protocol, RemoteProtocol)
        return max(REMOTE_INTERVAL, known.poll_interval) if there else known.poll_interval

    @property
    def backend(self) -> ClusterjobBackend:
        """The backend, fitted to this scheduler by its probe commands at the first use.

        Where the scheduler's programs are not installed it stays as it is, so that scripts
        can be rendered anywhere.

        Raises:
            SchedulerError, ProtocolError: the scheduler is there but does not answer.
        """
        with self._probing:
            if not self._probed and isinstance(self._backend, BatchBackend):
                commands = self._backend.probe_commands()
                if all(self.protocol.which(command.argv[0]) for command in commands):
                    outputs = [self._run("probe", command) for command in commands]
                    self._backend = self._backend.probed(outputs)
                    self._probed = True
            return self._backend

    @property
    def renderer(self) -> ClusterjobBackend:
        """The backend to render a script with: the fitted one where the scheduler answers."""
        try:
            return self.backend
        except (SchedulerError, ProtocolError):
            return self._backend

    def array_limit(self) -> int:
        """Return how many tasks an array may have at most, 0 where there are no arrays.

        The scheduler is asked once.

        Raises:
            SchedulerError, ProtocolError: it cannot be asked.
        """
        backend = self.backend
        if not isinstance(backend, BatchBackend) or backend.max_array_size is None:
            return 0
        if self._array_limit is None:
            command = backend.array_command()
            if command is None or not self._present(command.argv[0]):
                self._array_limit = backend.max_array_size
            else:
                self._array_limit = backend.parse_array(self._run("probe", command))
        return self._array_limit

    def submit(
        self, jobscript: Any, cwd: str, hold: Sequence[int] = (), claim: str | None = None
    ) -> str:
        """Submit the file ``jobscript.filename``, which is in the folder ``cwd``; return the id.

        ``hold`` are open files whose locks must last as long as the command runs. ``claim`` is
        a path on the machine where what becomes of this is found by `submitted_by`.

        Raises:
            SubmitError: the scheduler refused the job; its own words are in the message.
            SchedulerUnavailableError: it does not answer.
            ProtocolError: the machine could not be asked.
        """
        backend = self.backend
        if isinstance(backend, BatchBackend):
            resources = Resources.of(jobscript.resources)
            command = backend.submit_command(resources, jobscript.filename)
        else:
            command = _command(backend.cmd_submit(jobscript))
        if claim is None:
            return self._submitted(self._run("submit", command, cwd, hold))
        output = self._run("submit", claiming(command, claim), cwd, hold)
        check_claimed(output, command)
        return self._submitted(replace(output, argv=command.argv))

    def _submitted(self, output: Output) -> str:
        """Return the id that a submit command answered."""
        backend = self.backend
        if isinstance(backend, BatchBackend):
            return backend.parse_submit(output)
        job_id = backend.get_job_id(output.stdout) if output.exit_code == 0 else None
        if not job_id:
            raise SubmitError(f"{backend.name} did not accept the job", output)
        return job_id

    def submitted_by(self, claim: str) -> str | None:
        """Return the id that a submission got, whose answer did not reach us.

        ``None`` says that it never got to the scheduler, and never will.

        Raises:
            SubmitError: the scheduler refused the job.
            TimeoutError: it was begun, and left no answer; what came of it is not known.
            ProtocolError: the machine could not be asked.
        """
        found = find_receipt(self.protocol, claim, COMMAND_TIMEOUT + CLAIM_GRACE)
        return None if found is None else self._submitted(found)

    def query(self, ids: Sequence[str]) -> list[JobInfo]:
        """Ask for jobs in the queue: a record for each that the scheduler lists.

        A job that is not in the answer has not ended by that.

        Raises:
            SchedulerError: no answer, or one that is not understood.
            ProtocolError: the machine could not be asked.
        """
        backend = self.backend
        if not isinstance(backend, BatchBackend):
            return self._one_by_one("query", ids, finished=False)
        return [
            info
            for chunk in self._chunks(ids, backend.max_ids)
            for info in backend.parse_query(
                self._run("query", backend.query_command(chunk)), list(chunk)
            )
        ]

    def ended(self, ids: Sequence[str]) -> list[JobInfo]:
        """Ask for jobs that may have left the queue, as `query` does.

        The answer is empty where the scheduler keeps no record of such jobs.
        """
        backend = self.backend
        if not isinstance(backend, BatchBackend):
            return self._one_by_one("ended", ids, finished=True)
        found: list[JobInfo] = []
        for chunk in self._chunks(ids, backend.max_ids):
            command = backend.ended_command(chunk)
            if command is None or not self._present(command.argv[0]):
                return []
            found += backend.parse_ended(self._run("ended", command), list(chunk))
        return found

    def find(self, tag: str, age: float) -> str | None:
        """Return the id of the job that carries a tag (see `BatchBackend.tagged`).

        ``age`` is how many seconds ago it may have been submitted at most. ``None`` is the word
        of the scheduler that there is none in the queue nor in its records.

        Raises:
            SchedulerError: no answer, or jobs of this scheduler cannot be told by a tag.
            ProtocolError: the machine could not be asked.
        """
        backend = self.backend
        commands = backend.find_commands(tag, age) if isinstance(backend, BatchBackend) else ()
        if not commands:
            raise SchedulerError(f"{backend.name} cannot be asked which job carries a tag")
        assert isinstance(backend, BatchBackend)
        for number, command in enumerate(commands):
            if number == 0 or self._present(command.argv[0]):
                job_id = backend.parse_find(self._run("find", command), tag)
                if job_id is not None:
                    return job_id
        return None

    def cancel(self, ids: Sequence[str]) -> None:
        """Cancel jobs, or tasks as `BatchBackend.task_id` names them.

        A job that has ended stays as it is. The call returns when the scheduler has taken the
        request, which may be before the jobs are gone.

        Raises:
            SchedulerError: it refused or did not answer.
            ProtocolError: the machine could not be asked.
        """
        backend = self.backend
        if isinstance(backend, BatchBackend):
            for chunk in self._chunks(ids, backend.max_ids):
                output = self._run("cancel", backend.cancel_command(chunk))
                backend.parse_cancel(output, chunk)
            return
        for job_id in ids:
            command = _command(backend.cmd_cancel(SimpleNamespace(job_id=job_id)))
            output = self._run("cancel", command)
            if output.exit_code != 0:
                raise SchedulerError(f"{backend.name} did not cancel {job_id}", output)

    def _one_by_one(self, verb: str, ids: Sequence[str], finished: bool) -> list[JobInfo]:
        """Ask a backend that knows one run at a time."""
        found = []
        backend = self.backend
        for job_id in ids:
            run = SimpleNamespace(job_id=job_id)
            output = self._run(verb, _command(backend.cmd_status(run, finished=finished)))
            status = backend.get_status(output.stdout, finished=finished)
            if status is not None:
                found.append(JobInfo(job_id, Status(status)))
        return found

    @staticmethod
    def _chunks(ids: Sequence[str], size: int) -> Iterator[Sequence[str]]:
        for start in range(0, len(ids), size):
            yield ids[start : start + size]

    def _present(self, program: str) -> bool:
        if program in self._absent:
            return False
        if self.protocol.which(program) is None:
            logger.info("%s is not there on %s", program, self.protocol.host)
            self._absent.add(program)
            return False
        return True

    def _run(
        self, verb: str, command: Command, cwd: str | None = None, hold: Sequence[int] = ()
    ) -> Output:
        if cwd is not None:
            command = replace(command, cwd=cwd, hold=tuple(hold))
        with self._lock:
            self.commands[verb] += 1
        return self.protocol.run(command, timeout=COMMAND_TIMEOUT)


def _command(argv: Sequence[str] | str) -> Command:
    """Take a command as a `ClusterjobBackend` gives it: arguments, or text for a shell."""
    return Command(("/bin/sh", "-c", argv) if isinstance(argv, str) else tuple(map(str, argv)))


_schedulers: dict[tuple[ClusterjobBackend, Protocol], Scheduler] = {}
_schedulers_lock = threading.Lock()
_here = LocalProtocol()


def scheduler_for(
    backend: str,
    remote: str | ConnectionParameters | RemoteProtocol | None = None,
    ssh: str = "ssh",
) -> Scheduler:
    """Return the one scheduler of this process for a backend on a machine.

    ``remote`` is the machine, see `cjdask.protocols.protocol_for`; without one it is this one.

    Raises:
        UnknownBackendError: there is no such backend.
        ValueError: the machine is not named as one.
    """
    found = get_backend(backend)
    protocol = protocol_for(remote, ssh) if remote else _here
    with _schedulers_lock:
        key = (found, protocol)
        if key not in _schedulers:
            if isinstance(found, LocalBackend) and protocol is not _here:
                from cjdask.scheduler_embedded import EmbeddedScheduler

                _schedulers[key] = EmbeddedScheduler(found, protocol)
            else:
                _schedulers[key] = Scheduler(found, protocol)
        return _schedulers[key]
