"""What the monitor believes, and what it costs the scheduler."""

from __future__ import annotations

import gc
import logging
import threading
import time

import pytest

from cjdask import monitor as monitor_module
from cjdask.monitor import LOST_AFTER, SETTLE, Monitor
from cjdask.status import JobInfo, Reason, Status
from tests.fakes import FakeClock, FakeProtocol, fake_scheduler


@pytest.fixture
def clock() -> FakeClock:
    """Return a clock that stands still."""
    return FakeClock()


@pytest.fixture
def parts(clock: FakeClock) -> tuple[Monitor, FakeProtocol]:
    """Return a monitor of a fake scheduler, and that scheduler's jobs."""
    scheduler, protocol = fake_scheduler()
    return Monitor(scheduler, clock), protocol


def test_many_jobs_cost_one_query_a_cycle(parts: tuple[Monitor, FakeProtocol]) -> None:
    """200 running jobs are asked for with one command, whoever looks at them."""
    monitor, protocol = parts
    jobs = [monitor.track(str(i)) for i in range(200)]
    for job in jobs:
        protocol.set(job.job_id, Status.RUNNING)
    for _ in range(3):
        for _job in jobs:
            monitor.refresh(max_age=1.0)
    assert monitor.scheduler.commands == {"query": 1}
    assert {job.status for job in jobs} == {Status.RUNNING}


def test_an_end_is_found_in_the_history(parts: tuple[Monitor, FakeProtocol]) -> None:
    """A job that left the queue gets the exit code that the history has."""
    monitor, protocol = parts
    job = monitor.track("7")
    protocol.set("7", Status.RUNNING)
    protocol.end("7", Status.FAILED, exit_code=3)
    monitor.refresh(max_age=0)
    assert job.status is Status.FAILED
    assert job.infos[None].exit_code == 3


def test_a_job_may_leave_the_queue_before_its_end_is_known(
    parts: tuple[Monitor, FakeProtocol],
) -> None:
    """A job that was listed and is no more has left the queue, while its status stays."""
    monitor, protocol = parts
    job = monitor.track("7")
    assert not job.left_queue()
    protocol.set("7", Status.RUNNING)
    monitor.refresh(max_age=0)
    assert not job.left_queue()
    protocol.queue.clear()
    monitor.refresh(max_age=0)
    assert job.left_queue()
    assert job.status is Status.RUNNING
    protocol.set("7", Status.RUNNING)
    monitor.refresh(max_age=0)
    assert not job.left_queue()


