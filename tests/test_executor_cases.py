"""What CPython's own tests of executors check, on the embedded scheduler, in both modes.

``python -m tests.cpython_executors`` runs CPython's tests themselves.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from cjdask import ClusterExecutor
from cjdask.testing import until
from tests.executor_functions import Thing, capture, make_thing, sleep_and_raise, wait_for
from tests.executor_help import embedded


@pytest.fixture(scope="module", params=["array", "pool"])
def mode(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return each mode in turn, on an embedded scheduler of its own."""
    with embedded(tmp_path_factory.mktemp("cases")):
        yield request.param


def new_executor(mode: str, **options: Any) -> ClusterExecutor:
    """Return an executor of two small processes at least."""
    return ClusterExecutor("local", mode=mode, time="5", maximum_jobs=2, **options)


@pytest.fixture(scope="module")
def executor(mode: str) -> Iterator[ClusterExecutor]:
    """Return an executor that the tests of a mode share."""
    with new_executor(mode) as made:
        yield made


def ended(exception: Exception | None = None, cancelled: bool = False) -> Future[int]:
    """Return a future that is over."""
    future: Future[int] = Future()
    if cancelled:
        future.cancel()
        future.set_running_or_notify_cancel()
    elif exception is not None:
        future.set_exception(exception)
    else:
        future.set_result(42)
    return future


def test_submit(executor: ClusterExecutor) -> None:
    """Arguments of any name reach the function, which can only be given by its position."""
    future = executor.submit(pow, 2, 8)
    other = executor.submit(capture, 1, self=2, fn=3)
    assert (future.result(), other.result()) == (256, ((1,), {"self": 2, "fn": 3}))
    assert future.exception() is None
    assert (future.done(), future.running(), future.cancel()) == (True, False, False)
    with pytest.raises(TypeError):
        executor.submit(fn=capture, arg=1)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        executor.submit(arg=1)  # type: ignore[call-arg]


def test_map(executor: ClusterExecutor) -> None:
    """Results come in the order of the arguments, also where a task makes several calls."""
    expected = list(map(pow, range(20), range(20)))
    for chunksize in (1, 6, 20, 50):
        found = executor.map(pow, range(20), range(20), chunksize=chunksize)
        assert list(found) == expected
    with pytest.raises(ValueError, match="chunksize=-1"):
        executor.map(pow, range(4), range(4), chunksize=-1)


@pytest.mark.parametrize("chunksize", [1, 4])
def test_map_exception(executor: ClusterExecutor, chunksize: int) -> None:
    """A call that raises does so in its place, and takes no other call with it."""
    found = executor.map(divmod, [1, 1, 1, 1], [2, 3, 0, 5], chunksize=chunksize)
    assert [next(found), next(found)] == [(0, 1), (0, 1)]
    with pytest.raises(ZeroDivisionError):
        next(found)


@pytest.mark.long
def test_map_timeout(mode: str, tmp_path: Path) -> None:
    """The iterator of map raises when the time is up, and the calls that are left are cancelled."""

    def note(n: int) -> None:
        (tmp_path / str(n)).touch()

    with new_executor(mode, max_workers=1) as executor:
        first = executor.submit(time.sleep, 2)
        until(first.running)
        found = executor.map(note, [2, 3], timeout=0)
        with pytest.raises(futures.TimeoutError):
            next(found)
        assert first.result() is None
        began = time.monotonic()
        found = executor.map(time.sleep, [60], timeout=1)
        with pytest.raises(futures.TimeoutError):
            next(found)
        assert time.monotonic() - began >= 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
def test_map_submits_at_once(mode: str, tmp_path: Path) -> None:
    """The calls of map are made also where nobody asks for their results."""

    def note(n: int) -> None:
        (tmp_path / str(n)).touch()

    with new_executor(mode) as executor:
        executor.map(note, range(10))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(map(str, range(10)))


