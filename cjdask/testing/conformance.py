"""Checks that a scheduler and its backend keep what this package promises.

A site runs them on its own scheduler with pytest by a subclass, in a file of its own::

    from cjdask.testing import SchedulerConformance

    class TestOurCluster(SchedulerConformance):
        backend = "slurm"
        resources = {"queue": "debug"}
        held = {"hold": True}

All jobs are submitted at the beginning and are short; together they take little more than the
shortest walltime that the scheduler can enforce.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cjdask.backends import BatchBackend, get_backend
from cjdask.errors import ResourcesNotSupportedError
from cjdask.jobscript import JobScript
from cjdask.monitor import Monitor, monitor_for
from cjdask.run import AsyncResult, cancel_all
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.status import Reason, Status

__all__ = ["SchedulerConformance", "until"]


def until(condition: Callable[[], Any], timeout: float = 60.0, pause: float = 0.05) -> Any:
    """Wait for a condition and return its value.

    Raises:
        AssertionError: it is still false after ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"still not after {timeout:g} s"
        time.sleep(pause)
    return value


class SchedulerConformance:
    """The life of a job on a real scheduler, in every way that it can go."""

    backend: ClassVar[str]
    """The backend under test."""
    remote: ClassVar[str | None] = None
    """The machine of the scheduler, as `JobScript.remote`; then `folder` is one that both have."""
    ssh: ClassVar[str] = "ssh"
    """The program by which that is reached."""
    resources: ClassVar[dict[str, Any]] = {}
    """What every job asks for: a queue, an account."""
    held: ClassVar[dict[str, Any]] = {}
    """Options that keep a job from starting; without any it waits for one that runs long."""
    walltime: ClassVar[str] = "1"
    """The shortest walltime that the scheduler takes."""
    walltime_patience: ClassVar[float] = 180.0
    """Seconds until a job over its walltime must be known to have ended."""
    patience: ClassVar[float] = 120.0
    """Seconds until a short job must be known to have ended."""
    array_limit: ClassVar[int | None] = 10
    """How many tasks of an array run at a time; ``None`` where that cannot be asked for."""

    @classmethod
    def scheduler(cls) -> Scheduler:
        """Return the scheduler under test."""
        return scheduler_for(cls.backend, *((cls.remote, cls.ssh) if cls.remote else ()))

    # -- making jobs ---------------------------------------------------------------------------

    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Return a folder that the jobs can use; a site overrides it where that is not so."""
        return tmp_path_factory.mktemp(f"conformance-{cls.backend}")

    @pytest.fixture(scope="class")
    @classmethod
    def job(cls, folder: Path) -> Callable[..., JobScript]:
        """Return a function that makes a job script in a folder of its own."""

        def make(name: str, body: str, **kwargs: Any) -> JobScript:
            asked = {"time": "10", **cls.resources, **kwargs}
            place: dict[str, Any] = {"backend": cls.backend, "remote": cls.remote, "ssh": cls.ssh}
            return JobScript(body, name, rootdir=str(folder / name), **place, **asked)

        return make

    @pytest.fixture(scope="class")
    @classmethod
    def runs(cls, job: Callable[..., JobScript]) -> Iterator[dict[str, AsyncResult]]:
        """Submit all jobs of the class."""
        runs = {"long": job("long", "sleep 600").submit()}
        held = cls.held or {"depends": runs["long"]}
        bodies: dict[str, tuple[str, dict[str, Any]]] = {
            "walltime": ("sleep 600", {"time": cls.walltime}),
            "held": ("true", held),
            "cancelpending": ("true", held),
            "cancelrunning": ("echo started; sleep 600", {}),
            "external": ("echo started; sleep 600", {}),
            "good": ("echo out; echo err >&2", {"stdout": "good.out", "stderr": "good.err"}),
            "exit3": ("exit 3", {}),
            "exit137": ("exit 137", {}),
            "killed": ("kill -SEGV $$; sleep 60", {}),
        }
        runs |= {name: job(name, body, **more).submit() for name, (body, more) in bodies.items()}
        yield runs
        cancel_all(list(runs.values()))
        for run in runs.values():
            run.wait(cls.patience)

    @pytest.fixture(scope="class")
    @classmethod
    def array(cls, job: Callable[..., JobScript], folder: Path) -> Iterator[AsyncResult]:
        """Submit an array of 50 tasks, one of which fails."""
        limit = f"%{cls.array_limit}" if cls.array_limit else ""
        body = (
            f"cd {folder}\n"
            "touch in.$CLUSTERJOB_ARRAY_INDEX\n"
            "ls in.* | wc -l > seen.$CLUSTERJOB_ARRAY_INDEX\n"
            "sleep 0.5\n"
            "rm in.$CLUSTERJOB_ARRAY_INDEX\n"
            'if [ "$CLUSTERJOB_ARRAY_INDEX" = 17 ]; then exit 4; fi\n'
        )
        run = job("array", body, array=f"1-50{limit}").submit()
        yield run
        run.cancel()

    # -- what must hold ------------------------------------------------------------------------

    def test_a_job_is_found_by_its_tag(self, job: Callable[..., JobScript], folder: Path) -> None:
        """A job whose id got lost is found again, and is submitted once; so is an array."""
        backend = get_backend(self.backend)
        if not (isinstance(backend, BatchBackend) and backend.find_commands("cjdask-x", 0.0)):
            pytest.skip(f"backend {self.backend!r} has no tags")
        arrays: list[dict[str, Any]] = [{}, {"array": "1-2"}] if backend.max_array_size else [{}]
        for more in arrays:
            run = job("tagged", "sleep 600", **self.held, **more).submit(
                cache_id=f"a{len(more)}", cache_folder=folder / "cache"
            )
            try:
                assert self.scheduler().find(run._entry.tag, 60.0) == run.job_id
                assert self.scheduler().find(f"cjdask-{'0' * 24}", 60.0) is None
            finally:
                run.cancel()

    def test_a_good_job_completes(self, runs: dict[str, AsyncResult]) -> None:
        """A job that returns 0 is COMPLETED with exit code 0, its output can be read."""
        run = runs["good"]
        assert run.get(self.patience) is Status.COMPLETED
        assert run.info.exit_code == 0
        assert run.successful()
        until(lambda: run.stdout().strip() == "out" and run.stderr().strip() == "err")

    def test_a_non_zero_exit_fails(self, runs: dict[str, AsyncResult]) -> None:
        """A job that returns another code is FAILED with that code."""
        assert runs["exit3"].get(self.patience) is Status.FAILED
        assert runs["exit3"].info.exit_code == 3
        assert runs["exit3"].info.reason is Reason.NONZERO_EXIT

    def test_a_high_exit_code_fails(self, runs: dict[str, AsyncResult]) -> None:
        """A job that returns 137 is FAILED."""
        assert runs["exit137"].get(self.patience) is Status.FAILED

    def test_a_signal_fails(self, runs: dict[str, AsyncResult]) -> None:
        """A job that is ended by a signal is FAILED, with the signal or the shell's code for it."""
        assert runs["killed"].get(self.patience) is Status.FAILED
        info = runs["killed"].info
        assert info.signal == 11 or info.exit_code == 128 + 11, info

    def test_a_running_job_is_running(self, runs: dict[str, AsyncResult]) -> None:
        """A job that sleeps is RUNNING, on a node that has a name."""
        until(lambda: runs["long"].status is Status.RUNNING, self.patience)
        assert runs["long"].info.nodes

    def test_a_held_job_is_pending(self, runs: dict[str, AsyncResult]) -> None:
        """A job that may not start is PENDING."""
        runs["long"].wait(1)
        assert runs["held"].status is Status.PENDING

    def test_cancel_while_pending(self, runs: dict[str, AsyncResult]) -> None:
        """A pending job that is cancelled is CANCELLED."""
        run = runs["cancelpending"]
        assert run.status is Status.PENDING
        run.cancel()
        assert run.get(self.patience) is Status.CANCELLED

    def test_cancel_while_running(self, runs: dict[str, AsyncResult]) -> None:
        """A running job that is cancelled is CANCELLED, and stays so when cancelled again."""
        run = runs["cancelrunning"]
        until(lambda: run.status is Status.RUNNING, self.patience)
        run.cancel()
        assert run.get(self.patience) is Status.CANCELLED
        run.cancel()
        assert run.status is Status.CANCELLED

    def test_an_external_cancel(self, runs: dict[str, AsyncResult]) -> None:
        """A job that somebody else cancels is CANCELLED."""
        run = runs["external"]
        until(lambda: run.status is Status.RUNNING, self.patience)
        self.scheduler().cancel([run.job_id])
        assert run.get(self.patience) is Status.CANCELLED

    def test_a_completed_job_stays_completed(self, runs: dict[str, AsyncResult]) -> None:
        """Cancelling a job that has ended changes nothing."""
        runs["good"].get(self.patience)
        self.scheduler().cancel([runs["good"].job_id])
        runs["good"].cancel()
        assert runs["good"].status is Status.COMPLETED

    def test_an_array(self, array: AsyncResult, folder: Path) -> None:
        """Of 50 tasks one fails: the array is FAILED, that task with its code; the limit holds."""
        assert array.get(self.patience) is Status.FAILED
        tasks = array.tasks
        assert sorted(tasks) == list(range(1, 51))
        assert {i for i, info in tasks.items() if info.status is Status.FAILED} == {17}
        assert tasks[17].exit_code == 4
        assert tasks[16].exit_code == 0
        seen = [int(path.read_text()) for path in folder.glob("seen.*")]
        assert len(seen) == 50
        assert max(seen) <= (self.array_limit or 50)

    def test_dependencies(self, job: Callable[..., JobScript], folder: Path) -> None:
        """A job after a good one runs; one after a failed one never does and does not hang."""
        try:
            first = job("first", "sleep 1").submit()
            after = job("after", "true", depends=first).submit()
        except ResourcesNotSupportedError as error:  # a scheduler without dependencies says so
            assert "depends" in str(error)
            return
        bad = job("bad", "sleep 1; exit 2").submit()
        never = job("never", f"touch {folder}/ran", depends=bad).submit()
        assert after.get(self.patience) is Status.COMPLETED
        assert never.get(self.patience) in (Status.CANCELLED, Status.FAILED)
        assert not (folder / "ran").exists()

    def test_100_jobs_in_one_query(
        self, job: Callable[..., JobScript], runs: dict[str, AsyncResult]
    ) -> None:
        """100 jobs are asked for with one command and cancelled with one."""
        held = self.held or {"depends": runs["long"]}
        many = [job("many", "true", **held).submit() for _ in range(100)]
        other = Scheduler(get_backend(self.backend), self.scheduler().protocol)
        monitor = Monitor(other)
        tracked = [monitor.track(run.job_id) for run in many]
        monitor.refresh(max_age=0)
        assert {job.status for job in tracked} == {Status.PENDING}
        assert other.commands["query"] == 1
        assert all(job.infos[None].native for job in tracked)
        before = self.scheduler().commands["cancel"]
        cancel_all(many)
        assert self.scheduler().commands["cancel"] == before + 1
        assert {run.get(self.patience) for run in many} == {Status.CANCELLED}

    def test_an_unknown_id_is_not_listed(self, unknown_id: str) -> None:
        """Asked for a job that it does not know, the scheduler lists none, and that is no end."""
        scheduler = self.scheduler()
        assert scheduler.query([unknown_id]) == []
        assert scheduler.ended([unknown_id]) == []

    @pytest.fixture
    def unknown_id(self) -> str:
        """Return an id that no job has."""
        return "999999"

    def test_the_scheduler_goes_down_and_comes_back(self, job: Callable[..., JobScript]) -> None:
        """While the scheduler does not answer no status changes; then the end is found."""
        run = job("survivor", "sleep 3").submit()
        until(lambda: run.status is Status.RUNNING, self.patience)
        down = self.stop_scheduler()
        try:
            run.wait(down)
            assert run.status is Status.RUNNING
            assert monitor_for(self.scheduler()).last_error is not None
        finally:
            self.start_scheduler()
        assert run.get(self.patience) is Status.COMPLETED
        assert run.info.exit_code == 0

    def stop_scheduler(self) -> float:
        """Stop the scheduler's server; return for how many seconds to look at it.

        A site that cannot do so leaves this as it is, and the check is skipped.
        """
        pytest.skip("this scheduler may not be stopped")

    def start_scheduler(self) -> None:
        """Start the scheduler's server again."""

    # the last, so that the others run while it waits
    def test_the_walltime_ends_a_job(self, runs: dict[str, AsyncResult]) -> None:
        """A job over its walltime is FAILED with reason TIMEOUT."""
        assert runs["walltime"].get(self.walltime_patience) is Status.FAILED
        assert runs["walltime"].info.reason is Reason.TIMEOUT
