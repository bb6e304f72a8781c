"""Run CPython's own test cases for executors, both modes, on the embedded scheduler.

    python -m tests.cpython_executors [array|pool|futures ...]

It needs an interpreter of 3.13 or later that has its tests installed. Some cases cannot be taken
as they are: `NOT_TAKEN` says why, and which test of ours checks the same instead.
"""

from __future__ import annotations

import sys
import tempfile
import time
import unittest
import weakref
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from cjdask import ClusterExecutor
from cjdask.executor_calls import ClusterFuture, Ledger
from tests.executor_help import embedded

BY_NAME = (
    "starts an interpreter with a class of the standard library, whose calls print to the same "
    "terminal: test_the_end_of_the_interpreter"
)
SHARED = "its calls share variables or locks with the program, which threads only can"
ATTRIBUTES = "looks at the threads, processes or queues of an executor of the standard library"
CHILDREN = "of an argument that only ProcessPoolExecutor has"
STATES = "compares private states of a future, or sets those that one of a call never has"
NAMES = "compares how a future is shown"
ERRORS = "wants errors that end all calls: test_pickles_that_end_a_process, test_deaths"
NOT_TAKEN = {
    "test_cancel_futures_wait_false": BY_NAME,
    "test_hang_gh83386": BY_NAME,
    "test_interpreter_shutdown": BY_NAME,
    "test_submit_after_interpreter_shutdown": BY_NAME,
    "test_python_finalization_error": BY_NAME,
    "test_map_submits_without_iteration": f"{SHARED}: test_map_submits_at_once",
    "test_executor_map_current_future_cancel": f"{SHARED}: test_map_timeout",
    "test_pending_calls_race": f"{SHARED}: test_wait",
    "test_hang_global_shutdown_lock": "of a lock of the standard library that a fork copies",
    "test_context_manager_shutdown": f"{ATTRIBUTES}: test_shutdown",
    "test_del_shutdown": f"{ATTRIBUTES}: test_shutdown_without_waiting",
    "test_shutdown_no_wait": f"{ATTRIBUTES}: test_shutdown_without_waiting",
    "test_default_workers": ATTRIBUTES,
    "test_idle_process_reuse_multiple": ATTRIBUTES,
    "test_idle_process_reuse_one": ATTRIBUTES,
    "test_idle_thread_reuse": ATTRIBUTES,
    "test_killed_child": f"{ATTRIBUTES}: test_deaths_of_processes",
    "test_processes_terminate": f"{ATTRIBUTES}: test_nothing_is_left",
    "test_threads_terminate": ATTRIBUTES,
    "test_thread_names_assigned": ATTRIBUTES,
    "test_thread_names_default": ATTRIBUTES,
    "test_saturation": ATTRIBUTES,
    "test_ressources_gced_in_workers": f"{ATTRIBUTES}: test_nothing_is_held",
    "test_max_tasks_per_child": CHILDREN,
    "test_max_tasks_per_child_defaults_to_spawn_context": CHILDREN,
    "test_max_tasks_early_shutdown": CHILDREN,
    "test_traceback": "asks for the name of the cause's class: ours is test_traceback, too",
    "test_cancel": f"{STATES}: test_a_future_ends_once",
    "test_multiple_set_exception": f"{NAMES}: test_a_future_ends_once",
    "test_multiple_set_result": f"{NAMES}: test_a_future_ends_once",
    "test_repr": NAMES,
    "test_running": f"{STATES}: test_submit",
    "test_crash_at_task_unpickle": ERRORS,
    "test_crash_big_data": ERRORS,
    "test_crash_during_func_exec_on_worker": ERRORS,
    "test_crash_during_result_pickle_on_worker": ERRORS,
    "test_error_at_task_pickle": ERRORS,
    "test_error_at_task_unpickle": ERRORS,
    "test_error_during_result_pickle_on_worker": ERRORS,
    "test_error_during_result_unpickle_in_result_handler": ERRORS,
    "test_exit_at_task_unpickle": ERRORS,
    "test_exit_during_func_exec_on_worker": ERRORS,
    "test_exit_during_result_pickle_on_worker": ERRORS,
    "test_exit_during_result_unpickle_in_result_handler": ERRORS,
    "test_shutdown_deadlock": ERRORS,
    "test_shutdown_deadlock_pickle": ERRORS,
    "test_gh105829_should_not_deadlock_if_wakeup_pipe_full": ATTRIBUTES,
}