def test_map_reads_as_far_as_the_buffer(executor: ClusterExecutor) -> None:
    """With a buffersize the input may be endless, and is read no further than asked for."""
    numbers = iter(range(100))
    found = executor.map(str, numbers, buffersize=4)
    assert next(numbers) == 4
    assert [next(found) for _ in range(5)] == ["0", "1", "2", "3", "5"]
    for wrong, error in ((0, ValueError), ("4", TypeError)):
        with pytest.raises(error, match="buffersize"):
            executor.map(str, numbers, buffersize=wrong)  # type: ignore[arg-type]


def test_traceback(executor: ClusterExecutor) -> None:
    """An exception has its type and arguments, and the traceback of the node as its cause."""
    error = executor.submit(sleep_and_raise, 0).exception()
    assert type(error) is RuntimeError
    assert error.args == ("an exception",)
    assert 'raise RuntimeError("an exception")  # with a comment' in str(error.__cause__)


@pytest.mark.long
def test_nothing_is_held(executor: ClusterExecutor) -> None:
    """Neither a call that was submitted nor a result that was taken is kept alive."""
    thing = Thing()
    gone = threading.Event()
    _watch = weakref.ref(thing, lambda _: gone.set())
    executor.submit(thing.method)
    del thing
    assert gone.wait(60)
    for each in executor.map(make_thing, range(3)):
        reference = weakref.ref(each)
        del each
        gc.collect()
        assert reference() is None


def test_max_workers(mode: str) -> None:
    """There is no executor of no workers."""
    for number in (0, -1):
        with pytest.raises(ValueError, match="max_workers must be greater than 0"):
            new_executor(mode, max_workers=number)


# -- wait and as_completed -------------------------------------------------------------------------


def test_wait(executor: ClusterExecutor) -> None:
    """``wait`` tells what is over of calls and of futures from elsewhere."""
    over = {ended(), ended(RuntimeError()), ended(cancelled=True)}
    first, slow = executor.submit(pow, 2, 5), executor.submit(time.sleep, 1)
    done, left = futures.wait([*over, slow], return_when=futures.FIRST_COMPLETED)
    assert (done, left) == (over, {slow})
    done, left = futures.wait([*over, slow], timeout=0.05)
    assert (done, left) == (over, {slow})
    done, left = futures.wait([first, slow], return_when=futures.FIRST_COMPLETED)
    assert first in done
    done, left = futures.wait([*over, first, slow, slow])
    assert (done, left) == ({*over, first, slow}, set())


def test_wait_for_an_exception(executor: ClusterExecutor) -> None:
    """``wait`` ends with the first exception where that is asked for."""
    good = executor.submit(pow, 2, 5)
    bad, slow = executor.submit(sleep_and_raise, 0.5), executor.submit(time.sleep, 30)
    done, left = futures.wait([good, bad, slow], return_when=futures.FIRST_EXCEPTION)
    assert bad in done
    assert left == {slow}
    assert slow.cancel()
    assert futures.wait([slow], timeout=60).done == {slow}


def test_as_completed(executor: ClusterExecutor) -> None:
    """``as_completed`` yields each future once, and ends when the time is up."""
    over = {ended(), ended(RuntimeError()), ended(cancelled=True)}
    calls = [executor.submit(pow, 7, 6), executor.submit(divmod, 1, 0)]
    assert set(futures.as_completed([*over, *calls, *calls])) == {*over, *calls}
    slow = executor.submit(time.sleep, 2)
    for timeout in (0, 0.1):
        found: set[Any] = set()
        with pytest.raises(futures.TimeoutError):
            found.update(futures.as_completed({*over, slow}, timeout))
        completed = futures.as_completed({*over, slow}, timeout)
        assert {next(completed) for _ in over} == over


def test_callbacks(executor: ClusterExecutor) -> None:
    """Callbacks get the future, one that raises keeps none of the others from being called."""
    seen: list[Any] = []
    future = executor.submit(pow, 2, 5)
    future.add_done_callback(lambda each: seen.append(each.result()))
    future.add_done_callback(lambda each: seen.append(executor.submit(pow, each.result(), 2)))
    until(lambda: len(seen) == 2)
    assert (seen[0], seen[1].result()) == (32, 1024)


