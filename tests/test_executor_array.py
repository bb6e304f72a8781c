"""Array mode on the embedded scheduler: submissions, deaths, cancelling, what a call has."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

import cjdask
from cjdask import (
    ClusterExecutor,
    ClusterFuture,
    JobDied,
    LocalExecutor,
    PayloadError,
    Reason,
    ResourcesNotSupportedError,
    SchedulerUnavailableError,
    Status,
    SubmitError,
    executor_array,
    executor_collector,
)
from cjdask.executor_batch import Batch
from cjdask.scheduler import Scheduler, scheduler_for
from cjdask.status import JobInfo
from cjdask.testing import until
from tests.executor_functions import Counts, wait_for
from tests.executor_help import embedded, open_jobs


@pytest.fixture(autouse=True, scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Use an embedded scheduler of its own."""
    with embedded(tmp_path_factory.mktemp("array")) as path:
        yield path


@pytest.fixture
def commands() -> Callable[[str], int]:
    """Return what counts the commands of a kind that the test has caused."""
    counts = scheduler_for("local").commands
    before = counts.copy()
    return lambda verb: counts[verb] - before[verb]


def exit_code(code: int) -> None:
    """Leave the process."""
    os._exit(code)


# -- submissions -----------------------------------------------------------------------------------


def test_calls_together_are_one_submission(commands: Callable[[str], int]) -> None:
    """Calls in a loop are one array, those of a map another; a lone call is no array."""
    with LocalExecutor() as executor:
        calls = [executor.submit(pow, 2, n) for n in range(6)]
        assert [call.result() for call in calls] == [2**n for n in range(6)]
        assert {call.info.job_id for call in calls if call.info} == {calls[0].info.job_id}
        assert commands("submit") == 1
        assert list(executor.map(abs, range(-3, 0))) == [3, 2, 1]
        lone = executor.submit(int)
        assert lone.result() == 0
        assert lone.info is not None
        assert lone.info.task is None
        assert commands("submit") == 3


