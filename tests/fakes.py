"""A scheduler in memory that counts the commands it gets, and a clock that is set by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import ClassVar

from cjdask.backends import BatchBackend
from cjdask.command import Command, Output
from cjdask.errors import ParseError, SchedulerUnavailableError, SubmitError
from cjdask.protocols.local import LocalProtocol
from cjdask.resources import ArraySpec, Resources
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo, Reason, Status


class FakeClock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class FakeProtocol(LocalProtocol):
    """Answers the commands of `FakeBackend` from two tables of jobs."""

    queue: dict[str, list[JobInfo]] = field(default_factory=dict)
    history: dict[str, list[JobInfo]] = field(default_factory=dict)
    calls: list[tuple[str, ...]] = field(default_factory=list)
    down: bool = False
    host = "fake"

    def run(self, command: Command, timeout: float | None = None) -> Output:
        verb, *ids = command.argv
        if not verb.startswith("fake-"):
            return super().run(command, timeout)
        self.calls.append(command.argv)
        if self.down:
            return Output.of(stderr="no contact", exit_code=1, argv=command.argv, host=self.host)
        if verb == "fake-submit":
            job_id = str(len({*self.queue, *self.history}) + 1)
            tasks = ArraySpec.parse(ids[1]).indices if ids[1:] else (None,)
            self.queue[job_id] = [JobInfo(job_id, Status.PENDING, task) for task in tasks]
            return Output.of(job_id)
        if verb == "fake-cancel":
            for job_id in ids:
                self.end(job_id, Status.CANCELLED)
            return Output.of()
        table = self.queue if verb == "fake-query" else self.history
        rows = [asdict(row) for job_id in ids for row in table.get(job_id, [])]
        return Output.of(json.dumps(rows), argv=command.argv, host=self.host)

    def which(self, program: str) -> str | None:
        return f"/fake/{program}"

    def set(self, job_id: str, status: Status) -> None:
        """Give a job a status in the queue."""
        self.queue[job_id] = [JobInfo(job_id, status)]

    def living(self) -> list[str]:
        """List the jobs and tasks in the queue."""
        rows = [row for rows in self.queue.values() for row in rows]
        return [r.job_id if r.task is None else f"{r.job_id}_{r.task}" for r in rows]

    def end(
        self,
        job_id: str,
        status: Status,
        exit_code: int | None = None,
        reason: Reason = Reason.NONE,
    ) -> None:
        """Move a job, or the task ``ID_TASK`` of an array, from the queue to the history."""
        job_id, _, task = job_id.partition("_")
        rows = self.queue.pop(job_id, [])
        ended = [row for row in rows if task in ("", str(row.task))]
        if not ended:
            return
        if left := [row for row in rows if row not in ended]:
            self.queue[job_id] = left
        end = {"status": status, "exit_code": exit_code, "reason": reason}
        now = [replace(row, **end) for row in ended]
        self.history.setdefault(job_id, []).extend(now)


class FakeBackend(BatchBackend):
    """Speaks to `FakeProtocol`."""

    name = "fake"
    extension = "fake"
    prefix = "#FAKE"
    programs = ()
    job_vars: ClassVar = {"CLUSTERJOB_ID": "FAKE_ID", "CLUSTERJOB_NODELIST": "$(cat $FAKE_NODES)"}
    poll_interval = 0.05

    def headers(self, resources: Resources) -> list[str]:
        return [f"#FAKE {key}" for key in resources.given()]

    def launcher(self, resources: Resources, command: str) -> str:
        return command

    def log_path(self, resources: Resources, stream: str, job_id: str, task: int | None) -> str:
        return f"{job_id}.{stream}"

    def submit_command(self, resources: Resources, script: str) -> Command:
        array = [str(resources.array)] if resources.array else []
        return Command(("fake-submit", script, *array))

    def parse_submit(self, output: Output) -> str:
        if output.exit_code:
            raise SubmitError("fake refused the job", output)
        return output.stdout

    def query_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("fake-query", *ids)

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        if output.exit_code:
            raise SchedulerUnavailableError("fake does not answer", output)
        try:
            rows = json.loads(output.stdout)
        except ValueError:
            raise ParseError("no JSON", output) from None
        return [
            JobInfo(**{**row, "status": Status(row["status"]), "reason": Reason(row["reason"])})
            for row in rows
        ]

    def ended_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("fake-ended", *ids)

    parse_ended = parse_query

    def cancel_command(self, ids: Sequence[str]) -> Command:
        return Command.ask("fake-cancel", *ids)

    def parse_cancel(self, output: Output, ids: Sequence[str]) -> None:
        if output.exit_code:
            raise SchedulerUnavailableError("fake does not answer", output)

    def task_id(self, job_id: str, task: int) -> str:
        return f"{job_id}_{task}"


def fake_scheduler() -> tuple[Scheduler, FakeProtocol]:
    """Return a new fake scheduler and the protocol that holds its jobs."""
    protocol = FakeProtocol()
    return Scheduler(FakeBackend(), protocol), protocol