def test_no_answer_changes_no_status(
    parts: tuple[Monitor, FakeProtocol], clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    """A scheduler that does not answer for a day ends no job, and is complained of once."""
    monitor, protocol = parts
    job = monitor.track("7")
    protocol.set("7", Status.RUNNING)
    monitor.refresh(max_age=0)
    protocol.down = True
    with caplog.at_level(logging.WARNING):
        for _ in range(24):
            clock.now += 3600
            monitor.refresh(max_age=0)
    assert job.status is Status.RUNNING
    assert "no contact" in str(monitor.last_error)
    assert len(caplog.records) == 1
    protocol.down = False
    protocol.end("7", Status.COMPLETED, exit_code=0)
    clock.now += 1
    monitor.refresh(max_age=0)
    assert job.status is Status.COMPLETED
    assert monitor.last_error is None


def test_an_unlisted_job_is_lost_after_the_grace_only(
    parts: tuple[Monitor, FakeProtocol], clock: FakeClock
) -> None:
    """Not listed is not an end; after the grace period it is FAILED with reason LOST."""
    monitor, protocol = parts
    job = monitor.track("7")
    protocol.set("7", Status.RUNNING)
    monitor.refresh(max_age=0)
    del protocol.queue["7"]
    monitor.refresh(max_age=0)
    clock.now += LOST_AFTER - 1
    monitor.refresh(max_age=0)
    assert job.status is Status.RUNNING
    clock.now += 2
    monitor.refresh(max_age=0)
    assert job.status is Status.FAILED
    assert job.infos[None].reason is Reason.LOST


def test_a_cancelled_job_without_a_record_is_cancelled(
    parts: tuple[Monitor, FakeProtocol], clock: FakeClock
) -> None:
    """A job that no list has after our cancel is CANCELLED, not lost; another one is."""
    monitor, protocol = parts
    job, other = monitor.track("7"), monitor.track("8", (0, 1))
    for ident in ("7", "8"):
        protocol.queue[ident] = [JobInfo(ident, Status.PENDING)]
    monitor.cancel([job])
    monitor.cancel([other], {other: [1]})
    protocol.queue.clear()
    protocol.history.clear()
    monitor.refresh(max_age=0)
    clock.now += SETTLE - 1
    monitor.refresh(max_age=0)
    assert job.status is Status.PENDING
    clock.now += 1
    monitor.refresh(max_age=0)
    assert job.status is Status.CANCELLED
    assert other.infos[1].status is Status.CANCELLED
    assert other.infos[0].status is Status.PENDING


def test_jobs_and_tasks_are_cancelled_with_one_command(
    parts: tuple[Monitor, FakeProtocol],
) -> None:
    """A job, all open tasks of an array and some tasks of another one: one command names them."""
    monitor, protocol = parts
    job, whole, some = monitor.track("7"), monitor.track("8", (0, 1)), monitor.track("9", (0, 1))
    for ident in ("7", "8", "9"):
        protocol.queue[ident] = [JobInfo(ident, Status.PENDING)]
    monitor.cancel([job, whole, some], {whole: [0, 1], some: [1]})
    assert protocol.calls == [("fake-cancel", "7", "8", "9_1")]


def test_what_runs_is_cancelled_last(parts: tuple[Monitor, FakeProtocol]) -> None:
    """Nothing starts in the place of a cancelled job or task that is to be cancelled itself."""
    monitor, protocol = parts
    runs, waits, array = monitor.track("1"), monitor.track("2"), monitor.track("3", (0, 1, 2, 3))
    protocol.set("1", Status.RUNNING)
    protocol.queue["2"] = [JobInfo("2", Status.PENDING)]
    states = [Status.RUNNING, Status.PENDING, Status.PENDING, Status.PENDING]
    protocol.queue["3"] = [JobInfo("3", state, task) for task, state in enumerate(states)]
    monitor.refresh(max_age=0)
    monitor.cancel([runs, waits, array], {array: [0, 1, 2]})
    assert protocol.calls[-1] == ("fake-cancel", "2", "3_2", "3_1", "1", "3_0")


def test_a_job_that_is_listed_again_is_not_lost(
    parts: tuple[Monitor, FakeProtocol], clock: FakeClock
) -> None:
    """The grace period starts anew when the scheduler has listed the job in between."""
    monitor, protocol = parts
    job = monitor.track("7")
    for _ in range(5):
        monitor.refresh(max_age=0)
        clock.now += LOST_AFTER - 1
        protocol.set("7", Status.RUNNING)
        monitor.refresh(max_age=0)
        del protocol.queue["7"]
    assert job.status is Status.RUNNING


def test_an_end_without_exit_code_settles(
    parts: tuple[Monitor, FakeProtocol], clock: FakeClock
) -> None:
    """The queue's word that a job failed is believed when the history stays silent."""
    monitor, protocol = parts
    job = monitor.track("7")
    protocol.set("7", Status.FAILED)
    monitor.refresh(max_age=0)
    assert not job.status.ended
    clock.now += SETTLE
    monitor.refresh(max_age=0)
    assert job.status is Status.FAILED
    assert job.infos[None].exit_code is None


def test_an_array_ends_with_its_last_task(parts: tuple[Monitor, FakeProtocol]) -> None:
    """A final record of the whole array is not believed while tasks run."""
    monitor, protocol = parts
    job = monitor.track("9", tasks=(0, 1))
    protocol.history["9"] = [
        JobInfo("9", Status.COMPLETED, exit_code=0),
        JobInfo("9", Status.FAILED, task=0, exit_code=2),
    ]
    protocol.queue["9"] = [JobInfo("9", Status.RUNNING, task=1)]
    monitor.refresh(max_age=0)
    assert job.status is Status.RUNNING
    assert job.infos[0].status is Status.FAILED
    protocol.queue["9"] = [JobInfo("9", Status.COMPLETED, task=1, exit_code=0)]
    monitor.refresh(max_age=0)
    assert job.status is Status.FAILED


def test_a_record_of_the_whole_array_speaks_for_pending_tasks(
    parts: tuple[Monitor, FakeProtocol],
) -> None:
    """A pending array that is listed as one line has only pending tasks."""
    monitor, protocol = parts
    job = monitor.track("9", tasks=(0, 1, 2))
    protocol.queue["9"] = [
        JobInfo("9", Status.PENDING, reason=Reason.HELD),
        JobInfo("9", Status.RUNNING, task=1),
    ]
    monitor.refresh(max_age=0)
    assert [job.infos[i].status for i in range(3)] == [
        Status.PENDING,
        Status.RUNNING,
        Status.PENDING,
    ]
    assert job.infos[2].reason is Reason.HELD


def test_cancel_of_many_is_one_command(parts: tuple[Monitor, FakeProtocol]) -> None:
    """Many jobs are cancelled with one command, and those that have ended are left out."""
    monitor, protocol = parts
    jobs = [monitor.track(str(i)) for i in range(50)]
    for job in jobs:
        protocol.set(job.job_id, Status.RUNNING)
    protocol.end("0", Status.COMPLETED, exit_code=0)
    monitor.refresh(max_age=0)
    monitor.cancel(jobs)
    monitor.refresh(max_age=0)
    assert jobs[0].status is Status.COMPLETED
    assert {job.status for job in jobs[1:]} == {Status.CANCELLED}


def test_waiting_is_exact_and_leaves_no_thread() -> None:
    """A timeout is kept to, the end wakes all waiters, and the thread ends with the last."""
    scheduler, protocol = fake_scheduler()
    monitor = Monitor(scheduler)
    job = monitor.track("7")
    protocol.set("7", Status.RUNNING)
    began = time.monotonic()
    assert not monitor.wait(job, timeout=0.3)
    assert 0.3 <= time.monotonic() - began < 3
    seen = []
    waiters = [
        threading.Thread(target=lambda: seen.append(monitor.wait(job, timeout=20)))
        for _ in range(5)
    ]
    for waiter in waiters:
        waiter.start()
    protocol.end("7", Status.COMPLETED, exit_code=0)
    for waiter in waiters:
        waiter.join()
    assert seen == [True] * 5
    deadline = time.monotonic() + 5
    while any(t.name == "cjdask-monitor-fake" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_callback_may_use_the_monitor() -> None:
    """Callbacks run under no lock: one that tracks and waits does not deadlock."""
    scheduler, protocol = fake_scheduler()
    monitor = Monitor(scheduler)
    first, second = monitor.track("1"), monitor.track("2")
    protocol.set("1", Status.RUNNING)
    protocol.set("2", Status.RUNNING)
    done = threading.Event()

    def callback(job: monitor_module.TrackedJob) -> None:
        protocol.end("2", Status.COMPLETED, exit_code=0)
        monitor.refresh(max_age=0)
        monitor.when_ended(second, lambda _: done.set())

    monitor.when_ended(first, callback)
    protocol.end("1", Status.COMPLETED, exit_code=0)
    assert done.wait(60)


def test_a_callback_that_fails_harms_nobody(caplog: pytest.LogCaptureFixture) -> None:
    """An error in one callback is logged, the others are still called."""
    scheduler, protocol = fake_scheduler()
    monitor = Monitor(scheduler)
    job = monitor.track("1")
    done = threading.Event()
    monitor.when_ended(job, lambda _: 1 / 0)  # type: ignore[arg-type, return-value]
    monitor.when_ended(job, lambda _: done.set())
    protocol.set("1", Status.RUNNING)
    protocol.end("1", Status.COMPLETED, exit_code=0)
    assert done.wait(60)
    assert "ZeroDivisionError" in caplog.text


def test_the_pace_slows_down_and_is_bounded(
    parts: tuple[Monitor, FakeProtocol], clock: FakeClock
) -> None:
    """Questions become rarer while nothing changes, up to the job's own limit."""
    monitor, protocol = parts
    monitor.min_interval = 2.0
    job = monitor.track("7", max_interval=30.0)
    protocol.set("7", Status.RUNNING)
    monitor._waited[job, None] = []
    monitor.refresh(max_age=0)
    pauses = []
    for _ in range(10):
        monitor.refresh(max_age=0)
        pauses.append(monitor._pause())
    assert pauses == sorted(pauses)
    assert 2.0 <= pauses[0] < pauses[-1] == 30.0


def test_jobs_that_nobody_holds_are_not_asked_for(parts: tuple[Monitor, FakeProtocol]) -> None:
    """A run that the program has dropped costs no more commands."""
    monitor, _ = parts
    monitor.track("7")
    gc.collect()
    monitor.refresh(max_age=0)
    assert monitor.scheduler.commands == {}


def test_an_id_that_is_used_again_is_another_job(parts: tuple[Monitor, FakeProtocol]) -> None:
    """A job that is followed after the end of one with the same id starts afresh."""
    monitor, protocol = parts
    old = monitor.track("7")
    protocol.set("7", Status.RUNNING)
    protocol.end("7", Status.FAILED, exit_code=1)
    monitor.refresh(max_age=0)
    assert monitor.track("7").status is Status.PENDING
    assert old.status is Status.FAILED