def test_what_the_site_allows(
    commands: Callable[[str], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """More calls than an array may have are several; without arrays each call is a job."""
    backend = scheduler_for("local").backend
    monkeypatch.setattr(backend, "max_array_size", 2)
    with LocalExecutor() as executor:
        assert list(executor.map(abs, range(6))) == list(range(6))
        assert commands("submit") == 3
        monkeypatch.setattr(backend, "max_array_size", None)
        assert list(executor.map(abs, range(2))) == [0, 1]
        assert commands("submit") == 5


def test_a_site_that_is_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a user may have so many jobs only, calls wait for room, and arrays get smaller."""
    sizes: list[int] = []
    submit = executor_array.submit_batch

    def limited(tasks: Any) -> Any:
        sizes.append(len(tasks))
        if len(tasks) > 2 or (open_jobs() and sizes.count(2) < 4):
            raise SubmitError("Job violates accounting/QOS policy (job submit limit, ...)")
        return submit(tasks)

    monkeypatch.setattr(executor_array, "submit_batch", limited)
    monkeypatch.setattr(executor_array, "ROOM_AFTER", 0.3)
    with LocalExecutor() as executor:
        assert list(executor.map(abs, range(4))) == list(range(4))
        assert sizes[:2] == [4, 2]
        assert sizes.count(2) >= 3


def test_calls_of_their_own_kind(commands: Callable[[str], int]) -> None:
    """Calls with other options are another submission; both are one executor."""
    with LocalExecutor(time="5") as executor:
        other = executor.with_options(jobname="other", env={"COLOUR": "red & blue"})
        calls = [each.submit(os.getenv, "COLOUR") for each in (executor, other, other)]
        assert [call.result() for call in calls] == [None, "red & blue", "red & blue"]
        assert commands("submit") == 2
    with pytest.raises(RuntimeError, match="after shutdown"):
        other.submit(int)


def test_bad_options_are_refused_at_once() -> None:
    """What cannot be asked for is an error of the constructor, with what is allowed."""
    for wrong, said in (
        ({"mode": "swarm"}, "mode='swarm': give one of 'array', 'pool'"),
        ({"array": 5}, "an executor makes the arrays itself"),
        ({"time": 30}, "time=30 is ambiguous"),
        ({"constraint": "x"}, "'constraint' is no option of the embedded scheduler"),
        ({"max_worker": 2}, "is 'max_worker' to be max_workers?"),
        ({"max_requeues": -1}, "max_requeues must be greater than -1"),
        ({"env": {"A B": 1}}, "'A B' is no name of an environment variable"),
        ({"prologue": [1]}, "give text, or a list of lines"),
    ):
        with pytest.raises((ResourcesNotSupportedError, ValueError), match=said):
            ClusterExecutor("local", **wrong)  # type: ignore[arg-type]


def test_a_refused_submission_is_the_error_of_its_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call has the error with the scheduler's words; the executor goes on."""
    with LocalExecutor() as executor:
        wide = executor.with_options(threads=1000)
        calls = [wide.submit(pow, 2, n) for n in range(3)]
        for call in calls:
            with pytest.raises(SubmitError, match="1000"):
                call.result()
        assert executor.submit(pow, 2, 3).result() == 8


# -- what a call has -------------------------------------------------------------------------------


def test_the_lines_of_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Directives, lines of the shell, variables and paths of modules reach the call."""
    (tmp_path / "extra_module.py").write_text("VALUE = 7\n")

    def look() -> tuple[str | None, ...]:
        import extra_module  # type: ignore[import-not-found]

        names = ("ONE", "TWO", "THREE", "CJ_COMMENT", "CJ_JOB_NAME")
        return (str(extra_module.VALUE), *map(os.getenv, names))

    executor = LocalExecutor(
        additional_setup_lines=["#CJ --comment=noted", "export ONE='1 {x}'"],
        additional_import_paths=[tmp_path],
        prologue="export TWO=${ONE%x*}\nexport THREE=$CLUSTERJOB_NAME",
        env={"ONE": "is overridden by no line before it"},
        jobname="lines",
    )
    with executor:
        assert executor.submit(look).result() == (
            *("7", "is overridden by no line before it", "is overridden by no line before it"),
            *("lines", "noted", "lines"),
        )
        other = executor.submit(os.getenv, "ONE", additional_setup_lines=["export ONE=other"])
        assert other.result() == "is overridden by no line before it"


def test_futures_as_arguments() -> None:
    """A call waits for the futures in its arguments; it fails with the first that fails."""
    elsewhere: Future[int] = Future()
    with LocalExecutor() as executor:
        first = executor.submit(pow, 2, 3)
        second = executor.submit(sum, [first, elsewhere, 1])
        third = executor.submit(dict, {"a": (second, [first])}, b=first)
        failing = executor.submit(pow, executor.submit(divmod, 1, 0), 2)
        mapped = executor.map(abs, [first, -3])
        assert isinstance(failing.exception(), ZeroDivisionError)
        assert list(mapped) == [8, 3]
        assert not second.done()
        elsewhere.set_result(100)
        assert third.result() == {"a": (109, [8]), "b": 8}


def test_calls_of_several_processes() -> None:
    """All processes make the call; the result is that of the first, or all of them."""

    def rank(fail: str = "") -> tuple[str | None, str | None]:
        found = os.getenv("CLUSTERJOB_RANK")
        if found == fail:
            raise ValueError(found)
        if fail:
            time.sleep(60)
        return found, os.getenv("CLUSTERJOB_NODE_RANK")

    with LocalExecutor(nodes=2, ppn=2, simulate_nodes=True) as executor:
        one, every = executor.submit(rank), executor.submit_ranks(rank)
        failing = executor.submit(rank, "2")
        assert one.result() == ("0", "0")
        assert every.result() == [("0", "0"), ("1", "0"), ("2", "1"), ("3", "1")]
        with pytest.raises(ValueError, match="2"):
            failing.result()
    with pytest.raises(ValueError, match="array"):
        ClusterExecutor("local", mode="pool").submit_ranks(rank)


@pytest.mark.long
def test_a_call_that_outlives_its_job(tmp_path: Path) -> None:
    """A call that saves itself before the walltime goes on in another job, with the same future."""
    with LocalExecutor(time="0:15", max_requeues=6) as executor:
        future = executor.submit(Counts(str(tmp_path)), 100)
        assert future.result() == (100, 3)


class DiesWhenContinued:
    """Saves itself, and kills its process when it is to go on."""

    def __init__(self) -> None:
        self.saved = False

    def __call__(self) -> None:
        if self.saved:
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def checkpoint(self) -> None:
        """Keep that this was called."""
        self.saved = True


@pytest.mark.long
def test_what_was_saved_for_another_job_does_not_continue_a_call_again(
    tmp_path: Path, commands: Callable[[str], int]
) -> None:
    """A call that is continued and dies without saving itself anew has died."""
    with LocalExecutor(time="0:10", max_requeues=5, folder=tmp_path) as executor:
        assert isinstance(executor.submit(DiesWhenContinued()).exception(), JobDied)
    assert commands("submit") == 2
    until(lambda: list(tmp_path.rglob("*.resume")) == [])


@pytest.mark.long
def test_a_call_goes_on_a_bounded_number_of_times(tmp_path: Path) -> None:
    """A call that has gone on as often as it may ends with its job, though it did save itself."""

    class Endless:
        def __call__(self) -> None:
            with open(tmp_path / "runs", "a") as file:
                file.write("x")
            time.sleep(60)

        def checkpoint(self) -> None:
            """Nothing has to be kept."""

    with LocalExecutor(time="0:15", max_requeues=1) as executor:
        error = executor.submit(Endless()).exception(timeout=90)
    assert isinstance(error, JobDied)
    assert error.reason is Reason.TIMEOUT
    assert (tmp_path / "runs").read_text() == "xx"


# -- ways to die -----------------------------------------------------------------------------------


@pytest.mark.long
def test_deaths(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever ends a task ends its call with an error that says how, and no other call."""
    monkeypatch.setattr(executor_collector, "GRACE_WELL", 2.0)

    def killed() -> None:
        sys.stderr.write("these are my last words\n")
        sys.stderr.flush()
        os.kill(os.getpid(), signal.SIGSEGV)

    with LocalExecutor(jobname="deaths", time="0:15") as executor:
        calls: dict[str, ClusterFuture] = {
            "exit": executor.submit(exit_code, 3),
            "exit well": executor.submit(exit_code, 0),
            "signal": executor.submit(killed),
            "walltime": executor.with_options(time="0:2").submit(time.sleep, 60),
            "cancelled": executor.submit(time.sleep, 60),
            "good": executor.submit(time.sleep, 3),
        }
        until(calls["cancelled"].running)
        info = calls["cancelled"].info
        assert info is not None
        scheduler = scheduler_for("local")
        scheduler.cancel([f"{info.job_id}_{info.task}"])
        errors = {name: call.exception(60) for name, call in calls.items()}
    assert errors.pop("good") is None
    for name, status, reason, code in (
        ("exit", Status.FAILED, Reason.NONZERO_EXIT, 3),
        ("exit well", Status.COMPLETED, Reason.NONE, 0),
        ("signal", Status.FAILED, Reason.NONZERO_EXIT, 139),
        ("walltime", Status.FAILED, Reason.TIMEOUT, None),
        ("cancelled", Status.CANCELLED, Reason.NONE, None),
    ):
        error = errors[name]
        assert isinstance(error, JobDied), name
        assert (error.status, error.reason, error.exit_code) == (status, reason, code), name
        assert f"on local is {status.name}" in str(error)
        assert error.log_file is not None
        assert error.log_file in str(error)
        assert Path(error.log_file).exists(), "the log of a call that died stays"
    signalled = errors["signal"]
    assert isinstance(signalled, JobDied)
    assert signalled.info is not None
    assert signalled.info.signal == signal.SIGSEGV
    assert "these are my last words" in signalled.log
    assert "  | these are my last words" in str(signalled)


def test_a_death_in_a_chunk() -> None:
    """Of several calls of one task those before its death have their results."""
    with LocalExecutor() as executor:
        chunk = [executor.submit(int)]
        futures = list(executor.map(abs, [-1, -2], chunksize=2))
        assert (chunk[0].result(), futures) == (0, [1, 2])

        def dies(n: int) -> int:
            if n == 2:
                os._exit(9)
            return n

        found = executor.map(dies, range(4), chunksize=4)
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(JobDied, match="exit code 9"):
            next(found)
        with pytest.raises(StopIteration):
            next(found)


def test_a_scheduler_that_is_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Results come while the scheduler does not answer; so do deaths that tasks tell of."""
    monkeypatch.setattr(executor_collector, "WORD_WITHIN", 1.0)

    def silent(self: Scheduler, ids: Any) -> Any:
        raise SchedulerUnavailableError("it says nothing")

    with LocalExecutor() as executor:
        monkeypatch.setattr(Scheduler, "query", silent)
        good, bad = executor.submit(pow, 2, 3), executor.submit(exit_code, 5)
        assert good.result(60) == 8
        with pytest.raises(JobDied, match="has not said how it ended") as caught:
            bad.result(60)
        assert caught.value.exit_code == 5
        monkeypatch.undo()


def test_a_job_that_is_held(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """That a job waits for somebody to release it is told once, with the scheduler's words."""
    held = JobInfo("7", Status.PENDING, reason=Reason.HELD, message="condor_release 7 lets it go")
    with monkeypatch.context() as patch, LocalExecutor() as executor:
        patch.setattr(Batch, "info", lambda self, index: held)
        future = executor.submit(wait_for, tmp_path / "go")
        until(lambda: any("is held" in message for message in caplog.messages))
        (tmp_path / "go").touch()
        assert future.result(60) is None
    told = [message for message in caplog.messages if "is held" in message]
    assert told == ["calls wait: job 7 on local is held: condor_release 7 lets it go"]


@pytest.mark.long
def test_a_result_before_its_submission_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that is over before the submit command has returned has its result."""
    with LocalExecutor() as executor:
        long = executor.submit(time.sleep, 3)
        until(lambda: long.info is not None)
        submit = executor_array.submit_batch

        def slow(tasks: Any) -> Any:
            batch = submit(tasks)
            time.sleep(1.5)
            return batch

        monkeypatch.setattr(executor_array, "submit_batch", slow)
        assert executor.submit(pow, 2, 3).result(60) == 8
        assert long.result(60) is None


# -- cancelling ------------------------------------------------------------------------------------


def test_cancelling(commands: Callable[[str], int]) -> None:
    """Calls that wait and calls that run are cancelled with one command, and their jobs end."""
    with LocalExecutor(max_workers=2) as executor:
        calls = [executor.submit(time.sleep, 60) for _ in range(6)]
        until(lambda: sum(call.running() for call in calls) == 2)
        assert all(call.cancel() for call in calls[:5])
        assert [call.cancelled() for call in calls] == [True] * 5 + [False]
        until(lambda: commands("cancel") == 1)
        until(calls[5].running)
        assert calls[5].cancel()
        assert "cancelled" in repr(calls[5])
        until(lambda: commands("cancel") == 2)
    assert commands("submit") == 1


def test_the_end_while_calls_are_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is on its way to the scheduler is cancelled with the rest, and does not run."""
    submit, entered = executor_array.submit_batch, threading.Event()

    def slow(tasks: Any) -> Any:
        entered.set()
        time.sleep(1)
        return submit(tasks)

    monkeypatch.setattr(executor_array, "submit_batch", slow)
    executor = LocalExecutor()
    calls = [executor.submit(time.sleep, 60) for _ in range(3)]
    assert entered.wait(60)
    executor.shutdown(cancel_futures=True)
    assert all(call.cancelled() for call in calls)
    until(lambda: open_jobs() == 0)


@pytest.mark.long
def test_a_callback_that_submits_more() -> None:
    """A callback that submits 100 more does not keep anybody waiting."""
    more: list[ClusterFuture] = []
    with LocalExecutor() as executor:

        def submit_more(_: object) -> None:
            more.extend(executor.submit(pow, n, 2) for n in range(100))

        executor.submit(int).add_done_callback(submit_more)
        until(lambda: len(more) == 100)
        assert sum(each.result(60) for each in more) == sum(n * n for n in range(100))


@pytest.mark.long
def test_many_pending_calls(commands: Callable[[str], int]) -> None:
    """10,000 calls are few submissions, and all of them are cancelled with few commands."""
    with LocalExecutor() as executor:
        calls = [executor.submit(time.sleep, 100) for _ in range(10_000)]
        until(lambda: calls[0].info is not None)
        assert all(call.cancel() for call in calls)
        assert executor.submit(pow, 2, 3).result() == 8
    assert commands("cancel") <= 20
    assert commands("submit") <= 30


# -- files -----------------------------------------------------------------------------------------


def test_what_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left of calls that ended well, but their logs where these are to stay."""
    with LocalExecutor(folder=tmp_path / "none") as executor:
        executor.submit(print, "hello").result()
        assert next((tmp_path / "none").iterdir()).stat().st_mode & 0o777 == 0o700
    until(lambda: not list((tmp_path / "none").iterdir()))
    monkeypatch.setenv("CFUT_DIR", str(tmp_path / "logs"))
    with LocalExecutor(keep_logs=True) as executor:
        list(executor.map(print, ["hello", "hullo"]))
    files = lambda: [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]  # noqa: E731
    until(lambda: len(files()) == 2)
    assert sorted(path.read_text() for path in files()) == ["hello\n", "hullo\n"]


@pytest.mark.long
def test_the_function_of_clusterfutures() -> None:
    """``cjdask.map`` yields results in order, or as they come, and ends the executor."""
    executor = LocalExecutor()
    assert list(cjdask.map(executor, abs, [-5, -7])) == [5, 7]
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)
    found = cjdask.map(LocalExecutor(), lambda n: time.sleep(n) or n, [1.5, 0], ordered=False)
    assert list(found) == [0, 1.5]


def test_a_folder_that_cannot_be_used(tmp_path: Path) -> None:
    """Where calls cannot be put they fail with an error that says what to do."""
    (tmp_path / "file").touch()
    with LocalExecutor(folder=tmp_path / "file") as executor:
        call = executor.submit(int)
        with pytest.raises(PayloadError, match="another folder"):
            call.result(60)
