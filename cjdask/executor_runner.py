"""The side of the nodes of an executor: run calls, and leave what came of them.

Every task of an array starts it, so it imports only what it needs, and nothing of this package:
cloudpickle only where something is pickled by value. What it reads and writes is in
`cjdask.executor_folder`.
"""

from __future__ import annotations

import os
import sys
from _pickle import dumps, load, loads
from functools import partial

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import IO, Any

__all__ = ["main", "perform", "serve"]

NEWEST = -1
"""The newest protocol of pickles; both sides have the same Python."""
TOO_MANY_LINES = 400
"""Lines of a traceback above which its middle is left out."""


# ---------------------------------------------------------------- one call


def perform(read: Callable[[], tuple[Any, Any, Any]], wanted: bool = True) -> tuple[bool, bytes]:
    """Make the call that ``read`` returns; tell whether it ended well, and its outcome.

    The outcome is two pickles: plain facts, and the result (None unless it is ``wanted``) or
    the exception.
    """
    try:
        fn, args, kwargs = read()
        value = fn(*args, **kwargs)
    except BaseException as error:
        return False, raised(error)
    return succeeded(value if wanted else None)


def succeeded(value: Any) -> tuple[bool, bytes]:
    """Return the outcome of a call that returned."""
    try:
        return True, _facts("ok") + pickled(value)
    except BaseException as error:  # SystemExit, too, is what pickling came to
        what = f"the result, {type(value).__module__}.{type(value).__qualname__}"
        return False, refused(f"{what}, cannot be pickled: {type(error).__name__}: {error}")


def refused(text: str) -> bytes:
    """Return the outcome of a call that could not be made or whose result cannot travel."""
    return _facts("refused", text=text)


def raised(error: BaseException) -> bytes:
    """Return the outcome of a call that raised.

    An exception that is no `Exception`, such as SystemExit, must not end whoever gets it, and
    one that cannot be read again is of no use: of these only the text is in the outcome.
    """
    import traceback

    trace = error.__traceback__
    here = __file__
    while trace is not None and trace.tb_frame.f_code.co_filename == here:
        trace = trace.tb_next
    lines = "".join(traceback.format_exception(type(error), error, trace)).splitlines()
    if len(lines) > TOO_MANY_LINES:
        lines[TOO_MANY_LINES // 2 : -TOO_MANY_LINES // 2] = ["  ..."]
    body = b""
    if isinstance(error, Exception):
        try:
            body = pickled(error)
            loads(body)
        except BaseException:
            body = b""
    return _facts("raised", text="\n".join(lines), whole=bool(body)) + body


def _facts(kind: str, **facts: Any) -> bytes:
    where = {"kind": kind, "host": os.uname().nodename, "pid": os.getpid()}
    return dumps({**where, **facts}, 4)


def pickled(value: Any) -> bytes:
    """Pickle a value, by reference where that is possible, else by value."""
    try:
        return dumps(value, NEWEST)
    except Exception:
        import cloudpickle

        return bytes(cloudpickle.dumps(value, NEWEST))


# ---------------------------------------------------------------- what surrounds it


def prepare(setup: dict[str, Any]) -> str | None:
    """Make this process like the one that submitted; tell what makes that impossible."""
    problem = _unlike(setup)
    if problem:
        return problem
    sys.path[:0] = [path for path in setup["path"] if path not in sys.path]
    try:
        os.chdir(setup["cwd"])
    except OSError as error:
        print(f"cjdask: staying in {os.getcwd()}: {error}", file=sys.stderr)
    return None


def _unlike(setup: dict[str, Any]) -> str | None:
    here = f"{sys.executable} on {os.uname().nodename}"
    asked = ".".join(map(str, setup["python"]))
    own = ".".join(map(str, sys.version_info[:2]))
    if own != asked:
        return (
            f"the call was made by Python {asked}, but {here} is Python {own}; give the executor "
            f"python=..., the path there of a Python {asked}"
        )
    if setup["cloudpickle"]:
        try:
            import cloudpickle
        except ImportError as error:
            return f"{here} has no cloudpickle, which the call needs ({error}); install it there"
        if cloudpickle.__version__ != setup["cloudpickle"]:
            return (
                f"the call was pickled by cloudpickle {setup['cloudpickle']}, but {here} has "
                f"{cloudpickle.__version__}; install the same version in both places"
            )
    return None


def write_file(setup: dict[str, Any], name: str, data: bytes) -> None:
    """Write a file among the results in one step."""
    temporary = os.path.join(setup["results"], f".{name}.{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            if setup["durable"]:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, os.path.join(setup["results"], name))
    except BaseException:
        try:
            os.unlink(temporary)
        except OSError:
            pass  # it was not made, or whatever else failed first
        raise


class Task:
    """One task of a batch of calls: its calls, and where their outcomes go."""

    def __init__(self, file: IO[bytes], index: int) -> None:
        self.file = file
        self.setup: dict[str, Any] = load(file)
        self.file.seek(self.file.tell() + 8 * index)
        self.file.seek(int.from_bytes(self.file.read(8), "little"))
        self.fn_at, self.calls = load(self.file)
        self.rank = int(os.environ["CLUSTERJOB_RANK"]) if self.setup["ranks"] > 1 else 0

    def run(self) -> None:
        """Make all calls and leave their outcomes, each when it is there."""
        problem = prepare(self.setup)
        wanted = self.rank == 0 or self.setup["every_rank"]
        for name, args_at in self.calls:
            if problem:
                ok, outcome = False, refused(problem)
            elif self.setup["requeues"]:
                ok, outcome = self._interruptible(name, args_at)
            else:
                ok, outcome = perform(partial(self._read, args_at), wanted)
            self._leave(name, ok, outcome)

    def _read(self, args_at: int) -> tuple[Any, Any, Any]:
        self.file.seek(self.fn_at)
        fn = load(self.file)
        self.file.seek(args_at)
        return (fn, *load(self.file))

    def _leave(self, name: str, ok: bool, outcome: bytes) -> None:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError, AttributeError):
                pass  # closed or full: the outcome matters more
        own = f"{name}.{self.rank}" if self.rank else name
        ending = "ok" if ok else f"{self.setup['batch']}.error"
        write_file(self.setup, f"{own}.{ending}", outcome)

    # -- calls that may be interrupted and go on in another job ----------------------------------

    def _interruptible(self, name: str, args_at: int) -> tuple[bool, bytes]:
        from threading import Timer  # only those that ask for it pay for it

        tries = 0

        def read() -> tuple[Any, Any, Any]:
            nonlocal tries
            call = self._read(args_at)
            for kept in self._saved(name):
                with open(kept, "rb") as saved:
                    found = load(saved)
                    if found > tries:
                        tries, call = found, load(saved)
            arm(*call)
            return call

        def arm(fn: Any, args: Any, kwargs: Any) -> None:
            hook = getattr(fn, "checkpoint", None)
            if not callable(hook) or tries >= self.setup["requeues"]:
                return
            disarm.append(_on_signals(lambda: self._save(name, tries, hook, fn, args, kwargs)))
            if self.setup["seconds"]:
                timer = Timer(_time_left(self.setup["seconds"]), _wake)
                timer.daemon = True
                timer.start()
                disarm.append(timer.cancel)

        disarm: list[Callable[[], None]] = []
        try:
            return perform(read)
        finally:
            for each in disarm:
                each()
            for kept in self._saved(name):
                os.unlink(kept)

    def _saved(self, name: str) -> list[str]:
        """Return the paths of what a call has saved: one, or more where a job was killed since."""
        folder = self.setup["results"]
        found = (each.split(".") for each in os.listdir(folder))
        mine = [each for each in found if each[0] == name and each[-1] == "resume"]
        return [os.path.join(folder, ".".join(each)) for each in mine]

    def _save(self, name: str, tries: int, hook: Any, fn: Any, args: Any, kwargs: Any) -> None:
        """Let a call save itself, note that it is to go on, and end this process."""
        import cloudpickle

        print(f"cjdask: the job is about to end, {name} saves itself", file=sys.stderr)
        try:
            hook(*args, **kwargs)
            call = cloudpickle.dumps((fn, args, kwargs), NEWEST)
            before = self._saved(name)
            own = f"{name}.{self.setup['batch']}.resume"
            write_file(self.setup, own, dumps(tries + 1) + call)
            for kept in before:
                if os.path.basename(kept) != own:
                    os.unlink(kept)
        except BaseException as error:
            self._leave(name, False, raised(error))
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(0)


def _on_signals(save: Callable[[], None]) -> Callable[[], None]:
    """Have ``save`` called once a signal tells that the job ends; return what undoes that."""
    import signal

    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)

    def handle(number: int, frame: Any) -> None:
        ignore()
        save()

    def ignore() -> None:
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)

    for number in numbers:
        signal.signal(number, handle)
    return ignore