def executor_of(mode: str) -> Any:
    """Return a class of executors for the mixins of CPython's tests."""

    class Tested(ClusterExecutor):
        def __init__(self, max_workers: int | None = None, mp_context: object = None) -> None:
            super().__init__("local", mode=mode, max_workers=max_workers, time="5")
            self.calls: weakref.WeakSet[ClusterFuture] = weakref.WeakSet()
            if mode == "pool":
                self.submit(int).result()  # else the jobs would take longer than some calls

        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> ClusterFuture:
            future = super().submit(fn, *args, **kwargs)
            self.calls.add(future)
            return future

        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            while cancel_futures and not any(call.done() for call in self.calls):
                time.sleep(0.02)  # a batch job does not run at once, so that all would be cancelled
            super().shutdown(wait, cancel_futures=cancel_futures)

    return Tested


def cases(mode: str) -> unittest.TestSuite:
    """Return CPython's cases for an executor of one mode."""
    from test.test_concurrent_futures import (  # type: ignore[import-not-found]
        executor,
        test_as_completed,
        test_deadlock,
        test_process_pool,
        test_shutdown,
        test_thread_pool,
        test_wait,
        util,
    )

    suite = unittest.TestSuite()
    own = {"executor_type": executor_of(mode), "setUp": util.ExecutorMixin.setUp}
    own["get_context"] = lambda test: None
    for mixin in (
        executor.ExecutorTest,
        test_thread_pool.ThreadPoolExecutorTest,
        test_process_pool.ProcessPoolExecutorTest,
        test_shutdown.ExecutorShutdownTest,
        test_shutdown.ThreadPoolShutdownTest,
        test_shutdown.ProcessPoolShutdownTest,
        test_wait.WaitTests,
        test_wait.ThreadPoolWaitTests,
        test_as_completed.AsCompletedTests,
        test_deadlock.ExecutorDeadlockTest,
    ):
        taken = {name for name in vars(mixin) if name.startswith("test_")} - set(NOT_TAKEN)
        whole = issubclass(mixin, unittest.TestCase)
        bases = (mixin,) if whole else (mixin, util.ExecutorMixin, unittest.TestCase)
        kind: Any = type(f"{mode}_{mixin.__name__}", bases, own)
        suite.addTests(kind(name) for name in sorted(taken))
    return suite


def cases_of_futures() -> unittest.TestSuite:
    """Return CPython's cases for a future, with those of a call."""
    from test.test_concurrent_futures import test_future, util

    def new_future() -> Future[Any]:
        return ClusterFuture(Ledger(), "call")

    util.Future = test_future.Future = new_future
    for name, each in list(vars(test_future).items()):
        if name.endswith("_FUTURE"):
            made = util.create_future(each._state, each._exception, each._result)
            setattr(test_future, name, made)
    names = unittest.defaultTestLoader.getTestCaseNames(test_future.FutureTests)
    return unittest.TestSuite(test_future.FutureTests(n) for n in names if n not in NOT_TAKEN)


def main(parts: list[str]) -> bool:
    """Run parts of the cases; tell whether all of them hold."""
    runner = unittest.TextTestRunner(verbosity=2)
    good = True
    with tempfile.TemporaryDirectory() as name, embedded(Path(name)):
        for part in parts:
            suite = cases_of_futures() if part == "futures" else cases(part)
            good = runner.run(suite).wasSuccessful() and good
    return good


if __name__ == "__main__":
    sys.exit(not main(sys.argv[1:] or ["array", "pool", "futures"]))