def test_asyncio(executor: ClusterExecutor) -> None:
    """A future can be awaited, and asyncio's cancelling cancels the call."""

    async def main() -> tuple[int, Future[Any]]:
        result = await asyncio.wrap_future(executor.submit(pow, 2, 5))
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(executor, pow, 2, 6) == 64
        future = executor.submit(time.sleep, 30)
        waiting = asyncio.wrap_future(future)
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.sleep(0)
        return result, future

    result, future = asyncio.run(main())
    assert result == 32
    assert future.cancelled()


# -- the end ---------------------------------------------------------------------------------------


@pytest.mark.long
def test_shutdown(mode: str) -> None:
    """After shutdown all calls are over, and no more are taken."""
    with new_executor(mode) as executor:
        calls = [executor.submit(time.sleep, 0.05) for _ in range(10)]
        found = executor.map(abs, range(-3, 3))
        cancelled = executor.submit(int)
        assert cancelled.cancel()
    assert all(call.done() for call in calls)
    assert list(found) == [3, 2, 1, 0, 1, 2]
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.submit(pow, 2, 5)
    with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
        executor.map(pow, [2], [5])


@pytest.mark.long
def test_shutdown_without_waiting(mode: str) -> None:
    """It returns at once; calls go on, also if nobody refers to the executor any more."""
    executor = new_executor(mode)
    found = executor.map(abs, range(-3, 3))
    began = time.monotonic()
    executor.shutdown(wait=False)
    assert time.monotonic() - began < 5
    other = new_executor(mode)
    also = other.submit(pow, 2, 5)
    del executor, other
    assert list(found) == [3, 2, 1, 0, 1, 2]
    assert also.result() == 32


@pytest.mark.long
def test_shutdown_from_a_callback(mode: str) -> None:
    """A callback may shut its executor down, also one of a call that is cancelled."""
    executor = new_executor(mode)
    first, second = executor.submit(int), executor.submit(time.sleep, 60)
    for each in (first, second):
        each.add_done_callback(lambda _: executor.shutdown())
    assert first.result() == 0
    assert second.cancel()
    executor.shutdown()


@pytest.mark.long
def test_shutdown_that_cancels(mode: str, tmp_path: Path) -> None:
    """Calls that do not run are cancelled, those that run end well."""
    executor = new_executor(mode, max_workers=1)
    first = executor.submit(wait_for, tmp_path / "go")
    others = [executor.submit(time.sleep, 60) for _ in range(5)]
    until(first.running)
    executor.shutdown(wait=False, cancel_futures=True)
    until(lambda: all(other.cancelled() for other in others))
    (tmp_path / "go").touch()
    executor.shutdown()
    assert first.result() is None


SCRIPT = """
import atexit, sys, time
from cjdask import ClusterExecutor

def late():
    try:
        executor.submit(pow, 2, 5)
    except RuntimeError as error:
        print(error)

atexit.register(late)
executor = ClusterExecutor("local", mode=sys.argv[1], time="5", max_workers=1)
future = executor.submit(lambda: time.sleep(0.5) or "apple")
future.add_done_callback(lambda each: print(each.result()))
if sys.argv[2] == "cancel":
    while not future.running():
        time.sleep(0.02)
    executor.submit(time.sleep, 100)
    executor.shutdown(wait=False, cancel_futures=True)
else:
    future = executor.submit(time.sleep, 100)
    future.cancel()
if sys.argv[2] == "no wait":
    executor.shutdown(wait=False)
"""


@pytest.mark.long
@pytest.mark.parametrize("how", ["nothing", "no wait", "cancel"])
def test_the_end_of_the_interpreter(mode: str, how: str, tmp_path: Path) -> None:
    """The interpreter ends when the calls have, and takes none while it ends."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    argv = [sys.executable, "-W", "error", str(script), mode, how]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=90)
    refused = "interpreter shutdown" if how == "nothing" else "shutdown"
    assert done.stdout == f"apple\ncannot schedule new futures after {refused}\n"
    assert done.stderr == ""