def _wake() -> None:
    import signal

    os.kill(os.getpid(), signal.SIGUSR2)


def _time_left(seconds: int) -> float:
    """Return when to save: a tenth of the walltime before its end, 5 s to 2 min."""
    import time

    began = float(os.environ.get("CJDASK_BEGAN") or time.time())
    margin = min(max(seconds / 10, 5), 120)
    return max(0.0, began + seconds - margin - time.time())


# ---------------------------------------------------------------- a process of a pool


def serve() -> None:
    """Make the calls that come by one pipe, until it ends; answer each by another.

    A message is 8 bytes with its length and a pickle: how the calls that follow are to be made,
    or a call, which is its name, a pickled function and pickled arguments. A call is answered
    by a byte that tells whether it ended well, 8 bytes with the length of its outcome, 8 with
    its microseconds, and the outcome.
    """
    from time import monotonic

    numbers = [int(number) for number in sys.argv[1:3]]
    del sys.argv[1:]
    for number in numbers:
        os.set_inheritable(number, False)
    setup: dict[str, Any] = {}
    problem = None
    with open(numbers[0], "rb") as source, open(numbers[1], "wb") as target:
        while head := source.read(8):
            message = loads(source.read(int.from_bytes(head, "little")))
            if isinstance(message, dict):
                setup, problem = message, prepare(message)
                continue
            name, fn, args = message
            began = monotonic()
            if problem:
                ok, outcome = False, refused(problem)
            else:
                ok, outcome = perform(partial(_loaded, fn, args))
                if ok and setup["durable"]:
                    write_file(setup, f"{name}.ok", outcome)
            took = int((monotonic() - began) * 1e6)
            sizes = len(outcome).to_bytes(8, "little") + took.to_bytes(8, "little")
            target.write(bytes([ok]) + sizes + outcome)
            target.flush()


def _loaded(fn: bytes, args: bytes) -> tuple[Any, Any, Any]:
    return (loads(fn), *loads(args))


# ---------------------------------------------------------------- as a program


def main() -> None:
    """Run the task that the arguments name: the folder of its batch, its index from 1."""
    folder, index = sys.argv[1:3]
    del sys.argv[1:]
    with open(os.path.join(folder, "calls"), "rb") as file:
        Task(file, int(index or "1") - 1).run()
