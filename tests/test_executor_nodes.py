"""The side of the nodes: what a task reads, runs and leaves, without a scheduler."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import cloudpickle
import pytest

from cjdask import ClusterFuture, PayloadError, RemoteException
from cjdask.executor_calls import (
    Call,
    Ledger,
    Task,
    dump_args,
    dump_function,
    read_outcome,
    setup_of,
)
from cjdask.executor_folder import CallFolder
from cjdask.executor_options import CallOptions
from cjdask.executor_worker import runner_program
from tests.executor_functions import Counts, Exits, ExitsError, NeedsTwo, Unsayable, throw


@pytest.fixture
def folder(tmp_path: Path) -> CallFolder:
    """Return a folder for calls."""
    return CallFolder(tmp_path / "calls")


def put(folder: CallFolder, *calls: tuple[Any, ...], setup: dict[str, Any] | None = None) -> None:
    """Put calls, each a function and its arguments, as tasks of a batch ``b``."""
    options = CallOptions.of({"backend": "local"})
    first = Task(options, b"", [], folder)
    own = {**setup_of(options, first, by_value=True), **(setup or {})}
    packed = [
        (dump_function(fn), [(f"c{number}", dump_args(fn, args, {}))])
        for number, (fn, *args) in enumerate(calls)
    ]
    folder.put("b", own, packed)


def run(folder: CallFolder, index: int = 1, **env: str) -> subprocess.CompletedProcess[str]:
    """Run a task as its job does."""
    program = runner_program(sys.executable, "main", folder.batch("b"), str(index))
    return subprocess.run(
        program, capture_output=True, text=True, timeout=30, env={**os.environ, **env}, cwd="/"
    )


def outcome(folder: CallFolder, name: str) -> tuple[Any, BaseException | None]:
    """Read what a task left under a name."""
    with folder.fetch(name) as file:
        return read_outcome(file, "f")


def test_a_result_by_reference_and_by_value(folder: CallFolder) -> None:
    """Each task finds its own call; what can be imported nowhere travels by value."""
    put(folder, (pow, 2, 8), (lambda: lambda x: x + 1,))
    assert [run(folder, 1).returncode, run(folder, 2).returncode] == [0, 0]
    assert sorted(folder.arrived()) == ["c0.ok", "c1.ok"]
    assert outcome(folder, "c0.ok") == (256, None)
    function, _ = outcome(folder, "c1.ok")
    assert function(1) == 2


def test_the_process_is_as_the_one_that_submitted(
    folder: CallFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is in the same folder and finds the same modules, and no module of this package alone."""
    (tmp_path / "beside_the_script.py").write_text("def f(x):\n    return x + 1\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    import beside_the_script  # type: ignore[import-not-found]

    def look() -> tuple[str, list[str], bool]:
        import sys

        return os.getcwd(), sys.argv, any(path.endswith("cjdask") for path in sys.path)

    put(folder, (beside_the_script.f, 1), (look,))
    for index in (1, 2):
        assert run(folder, index).returncode == 0
    assert outcome(folder, "c0.ok") == (2, None)
    assert outcome(folder, "c1.ok") == ((str(tmp_path), ["-c"], False), None)


@pytest.mark.parametrize(
    ("error", "kind", "said"),
    [
        (KeyError("k"), KeyError, "'k'"),
        (SystemExit(3), RemoteException, "SystemExit: 3"),
        (KeyboardInterrupt(), RemoteException, "KeyboardInterrupt"),
        (GeneratorExit(), RemoteException, "GeneratorExit"),
        (RecursionError("deep"), RecursionError, "deep"),
        (OSError(2, "not there"), FileNotFoundError, "not there"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)[:10]),
)
def test_an_exception(
    folder: CallFolder, error: BaseException, kind: type[Exception], said: str
) -> None:
    """An exception has its own type, but for one that would end whoever asks for the result."""
    put(folder, (throw, error))
    assert run(folder).returncode == 0
    value, found = outcome(folder, "c0.b.error")
    assert value is None
    assert isinstance(found, kind)
    assert said in str(found)
    remote = found if isinstance(found, RemoteException) else found.__cause__
    assert isinstance(remote, RemoteException)
    assert "in throw" in remote.error
    assert "executor_runner" not in remote.error


def test_an_exception_that_cannot_travel(folder: CallFolder) -> None:
    """Of one that cannot be pickled or made again there is the traceback; to show it is no need."""

    def one() -> None:
        raise NeedsTwo(1, 2)

    def two() -> None:
        raise ValueError(each for each in ())

    def three() -> None:
        raise Unsayable

    put(folder, (one,), (two,), (three,))
    for index, name in enumerate(("NeedsTwo", "ValueError", "Unsayable"), 1):
        assert run(folder, index).returncode == 0
        _, found = outcome(folder, f"c{index - 1}.b.error")
        remote = found.__cause__ if isinstance(found, Unsayable) else found
        assert isinstance(remote, RemoteException)
        assert name in str(remote)


def test_what_cannot_be_pickled(folder: CallFolder) -> None:
    """A result that cannot be pickled is told of; so are arguments, before they travel."""
    put(folder, (lambda: (each for each in ()),))
    assert run(folder).returncode == 0
    _, found = outcome(folder, "c0.b.error")
    assert isinstance(found, PayloadError)
    assert "the result, builtins.generator, cannot be pickled" in str(found)
    with pytest.raises(PayloadError, match="the arguments of pow cannot be pickled"):
        dump_args(pow, [(each for each in ())], {})
    with pytest.raises(PayloadError, match=r"the function .* cannot be pickled"):
        dump_function((each for each in ()).send)


def test_pickles_that_end_a_process(folder: CallFolder) -> None:
    """What raises SystemExit while it travels ends no process, neither there nor here."""

    def fails() -> None:
        raise ExitsError

    put(folder, (Exits, "pickled"), (Exits, "made"), (fails,), (id, Exits("made")))
    found = []
    for index, ending in enumerate(("b.error", "ok", "b.error", "b.error")):
        assert run(folder, index + 1).returncode == 0
        found.append(outcome(folder, f"c{index}.{ending}")[1])
    kinds = [PayloadError, PayloadError, RemoteException, RemoteException]
    assert [type(error) for error in found] == kinds
    assert "cannot be pickled: SystemExit: 5" in str(found[0])
    assert "cannot be loaded here: SystemExit: 5" in str(found[1])


def test_a_module_that_is_not_there(folder: CallFolder, tmp_path: Path) -> None:
    """A function of a module that the node does not have is a ModuleNotFoundError."""
    (tmp_path / "only_here.py").write_text("def f():\n    return 1\n")
    sys.path.insert(0, str(tmp_path))
    try:
        import only_here  # type: ignore[import-not-found]

        put(folder, (only_here.f,), setup={"path": []})
    finally:
        sys.path.remove(str(tmp_path))
    run(folder)
    _, found = outcome(folder, "c0.b.error")
    assert isinstance(found, ModuleNotFoundError)
    assert "only_here" in str(found)


def test_versions(folder: CallFolder) -> None:
    """Another Python or another cloudpickle there is an error that says what to do."""
    for setup, said in (
        ({"python": (3, 7)}, "made by Python 3.7, but .* is Python 3.*python=..., the path"),
        ({"cloudpickle": "0.1"}, f"pickled by cloudpickle 0.1.*has {cloudpickle.__version__}"),
    ):
        put(folder, (pow, 2, 8), setup=setup)
        assert run(folder).returncode == 0
        _, found = outcome(folder, "c0.b.error")
        assert isinstance(found, PayloadError)
        with pytest.raises(PayloadError, match=f"(?s){said}"):
            raise found


def test_every_process_of_a_call(folder: CallFolder) -> None:
    """Each process leaves an outcome of its own; but for the first it is empty unless wanted."""
    for every, expected in ((False, None), (True, "1")):
        put(folder, (os.getenv, "CLUSTERJOB_RANK"), setup={"ranks": 2, "every_rank": every})
        for rank in ("0", "1"):
            assert run(folder, CLUSTERJOB_RANK=rank).returncode == 0
        assert outcome(folder, "c0.ok") == ("0", None)
        assert outcome(folder, "c0.1.ok") == (expected, None)


def test_a_call_that_saves_itself(folder: CallFolder, tmp_path: Path) -> None:
    """A call is told of the end of its job, saves itself, and goes on where it was, some times."""
    put(folder, (Counts(str(tmp_path)), 100), setup={"requeues": 2})
    program = runner_program(sys.executable, "main", folder.batch("b"), "1")
    for number in (1, 2):
        with subprocess.Popen(program) as process:
            while not (tmp_path / f"started{number}").exists():
                time.sleep(0.01)
            process.terminate()
            assert process.wait(60) == 0
        assert folder.arrived() == ["c0.b.resume"]
    assert run(folder).returncode == 0
    assert outcome(folder, "c0.ok") == ((100, 3), None)
    assert folder.arrived() == ["c0.ok"]
    put(folder, (Counts(str(tmp_path)), 100), setup={"requeues": 0})
    (tmp_path / "started1").unlink()
    with subprocess.Popen(program) as process:
        while not (tmp_path / "started1").exists():
            time.sleep(0.01)
        process.terminate()
        assert process.wait(60) == -15


def test_a_folder_of_others_is_not_used(tmp_path: Path) -> None:
    """A folder that is a link, or cannot be made, is refused; one of ours is closed to others."""
    (tmp_path / "real").mkdir(mode=0o777)
    (tmp_path / "link").symlink_to("real")
    with pytest.raises(PayloadError, match="not a folder of yours"):
        CallFolder(tmp_path / "link").prepare()
    (tmp_path / "file").touch()
    with pytest.raises(PayloadError, match="give the executor another folder"):
        CallFolder(tmp_path / "file" / "x").prepare()
    CallFolder(tmp_path / "real").prepare()
    assert (tmp_path / "real").stat().st_mode & 0o777 == 0o700


def test_a_future_ends_once() -> None:
    """Of a cancel and a result only the first counts, and the call is counted off once."""
    ledger = Ledger()
    future = ClusterFuture(ledger, "f")
    call = Call("c", b"", "f", future)
    assert future.cancel()
    call.settle(1)
    assert future.cancelled()
    assert future.cancel()
    other = ClusterFuture(ledger, "f")
    other.settle(2)
    assert not other.cancel()
    assert other.result() == 2
    ledger.wait()


def test_a_callback_that_ends_its_thread() -> None:
    """A callback may raise what it likes: the call is over, and counted off."""
    ledger = Ledger()
    future = ClusterFuture(ledger, "f")

    def leave(_: object) -> None:
        raise SystemExit(3)

    future.add_done_callback(leave)
    future.settle(1)
    ledger.wait()
    assert future.result() == 1
