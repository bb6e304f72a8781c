"""Run batch jobs on one host that has no scheduler: a small batch system in one file.

``python embedded.py [--state DIR] COMMAND ...``, with the commands::

    submit [OPTIONS] SCRIPT [ARG ...]   print {"id": "12"}; SCRIPT "-" is standard input
    query [--all] [ID ...]              one line per job or task; without ID: all not ended
    cancel ID ...                       one line per ID
    info                                slots, counts of jobs, pid of the manager
    config [--slots=N|auto] [--gpus=N]  settings of this state directory
    purge [--older-than=SECONDS]        remove records of ended jobs
    launch -- COMMAND ...               inside a job: start nodes*ppn copies of COMMAND

Options of submit, also read from ``#CJ --option=value`` lines at the top of the script:
``--jobname --queue --account --time=SECONDS|H:M:S --nodes --ppn --threads --mem=MB --gpus
--stdout --stderr --array=0-99%10 --depends=ID,ID --exclusive --comment --chdir
--simulate-nodes``. Answers are JSON on standard output. Exit codes: 0 done, 1 refused, 2 wrong
usage, 3 state directory unusable. Settings: ``CJDASK_EMBEDDED_DIR``, ``_SLOTS``, ``_GPUS``,
``_KILL_GRACE`` (seconds between TERM and KILL).

The file needs Linux, Python 3.8 or newer and the standard library, and imports nothing else,
so that it can be copied alone to another host.

State directory (mode 0700, files 0600, JSON, each written by temporary file, fsync, rename)::

    active/<id>/  ended/<id>/   one folder per submission; it moves once all its tasks ended
        job.json env.json script   the request; never changes
        task.json task-<i>.json    record of a task; no file: it is pending
        rest.json                  record of all tasks that have none of their own
    incoming/                   what is being written; swept by the next manager
    lock                        held for every change of a record
    manager.lock manager.json   the one manager, and who it is
    counter.json config.json host.json daemon.log

Two kinds of processes serve it. One *manager* per state directory decides which job starts;
it exits when nothing is left. One *supervisor* per running task is the parent of the job: it
claims the task, enforces the walltime, kills what the job leaves behind and records the end.
Either may die at any instant: the records say what is true, any command starts a new manager.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shlex
import signal
import sys
import time
from contextlib import contextmanager, suppress

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

VERSION = "1.0"
HERE = os.path.abspath(__file__)
PROGRAM = "cjdask-embedded"
ENDED = ("COMPLETED", "CANCELLED", "FAILED")
MAX_TASKS = 100_000
MAX_INDEX = 2**31 - 1
KILL_GRACE = 5.0  # seconds between TERM and KILL
KEEP = 30 * 86400.0  # seconds that the records of ended jobs are kept
LOCK_PATIENCE = 60.0  # seconds a command waits for the state directory
CANCELLED_AT_ONCE = 1000  # jobs or tasks for which the state directory is held once
TICK = 1.0  # seconds between two looks of the manager when nothing wakes it
POLL = 2.0  # seconds between two looks of a supervisor at its record
LINGER = 0.5  # seconds that an idle manager waits for more work
EXIT_LATER = 75  # a supervisor could not claim its job now (EX_TEMPFAIL)
ROLE = "CJ_EMBEDDED_ROLE"  # marks managers and supervisors: the state directory they serve
TOKEN = "CJ_JOB_TOKEN"  # marks the processes of a job
JOB_VARIABLES = re.findall(
    r"\w+",
    "CJ_JOB_ID CJ_ARRAY_JOB_ID CJ_ARRAY_INDEX CJ_SUBMIT_DIR CJ_SUBMIT_HOST CJ_JOB_NAME "
    "CJ_NODELIST CJ_NODES CJ_PPN CJ_THREADS CJ_GPUS CJ_END_TIME CJ_COMMENT CJ_PYTHON "
    "CJ_EMBEDDED CJ_SUPERVISOR CJ_JOB_TOKEN CJ_EMBEDDED_ROLE",
)
RANK_VARIABLES = [
    "CLUSTERJOB_" + word for word in ("RANK", "LOCAL_RANK", "NODE_RANK", "NTASKS", "NODE")
]


class EmbeddedError(Exception):
    """A request that is refused; the message says why and what to do instead."""

    exit_code = 1


class UsageError(EmbeddedError):
    """A command line that is not understood."""

    exit_code = 2


class StateError(EmbeddedError):
    """A state directory that cannot be used."""

    exit_code = 3


# ---------------------------------------------------------------- processes


def _boot() -> str:
    """Return what tells this run of the machine from the one before a restart."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return file.read().strip()[:8]
    except OSError:
        return "noboot"


BOOT = _boot()


def process_stat(pid: int) -> tuple[int, str] | None:
    """Return parent and identity of a process; None when it is gone or only a zombie.

    The identity is ``pid:start:boot``: start time and boot id tell a process from a later one
    that got the same pid.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
    except OSError:
        return None
    if len(fields) < 20 or fields[0] in (b"Z", b"X", b"x"):
        return None
    return int(fields[1]), f"{pid}:{int(fields[19])}:{BOOT}"


def own_identity() -> str:
    """Return the identity of this process."""
    stat = process_stat(os.getpid())
    if stat is None:
        raise StateError("/proc is not readable, it is needed to watch processes; mount it")
    return stat[1]


def is_alive(identity: str) -> bool:
    """Tell whether exactly this process runs."""
    pid = identity.partition(":")[0]
    stat = process_stat(int(pid)) if pid.isdigit() else None
    return stat is not None and stat[1] == identity


def send(identity: str, number: int) -> bool:
    """Send a signal to exactly this process; tell whether it was there to get it."""
    if not is_alive(identity):
        return False
    pid = int(identity.partition(":")[0])
    opener = getattr(os, "pidfd_open", None)
    handle = -1
    try:
        if opener is not None:
            with suppress(OSError):  # a kernel before 5.3, a filter, or the process is gone
                handle = opener(pid)
        if not is_alive(identity):
            return False
        if handle >= 0:
            signal.pidfd_send_signal(handle, number)
        else:
            os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        if handle >= 0:
            os.close(handle)
    return True


def _environ(pid: int) -> bytes:
    """Return the environment that a process started with, each entry ended by NUL."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            return b"\0" + file.read()
    except OSError:
        return b""


def job_processes(token: str, state: str, root: int = 0, marked: bool = True) -> list[str]:
    """Return the identities of the processes of a job.

    These are all descendants of `root`, all processes whose environment carries `token`
    (where `marked` asks for that) and all descendants of those. The manager and the supervisors
    of other jobs, and what is below them, belong to no job: a job may submit others.
    """
    table = {}
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        stat = process_stat(int(name)) if name.isdigit() else None
        if stat is not None:
            table[int(name)] = stat[1]
            children.setdefault(stat[0], []).append(int(name))
    wanted = f"\0{TOKEN}={token}\0".encode()
    role = f"\0{ROLE}={state}\0".encode("utf-8", "surrogateescape")
    queue = list(children.get(root, ())) if root else []
    if marked:
        queue += [pid for pid in table if wanted in _environ(pid)]
    found: dict[int, str] = {}
    while queue:
        pid = queue.pop()
        if pid in found or pid == os.getpid():
            continue
        environ = _environ(pid)
        # What a supervisor forked and is no job yet has its mark, and the token of its job.
        if role in environ and wanted not in environ:
            continue
        found[pid] = table[pid]
        queue += children.get(pid, ())
    return list(found.values())


def sweep(find: Callable[[], list[str]], patience: float = 30.0) -> int:
    """Kill all processes that `find` names until it names none; return how many resisted."""
    deadline = time.monotonic() + patience
    pause = 0.001
    while True:
        left = find()
        if not left or time.monotonic() > deadline:
            return len(left)
        for identity in left:
            send(identity, signal.SIGKILL)
        time.sleep(pause)
        pause = min(0.1, pause * 2)


def be_subreaper() -> bool:
    """Become the parent of orphaned descendants; tell whether the system can do that."""
    try:
        import ctypes

        prctl = ctypes.CDLL(None, use_errno=True).prctl
        return bool(prctl(36, 1, 0, 0, 0) == 0)  # PR_SET_CHILD_SUBREAPER, Linux 3.4
    except (ImportError, OSError, AttributeError):
        return False


def default_signals() -> None:
    """Give every signal its default action and block none, as a new process expects."""
    for number in signal.valid_signals():
        with suppress(OSError, ValueError):  # KILL, STOP and those of the C library
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])


# ---------------------------------------------------------------- requests


def _text(name: str, value: str) -> str:
    if not value:
        raise EmbeddedError(f"{name} must not be empty; leave it out instead")
    if any(ord(char) < 32 or 127 <= ord(char) < 160 for char in value):
        raise EmbeddedError(
            f"{name} must not contain control characters such as newlines, not {value!r}"
        )
    return value


def _count(name: str, value: str, least: int = 1) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", value) or int(value) < least:
        raise EmbeddedError(f"{name} must be a whole number of at least {least}, not {value!r}")
    return int(value)


def _natural(name: str, value: str) -> int:
    return _count(name, value, least=0)


def parse_time(name: str, value: str) -> int:
    """Return a walltime in seconds, from ``SECONDS`` or ``H:M:S``."""
    match = re.fullmatch(r"([0-9]{1,9})(?::([0-5]?[0-9]):([0-5]?[0-9]))?", value)
    seconds = 0
    if match and match[2] is None:
        seconds = int(match[1])
    elif match:
        seconds = int(match[1]) * 3600 + int(match[2]) * 60 + int(match[3])
    if seconds < 1:
        raise EmbeddedError(f"{name} must be SECONDS or H:M:S and not zero, not {value!r}")
    return seconds


def _pattern(name: str, value: str) -> str:
    for found in re.findall(r"%(.?)", _text(name, value)):
        if found not in ("j", "A", "a", "x", "%"):
            raise EmbeddedError(
                f"{name} must use only %j (id), %A (array id), %a (index), %x (name) and %% (a "
                f"percent sign), not '%{found}' in {value!r}"
            )
    return value


def split_array(name: str, value: str) -> tuple[list[int], int | None]:
    """Return the indexes and the limit of ``0-99%10``, ``1,3,7-9`` or ``0-20:5``."""
    problem = f"{name} must look like 0-99, 1,3,7-9 or 0-20:5, with %LIMIT behind, not {value!r}"
    body, percent, limit = value.partition("%")
    if percent and (not re.fullmatch(r"[0-9]{1,9}", limit) or int(limit) < 1):
        raise EmbeddedError(problem)
    indexes: set[int] = set()
    for part in body.split(","):
        match = re.fullmatch(r"([0-9]{1,10})(?:-([0-9]{1,10})(?::([0-9]{1,10}))?)?", part)
        if not match:
            raise EmbeddedError(problem)
        first, last, step = int(match[1]), int(match[2] or match[1]), int(match[3] or 1)
        if last < first or step < 1 or last > MAX_INDEX:
            raise EmbeddedError(problem)
        if len(indexes) + len(range(first, last + 1, step)) > MAX_TASKS:
            raise EmbeddedError(f"{name} must name at most {MAX_TASKS} tasks, not {value!r}")
        indexes.update(range(first, last + 1, step))
    return sorted(indexes), int(limit) if percent else None


def _array(name: str, value: str) -> str:
    split_array(name, value)
    return value


def _depends(name: str, value: str) -> list[str]:
    ids = value.split(",")
    if not all(re.fullmatch(r"[0-9]+(_[0-9]+)?", text) for text in ids):
        raise EmbeddedError(f"{name} must be ids such as 12 or 12,13_4, not {value!r}")
    return ids


OPTIONS: dict[str, Callable[[str, str], Any] | None] = {
    "jobname": _text,
    "queue": _text,
    "account": _text,
    "time": parse_time,
    "nodes": _count,
    "ppn": _count,
    "threads": _count,
    "mem": _count,
    "gpus": _natural,
    "stdout": _pattern,
    "stderr": _pattern,
    "array": _array,
    "depends": _depends,
    "exclusive": None,
    "comment": _text,
    "chdir": _text,
    "simulate-nodes": None,
}
DEFAULTS: dict[str, Any] = {
    **dict.fromkeys(OPTIONS),
    **{"nodes": 1, "ppn": 1, "threads": 1, "gpus": 0, "depends": [], "comment": ""},
    **{"exclusive": False, "simulate-nodes": False, "jobname": "", "stdout": "%x-%j.out"},
    **{"umask": 0o077, "submit_dir": "/", "chdir": "/", "submit_time": None},
    **{"token": "", "args": [], "grace": KILL_GRACE},
}


def parse_options(
    words: Sequence[str], table: dict[str, Callable[[str, str], Any] | None]
) -> tuple[dict[str, Any], list[str]]:
    """Split ``--name=value``, ``--name value`` and ``--flag`` from the words behind them.

    Raises:
        UsageError: an option that the table does not know, or a value missing or too many.
        EmbeddedError: a value that the option refuses.
    """
    values: dict[str, Any] = {}
    rest = list(words)
    while rest and rest[0].startswith("--"):
        word = rest.pop(0)
        if word == "--":
            break
        name, equals, value = word[2:].partition("=")
        if name not in table:
            known = ", ".join("--" + key for key in table) or "none"
            raise UsageError(f"unknown option '--{name}'; the options are: {known}")
        convert = table[name]
        if convert is None:
            if equals:
                raise UsageError(f"option --{name} takes no value, not {value!r}")
            values[name] = True
            continue
        if not equals:
            if not rest:
                raise UsageError(f"option --{name} needs a value: --{name}=VALUE")
            value = rest.pop(0)
        values[name] = convert(name, value)
    return values, rest


def header_options(script: bytes) -> dict[str, Any]:
    """Return the options of the ``#CJ`` lines in the leading comment block of a script."""
    words: list[str] = []
    for raw in script.split(b"\n"):
        line = raw.decode("utf-8", "surrogateescape").strip()
        if line and not line.startswith("#"):
            break
        if re.match(r"#CJ(\s|$)", line):
            try:
                found = shlex.split(line[3:])
            except ValueError as exc:
                raise UsageError(f"header line {line!r} cannot be split: {exc}") from None
            if parse_options(found, OPTIONS)[1]:
                raise UsageError(f"header line {line!r} must hold only --option=value")
            words += found
    return parse_options(words, OPTIONS)[0]


def expand(pattern: str, spec: dict[str, Any], number: int, index: int | None) -> str:
    """Return the path of a log: the pattern filled in, below the work dir of the job."""
    name = spec["jobname"].replace("/", "_")
    values = {"j": task_id(number, index), "A": str(number), "x": name, "%": "%"}
    values["a"] = str(index or 0)
    filled = re.sub("%([jAax%])", lambda match: values[match[1]], pattern)
    return os.path.normpath(os.path.join(spec["chdir"], filled))


def task_id(number: int, index: int | None) -> str:
    """Return the id of a job (``12``) or of a task of an array (``12_3``)."""
    return str(number) if index is None else f"{number}_{index}"


def split_id(text: str) -> tuple[int, int | None] | None:
    """Return number and index of an id; None for what is no id."""
    match = re.fullmatch(r"([0-9]{1,18})(?:_([0-9]{1,10}))?", text)
    if not match:
        return None
    return int(match[1]), None if match[2] is None else int(match[2])


# ---------------------------------------------------------------- state on disk


def ended_record(state: str, reason: str, message: str, **more: Any) -> dict[str, Any]:
    """Return the record of a task that ended now."""
    record = {"state": state, "reason": reason, "message": message, "end_time": time.time()}
    return {**record, **more}


def read_json(path: str) -> Any:
    """Return the content of a JSON file; ValueError for what is none."""
    with open(path, encoding="utf-8") as file:
        return json.load(file)


def read_record(path: str) -> dict[str, Any]:
    """Return the record of a task; a damaged one is that of a lost job, not yet written."""
    try:
        record = read_json(path)
        state = record.get("state") if isinstance(record, dict) else None
        kinds = {"supervisor": str, "slots": int, "gpus": list}
        if state in ENDED or (
            state == "RUNNING"
            and all(isinstance(record.get(key), kind) for key, kind in kinds.items())
        ):
            return record  # type: ignore[no-any-return]
        problem = "it is no record"
    except ValueError as exc:
        problem = str(exc)
    message = f"the record {path} is damaged ({problem}); what became of the job is not known"
    return ended_record("FAILED", "LOST", message, unwritten=True)


def record_name(index: int | None) -> str:
    """Return the name of the file with the record of a task."""
    return "task.json" if index is None else f"task-{index}.json"


def current_record(folder: str, index: int | None) -> dict[str, Any]:
    """Return what is on disk about one task, without reading about the others."""
    for name in (record_name(index), "rest.json"):
        with suppress(FileNotFoundError):
            return read_record(os.path.join(folder, name))
    return {"state": "PENDING"}


class Job:
    """One submission as it is on disk: the request, and the records of its tasks.

    Raises:
        FileNotFoundError: there is no such folder (any more).
    """

    def __init__(self, number: int, path: str, records: bool = True) -> None:
        self.number = number
        self.path = path
        self.spec: dict[str, Any] = DEFAULTS
        self.broken = False
        self.indexes: Sequence[int | None] = (None,)
        self.limit: int | None = None
        self.records: dict[int | None, dict[str, Any]] = {}
        self.rest: dict[str, Any] | None = None
        self._read_spec()
        if records:
            self.reload()

    def _read_spec(self) -> None:
        path = os.path.join(self.path, "job.json")
        try:
            spec = read_json(path)
            if not isinstance(spec, dict) or not DEFAULTS.keys() <= spec.keys():
                raise ValueError("it is no job")
            for key, default in DEFAULTS.items():
                wanted = type(default) if default is not None else (str, int, float, type(None))
                if not isinstance(spec[key], wanted):
                    raise ValueError(f"{key} is {spec[key]!r}")
            if spec["array"]:
                self.indexes, self.limit = split_array("array", spec["array"])
            self.spec = spec
        except (FileNotFoundError, ValueError, EmbeddedError, TypeError, AttributeError) as exc:
            if not os.path.isdir(self.path):
                raise FileNotFoundError(errno.ENOENT, "no such job", self.path) from None
            self.broken = True
            message = f"the request {path} is damaged ({exc}); the job cannot be followed"
            self.rest = ended_record("FAILED", "LOST", message)
            with suppress(FileNotFoundError):
                self.rest = read_record(os.path.join(self.path, "rest.json"))

    def reload(self) -> None:
        """Read the records that may have changed; that of an ended task never does."""
        for name in os.listdir(self.path):
            match = re.fullmatch(r"(?:rest|task(?:-([0-9]+))?)\.json", name)
            if not match or self.broken:
                continue
            path = os.path.join(self.path, name)
            if name == "rest.json":
                self.rest = self.rest or read_record(path)
                continue
            index = None if match[1] is None else int(match[1])
            if self.records.get(index, {}).get("state") not in ENDED:
                self.records[index] = read_record(path)

    def record(self, index: int | None) -> dict[str, Any]:
        """Return the record of a task; that of a pending one is ``{"state": "PENDING"}``."""
        return self.records.get(index) or self.rest or {"state": "PENDING"}

    def record_path(self, index: int | None) -> str:
        """Return where the record of a task is kept."""
        return os.path.join(self.path, record_name(index))

    def is_ended(self) -> bool:
        """Tell whether all tasks ended."""
        return all(self.record(index)["state"] in ENDED for index in self.indexes)

    def slots(self, total: int) -> int:
        """Return how many slots each task needs."""
        if self.spec["exclusive"]:
            return total
        return int(self.spec["nodes"] * self.spec["ppn"] * self.spec["threads"])

    def gpus(self) -> int:
        """Return how many GPUs each task needs."""
        return int(self.spec["nodes"] * self.spec["gpus"])

    def token(self, index: int | None) -> str:
        """Return what marks the processes of a task."""
        return f"{self.spec['token']}.{task_id(self.number, index)}"

    def is_lost(self, index: int | None) -> bool:
        """Tell whether a task has no supervisor though its record says that it runs."""
        record = self.record(index)
        if record["state"] != "RUNNING" or is_alive(record["supervisor"]):
            return False
        # Its supervisor may just have written the end, and the manager have moved the job.
        for folder in ("active", "ended"):
            path = os.path.join(self.path, "..", "..", folder, str(self.number))
            with suppress(FileNotFoundError):
                self.records[index] = read_record(os.path.join(path, record_name(index)))
                return bool(self.record(index)["state"] == "RUNNING")
        return False

    def lost_record(self, index: int | None) -> dict[str, Any]:
        """Return the record of a task whose supervisor is gone."""
        record = self.record(index)
        message = "the supervisor of the job died; how the job would have ended is not known"
        if not record["supervisor"].endswith(":" + BOOT):
            message = "the host restarted while the job ran"
        return {**record, **ended_record("FAILED", "LOST", message)}


class Store:
    """The state directory."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.host = os.uname().nodename
        self.active = os.path.join(root, "active")
        self.ended = os.path.join(root, "ended")
        self.incoming = os.path.join(root, "incoming")
        self._me = own_identity()

    def path(self, name: str) -> str:
        """Return the path of a file of the state directory."""
        return os.path.join(self.root, name)

    def prepare(self) -> None:
        """Make the directory where it is missing, and check that it is ours.

        Raises:
            StateError: it belongs to another user or host, or holds something else.
        """
        with suppress(FileExistsError):
            os.makedirs(os.path.dirname(self.root), exist_ok=True)
            os.mkdir(self.root, 0o700)
        stat = os.stat(self.root)
        if stat.st_uid != os.geteuid():
            raise StateError(
                f"state directory {self.root!r} belongs to user {stat.st_uid}, not to you "
                f"({os.geteuid()}); choose another with --state DIR or CJDASK_EMBEDDED_DIR"
            )
        host = self.read("host.json").get("host")
        if host != self.host:
            ours = {"active", "ended", "incoming", "lock", "host.json"}
            if (
                host is None
                and not os.path.isdir(self.active)
                and set(os.listdir(self.root)) - ours
            ):
                raise StateError(
                    f"state directory {self.root!r} holds other files; choose an empty or a new "
                    "one with --state DIR or CJDASK_EMBEDDED_DIR"
                )
            for folder in (self.incoming, self.ended, self.active):
                os.makedirs(folder, 0o700, exist_ok=True)
            if host is not None and os.listdir(self.active):
                raise StateError(
                    f"state directory {self.root!r} holds jobs of host {host!r} and this is "
                    f"{self.host!r}; choose another with --state DIR or CJDASK_EMBEDDED_DIR, or "
                    "remove its host.json if this is the same machine under a new name"
                )
            self.write(self.path("host.json"), {"host": self.host})
        if stat.st_mode & 0o077:
            os.chmod(self.root, 0o700)
        self._adopt_settings()

    def _adopt_settings(self) -> None:
        """Keep what CJDASK_EMBEDDED_SLOTS and _GPUS say: all processes must agree on it."""
        given: dict[str, int | None] = {}
        for name, least in (("slots", 1), ("gpus", 0)):
            variable = "CJDASK_EMBEDDED_" + name.upper()
            if os.environ.get(variable):
                given[name] = _count(variable, os.environ[variable], least)
        config = self.read("config.json")
        if any(config.get(name) != value for name, value in given.items()):
            self.configure(given)

    def configure(self, changes: dict[str, int | None]) -> None:
        """Change settings; None sets one back to its default."""
        with self.lock():
            config = {**self.read("config.json"), **changes}
            known = {key: value for key, value in config.items() if value is not None}
            self.write(self.path("config.json"), known)

    def read(self, name: str) -> dict[str, Any]:
        """Return a file of settings; empty when it is missing or unreadable."""
        try:
            value = read_json(self.path(name))
        except (FileNotFoundError, ValueError):
            return {}
        return value if isinstance(value, dict) else {}

    def write(self, path: str, value: Any) -> None:
        """Write a file so that it has its old or its new content, whatever happens."""
        data = value if isinstance(value, bytes) else json.dumps(value).encode()
        temporary = self._temporary()
        try:
            handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with open(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(handle)
            os.replace(temporary, path)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
        self._sync(os.path.dirname(path))

    def _temporary(self) -> str:
        return os.path.join(self.incoming, f"{self._me}:{os.urandom(8).hex()}")

    def _sync(self, folder: str) -> None:
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    @contextmanager
    def lock(self, patience: float = LOCK_PATIENCE) -> Iterator[None]:
        """Hold the right to change records.

        Raises:
            TimeoutError: another process held it for longer than `patience` seconds.
        """
        handle = os.open(self.path("lock"), os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + patience
        pause = 0.0005
        try:
            while True:
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"busy for more than {patience:.0f} s") from None
                time.sleep(pause)
                pause = min(0.01, pause * 2)
            yield
        finally:
            os.close(handle)

    def numbers(self, folder: str) -> list[int]:
        """Return the numbers of the jobs in a folder, in the order of their submission."""
        return sorted(int(name) for name in os.listdir(folder) if name.isdigit())

    def load(self, number: int, records: bool = True) -> Job | None:
        """Return a job; None when there is none of that number."""
        for folder in (self.active, self.ended):
            with suppress(FileNotFoundError):  # not there, or just moved on
                return Job(number, os.path.join(folder, str(number)), records)
        return None

    def add(self, files: dict[str, bytes], spec: dict[str, Any]) -> int:
        """Enter a job completely or not at all, and return its number."""
        box = self._temporary()
        os.mkdir(box, 0o700)
        try:
            for name, data in files.items():
                self.write(os.path.join(box, name), data)
            with self.lock():
                for text in spec["depends"]:
                    self._check_dependency(text)
                number = self._next_number()
                os.rename(box, os.path.join(self.active, str(number)))
                self._sync(self.active)
        except BaseException:
            self.remove(box)
            raise
        return number

    def _check_dependency(self, text: str) -> None:
        number, index = split_id(text) or (0, None)
        job = self.load(number, records=False)
        if job is None or (index is not None and index not in job.indexes):
            raise EmbeddedError(
                f"depends names {text!r}, and there is no such job; 'query --all' lists those known"
            )

    def _next_number(self) -> int:
        last = self.read("counter.json").get("last")
        if not isinstance(last, int):
            last = max([0, *self.numbers(self.active), *self.numbers(self.ended)])
        number = last + 1
        while any(os.path.exists(os.path.join(f, str(number))) for f in (self.active, self.ended)):
            number += 1
        self.write(self.path("counter.json"), {"last": number})
        return number

    def settle(self, number: int, index: int | None, final: dict[str, Any]) -> None:
        """Record the end of a task, unless an end is recorded already."""
        final.pop("unwritten", None)
        with self.lock(), suppress(FileNotFoundError):
            folder = os.path.join(self.active, str(number))
            record = current_record(folder, index)
            if record["state"] not in ENDED or record.get("unwritten"):
                self.write(os.path.join(folder, record_name(index)), final)

    def settle_rest(self, number: int, final: dict[str, Any]) -> None:
        """Record the end of all tasks of a job that have not started."""
        final.pop("unwritten", None)
        with self.lock(), suppress(FileNotFoundError):
            path = os.path.join(self.active, str(number), "rest.json")
            if not os.path.exists(path) or read_record(path).get("unwritten"):
                self.write(path, final)

    def archive(self, jobs: Sequence[Job]) -> None:
        """Move jobs that ended out of the way."""
        with self.lock():
            for job in jobs:
                with suppress(FileNotFoundError):
                    os.rename(job.path, os.path.join(self.ended, str(job.number)))

    def purge(self, age: float) -> int:
        """Remove the records of jobs that ended `age` seconds ago; return how many.

        Those that an active job depends on stay.
        """
        gone = []
        with self.lock():
            needed: set[str] = set()
            for number in self.numbers(self.active):
                job = self.load(number, records=False)
                depends = job.spec["depends"] if job else []
                needed.update(text.partition("_")[0] for text in depends)
            for number in self.numbers(self.ended):
                path = os.path.join(self.ended, str(number))
                if str(number) not in needed and time.time() - os.stat(path).st_mtime >= age:
                    gone.append(self._temporary())
                    os.rename(path, gone[-1])
        for path in gone:
            self.remove(path)
        return len(gone)

    def remove(self, path: str) -> None:
        """Remove a folder; what cannot be removed now is swept later."""
        import shutil

        shutil.rmtree(path, ignore_errors=True)

    def sweep_incoming(self) -> None:
        """Remove what processes left that died while they wrote it."""
        for name in os.listdir(self.incoming):
            if not is_alive(name.rpartition(":")[0]):
                path = os.path.join(self.incoming, name)
                if os.path.isdir(path):
                    self.remove(path)
                else:
                    with suppress(FileNotFoundError):
                        os.unlink(path)

    def manager(self) -> dict[str, Any]:
        """Return who the manager is; empty when none runs."""
        record = self.read("manager.json")
        return record if is_alive(str(record.get("identity", ""))) else {}

    def totals(self) -> tuple[int, int]:
        """Return how many slots and GPUs there are."""
        config = self.read("config.json")
        slots, gpus = config.get("slots"), config.get("gpus")
        if not isinstance(slots, int) or slots < 1:
            slots = int(self.manager().get("cores") or len(os.sched_getaffinity(0)))
        return slots, gpus if isinstance(gpus, int) else 0

    def dependency(self, job: Job, known: dict[int, Job]) -> tuple[str, str]:
        """Return READY, WAIT or BROKEN for what a job depends on, and an explanation."""
        verdict = "READY"
        for text in job.spec["depends"]:
            number, index = split_id(text) or (0, None)
            other = known.get(number) or self.load(number)
            if other is None:
                return "BROKEN", f"job {text}, which it depends on, is not known any more"
            known[number] = other
            for one in other.indexes if index is None else (index,):
                state = other.record(one)["state"]
                if state in ("CANCELLED", "FAILED"):
                    return "BROKEN", f"job {task_id(number, one)}, which it depends on, is {state}"
                if state != "COMPLETED":
                    verdict = "WAIT"
        return verdict, ""


def spawn(store: Store, words: Sequence[str], keep: int = -1, token: str = "") -> int:
    """Start this program as a process of its own session and return its pid.

    It carries the mark of a daemon and `token`. Without a token it is the manager: detached
    (its parent is not this process), and of the open files it keeps only `keep`.
    """
    detach = not token
    pid = os.fork()
    if pid:
        if detach:
            os.waitpid(pid, 0)
        return pid
    try:
        os.setsid()
        if detach and os.fork():
            os._exit(0)
        os.umask(0o077)
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            log = os.open(store.path("daemon.log"), flags, 0o600)
        except OSError:
            log = null
        os.dup2(null, 0)
        os.dup2(null, 1)
        os.dup2(log, 2)
        for name in os.listdir("/proc/self/fd"):
            if int(name) > 2 and int(name) != keep:
                with suppress(OSError):
                    os.close(int(name))
        if keep >= 0:
            os.set_inheritable(keep, True)
        env = {key: value for key, value in os.environ.items() if key not in JOB_VARIABLES}
        env.update({ROLE: store.root, TOKEN: token})
        command = [sys.executable, "-S", "-s", HERE, "--state", store.root]
        os.execve(sys.executable, [*command, *words], env)
    finally:
        os._exit(127)


def ensure_manager(store: Store) -> None:
    """Wake the manager, or start one where none runs."""
    handle = os.open(store.path("manager.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The new process inherits the lock, so that no second one is started meanwhile.
        spawn(store, ["_manage", str(handle)], keep=handle)
    except BlockingIOError:
        # One that has not written its name yet will read the records only after that.
        send(str(store.read("manager.json").get("identity", "")), signal.SIGUSR1)
    finally:
        os.close(handle)


def log(message: str) -> None:
    """Write a line to the log of the daemons, where that is possible."""
    line = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {os.getpid()} {message}\n"
    with suppress(OSError):  # the full disk that is to be told of may hold the log, too
        os.write(2, line.encode("utf-8", "backslashreplace"))


# ---------------------------------------------------------------- manager

MANAGER_SIGNALS = (signal.SIGUSR1, signal.SIGCHLD)


class Manager:
    """The one process of a state directory that decides which job starts when."""

    def __init__(self, store: Store, handle: int) -> None:
        self.store = store
        self.handle = handle
        self.complaint = ""
        self.identity = own_identity()
        self.jobs: dict[int, Job] = {}
        self.stamps: dict[int, int] = {}
        # pid of a supervisor: task, slots and GPUs it was given
        self.launched: dict[int, tuple[int, int | None, int, list[int]]] = {}
        # task: how often its supervisor failed to start, and when to try again
        self.failures: dict[tuple[int, int | None], tuple[int, float]] = {}

    def run(self) -> None:
        """Start jobs until nothing is left to do."""
        with self.store.lock():
            name = {"identity": self.identity, "cores": len(os.sched_getaffinity(0))}
            self.store.write(self.store.path("manager.json"), name)
        self._tidy()
        idle_since = None
        while True:
            try:
                self._cycle()
                if self.jobs or self.launched:
                    idle_since = None
                elif idle_since is None:
                    idle_since = time.monotonic()
                elif time.monotonic() - idle_since >= LINGER and self._retire():
                    return
            except OSError as exc:
                if not os.path.isdir(self.store.active):
                    return  # the state directory was removed
                self._complain(f"manager: {exc}")
                time.sleep(TICK)
            signal.sigtimedwait(MANAGER_SIGNALS, LINGER if idle_since else TICK)
            while signal.sigtimedwait(MANAGER_SIGNALS, 0):
                continue

    def _complain(self, message: str) -> None:
        """Log a problem that may come again at every look, once."""
        if message != self.complaint:
            log(message)
        self.complaint = message

    def _tidy(self) -> None:
        try:
            self.store.purge(KEEP)
            self.store.sweep_incoming()
            if os.stat(self.store.path("daemon.log")).st_size > 2**20:
                os.truncate(self.store.path("daemon.log"), 0)
        except OSError as exc:
            log(f"manager: cannot tidy up: {exc}")

    def _retire(self) -> bool:
        """Give up the office, unless work has come; who submits later finds it vacant."""
        with self.store.lock():
            if os.listdir(self.store.active):
                return False
            os.close(self.handle)
        return True

    def _cycle(self) -> None:
        reaped = self._reap()
        self._refresh({self.launched[pid][0] for pid in reaped})
        for pid, status in reaped.items():
            number, index, _, _ = self.launched.pop(pid)
            if number in self.jobs and self.jobs[number].record(index)["state"] == "PENDING":
                self._not_started(number, index, status)
        for job in list(self.jobs.values()):
            self._settle(job)
        self._start_ready()
        done = [job for job in self.jobs.values() if job.is_ended()]
        if done:
            self.store.archive(done)
            for job in done:
                del self.jobs[job.number]

    def _reap(self) -> dict[int, int]:
        ended: dict[int, int] = {}
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return ended
            if pid == 0:
                return ended
            if pid in self.launched:
                ended[pid] = status

    def _refresh(self, dirty: set[int]) -> None:
        """Read what changed on disk since the last look."""
        numbers = self.store.numbers(self.store.active)
        for number in self.jobs.keys() - set(numbers):
            del self.jobs[number]
        for number in numbers:
            path = os.path.join(self.store.active, str(number))
            try:
                stamp = os.stat(path).st_mtime_ns
                if number not in self.jobs:
                    self.jobs[number] = Job(number, path)
                elif stamp != self.stamps.get(number) or number in dirty:
                    self.jobs[number].reload()
                # Two changes may carry the same time: believe only one that is old enough.
                self.stamps[number] = stamp if time.time_ns() - stamp > 10**8 else 0
            except FileNotFoundError:
                continue
            except OSError as exc:
                self._complain(f"job {number}: {exc}")

    def _not_started(self, number: int, index: int | None, status: int) -> None:
        code = os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1
        if code == 0:  # it found that the job is not what this manager thinks
            with suppress(FileNotFoundError):
                self.jobs[number] = Job(number, self.jobs[number].path)
        count, _ = self.failures.get((number, index), (0, 0.0))
        count += code not in (0, EXIT_LATER)
        self.failures[number, index] = (count, time.monotonic() + TICK)
        if count >= 3:
            message = f"no supervisor could be started; see {self.store.path('daemon.log')}"
            self._finish(self.jobs[number], index, "LAUNCH_FAILURE", message)

    def _finish(self, job: Job, index: int | None, reason: str, message: str) -> None:
        final = ended_record("FAILED", reason, message)
        self.store.settle(job.number, index, final)
        job.records[index] = final

    def _settle(self, job: Job) -> None:
        """Record the ends that nobody else can record."""
        if job.rest and (job.broken or job.rest.get("unwritten")):
            self.store.settle_rest(job.number, dict(job.rest))
            job.rest.pop("unwritten", None)
        for index, record in list(job.records.items()):
            if record.get("unwritten"):
                self.store.settle(job.number, index, dict(record))
                del record["unwritten"]
            elif record["state"] == "RUNNING" and job.is_lost(index):
                final = job.lost_record(index)
                if record["supervisor"].endswith(":" + BOOT):
                    token = job.token(index)
                    left = sweep(lambda t=token: job_processes(t, self.store.root), 5.0)  # type: ignore[misc]
                    if left:
                        final["message"] += f"; {left} of its processes could not be killed"
                self.store.settle(job.number, index, final)
                job.records[index] = read_record(job.record_path(index))

    def _start_ready(self) -> None:
        """Start what can start: first come, first served."""
        total, gpu_total = self.store.totals()
        free, gpus = total, set(range(gpu_total))
        for job in self.jobs.values():
            for record in job.records.values():
                if record["state"] == "RUNNING":
                    free -= record["slots"]
                    gpus -= set(record["gpus"])
        waiting = set()
        for number, index, slots, devices in self.launched.values():
            if number in self.jobs and self.jobs[number].record(index)["state"] == "PENDING":
                waiting.add((number, index))
                free -= slots
                gpus -= set(devices)
        known = dict(self.jobs)
        for number in sorted(self.jobs):
            job = self.jobs[number]
            if job.rest or len(job.records) == len(job.indexes):
                continue
            verdict, message = self.store.dependency(job, known)
            if verdict == "BROKEN":
                final = ended_record("CANCELLED", "DEPENDENCY", message)
                self.store.settle_rest(number, final)
                job.rest = final
            elif verdict == "READY":
                room = self._start_tasks(job, waiting, (total, free), (gpu_total, gpus))
                if room is None:
                    return
                free = room

    def _start_tasks(
        self,
        job: Job,
        waiting: set[tuple[int, int | None]],
        slots: tuple[int, int],
        gpus: tuple[int, set[int]],
    ) -> int | None:
        """Start tasks of a job; return the slots left, None when those behind must wait."""
        total, free = slots
        need, need_gpus = job.slots(total), job.gpus()
        if need > total or need_gpus > gpus[0]:
            message = (
                f"it needs {need} slots and {need_gpus} GPUs, but this host has only {total} "
                f"and {gpus[0]} by now; submit a smaller one, or see 'config --slots N'"
            )
            final = ended_record("FAILED", "LAUNCH_FAILURE", message)
            self.store.settle_rest(job.number, final)
            job.rest = final
            return free
        busy = sum(record["state"] == "RUNNING" for record in job.records.values())
        busy += sum(number == job.number for number, _ in waiting)
        for index in job.indexes:
            if index in job.records or (job.number, index) in waiting:
                continue
            if job.limit is not None and busy >= job.limit:
                break
            later = self.failures.get((job.number, index), (0, 0.0))[1] > time.monotonic()
            if need > free or need_gpus > len(gpus[1]) or later:
                return None
            devices = sorted(gpus[1])[:need_gpus]
            self._launch(job.number, index, need, devices)
            free -= need
            gpus[1].difference_update(devices)
            busy += 1
        return free

    def _launch(self, number: int, index: int | None, slots: int, devices: list[int]) -> None:
        shown = ",".join(map(str, devices)) or "-"
        words = ["_supervise", task_id(number, index), str(slots), shown, self.identity]
        pid = spawn(self.store, words, token=self.jobs[number].token(index))
        self.launched[pid] = (number, index, slots, devices)


# ---------------------------------------------------------------- supervisor

SUPERVISOR_SIGNALS = (
    signal.SIGUSR1,
    signal.SIGCHLD,
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
)


class Supervisor:
    """The parent of one running task: starts it, bounds it, and records its end."""

    def __init__(self, store: Store, job: Job, index: int | None) -> None:
        self.store = store
        self.job = job
        self.index = index
        self.identity = own_identity()
        self.subreaper = be_subreaper()
        self.record: dict[str, Any] = {}
        self.pid = 0
        self.errors = -1
        self.status: int | None = None
        self.end_time: float | None = None
        self.childless = False

    def claim(self, slots: int, gpus: list[int], manager: str) -> bool:
        """Make the task RUNNING; False when it is not to be started any more.

        A manager that was replaced has no say: its successor may have given the slots away.
        """
        spec = self.job.spec
        names = [self.store.host]
        if spec["simulate-nodes"]:
            names = [f"{self.store.host}-{rank}" for rank in range(spec["nodes"])]
        with self.store.lock():
            if current_record(self.job.path, self.index)["state"] != "PENDING":
                return False
            if self.store.read("manager.json").get("identity") != manager:
                return False
            self.record = {
                **{"state": "RUNNING", "supervisor": self.identity, "start_time": time.time()},
                **{"slots": slots, "gpus": gpus, "nodes": names},
            }
            self.store.write(self.job.record_path(self.index), self.record)
        return True

    def run(self) -> None:
        """Run the task to its end and record that."""
        try:
            self._start()
        except (OSError, ValueError) as exc:
            self._record_end({"state": "FAILED", "reason": "LAUNCH_FAILURE", "message": str(exc)})
            return
        cause, grace = self._watch()
        if cause and self._hold():
            self._terminate(grace)
        elif cause != "ABANDONED":
            cause = ""
        left = sweep(self._members)
        self._reap()
        if cause == "ABANDONED":
            return
        final = self._verdict(cause)
        if left:
            final["message"] += f"; {left} of its processes could not be killed"
        self._record_end(final)

    def _start(self) -> None:
        env = self._environment(read_json(os.path.join(self.job.path, "env.json")))
        self.errors, errors = os.pipe()
        self.pid = os.fork()
        if self.pid:
            os.close(errors)
            return
        try:
            os.setsid()
            default_signals()
            self._become_job(env)
        except BaseException as exc:
            os.write(errors, str(exc).encode("utf-8", "backslashreplace")[:4000])
        finally:
            os._exit(127)

    def _become_job(self, env: dict[str, str]) -> None:
        spec = self.job.spec
        os.umask(spec["umask"])
        os.chdir(spec["chdir"])
        logs: list[tuple[str, int]] = []
        for key in ("stdout", "stderr"):
            if key == "stderr" and not spec[key]:
                break
            path = expand(spec[key], spec, self.job.number, self.index)
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            logs.append(
                (path, os.open(path, flags | (os.O_TRUNC if path not in dict(logs) else 0), 0o666))
            )
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(logs[0][1], 1)
        os.dup2(logs[-1][1], 2)
        script = os.path.join(self.job.path, "script")
        with open(script, "rb") as file:
            first = file.readline(4096).rstrip(b"\n")
        words = ["/bin/sh"]
        if first.startswith(b"#!"):
            words = os.fsdecode(first[2:].strip()).split(None, 1)
        try:
            os.execve(words[0], [*words, script, *spec["args"]], env)
        except OSError as exc:
            raise OSError(
                exc.errno, f"{exc.strerror} (interpreter of the script)", words[0]
            ) from None

    def _environment(self, pairs: dict[str, str]) -> dict[str, str]:
        spec, record = self.job.spec, self.record
        env = dict(pairs)
        env.update(
            CJ_JOB_ID=task_id(self.job.number, self.index),
            CJ_SUBMIT_DIR=spec["submit_dir"],
            CJ_SUBMIT_HOST=self.store.host,
            CJ_JOB_NAME=spec["jobname"],
            CJ_NODELIST=",".join(record["nodes"]),
            CJ_NODES=str(spec["nodes"]),
            CJ_PPN=str(spec["ppn"]),
            CJ_THREADS=str(spec["threads"]),
            CJ_GPUS=str(spec["gpus"]),
            CJ_COMMENT=spec["comment"],
            CJ_PYTHON=sys.executable,
            CJ_EMBEDDED=HERE,
            CJ_SUPERVISOR=str(os.getpid()),
            CJDASK_EMBEDDED_DIR=self.store.root,
            **{TOKEN: self.job.token(self.index)},
        )
        if self.index is not None:
            env.update(CJ_ARRAY_JOB_ID=str(self.job.number), CJ_ARRAY_INDEX=str(self.index))
        if spec["time"]:
            env["CJ_END_TIME"] = str(int(record["start_time"] + spec["time"]))
        if self.store.totals()[1]:
            env["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, record["gpus"]))
        return env

    def _watch(self) -> tuple[str, float]:
        """Wait for the end of the script; else return why to end it, and the grace for that."""
        limit = self.job.spec["time"]
        deadline = time.monotonic() + limit if limit else float("inf")
        grace = float(self.job.spec["grace"])
        while True:
            self._reap()
            if self.status is not None:
                return "", grace
            current = self._current()
            if current is None:
                return "ABANDONED", grace
            if "cancel" in current:
                return "CANCEL", float(current["cancel"])
            left = deadline - time.monotonic()
            if left <= 0:
                return "TIMEOUT", grace
            got = signal.sigtimedwait(SUPERVISOR_SIGNALS, min(POLL, left))
            if got and got.si_signo not in (signal.SIGUSR1, signal.SIGCHLD):
                return f"signal {got.si_signo}", grace

    def _current(self) -> dict[str, Any] | None:
        """Return the record while it is that of this supervisor."""
        try:
            record = read_record(self.job.record_path(self.index))
        except FileNotFoundError:
            return None
        except OSError:
            return self.record  # not readable now says nothing about the job
        return record if record.get("supervisor") == self.identity else None

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return
            self.childless = False
            if pid == 0:
                return
            if pid == self.pid:
                self.status, self.end_time = status, time.time()

    def _members(self) -> list[str]:
        """Return the living processes of the job."""
        self._reap()
        if self.subreaper and self.childless:
            return []  # an orphan would be a child
        token = self.job.token(self.index)
        return job_processes(token, self.store.root, os.getpid(), not self.subreaper)

    def _hold(self) -> bool:
        """Stop the script, so that it does not end by itself any more; False when it has."""
        deadline = time.monotonic() + 1.0
        options = os.WSTOPPED | os.WEXITED | os.WNOWAIT | os.WNOHANG
        self._reap()
        if self.status is None:
            os.kill(self.pid, signal.SIGSTOP)
            while not os.waitid(os.P_PID, self.pid, options) and time.monotonic() < deadline:
                time.sleep(0.001)
            self._reap()
        return self.status is None

    def _terminate(self, grace: float) -> None:
        """End the script, which is stopped, and all that it started."""
        deadline = time.monotonic() + grace
        members = self._members()
        for number in (signal.SIGTERM, signal.SIGCONT):
            for identity in members:
                send(identity, number)
        while members and time.monotonic() < deadline:
            signal.sigtimedwait((signal.SIGCHLD,), min(0.1, max(0.0, deadline - time.monotonic())))
            members = self._members()

    def _verdict(self, cause: str) -> dict[str, Any]:
        """Return how the task ended."""
        status = self.status
        code = os.WEXITSTATUS(status) if status is not None and os.WIFEXITED(status) else None
        killer = os.WTERMSIG(status) if status is not None and os.WIFSIGNALED(status) else None
        end: dict[str, Any] = {"exit_code": code, "signal": killer, "message": ""}
        complaint = b""
        if self.errors >= 0 and not cause:
            complaint = os.read(self.errors, 4096)
        if cause == "CANCEL":
            return {**end, "state": "CANCELLED", "reason": "", "message": "cancelled on request"}
        end["state"] = "FAILED"
        if cause == "TIMEOUT":
            message = f"it ran longer than its walltime of {self.job.spec['time']} s"
            return {**end, "reason": "TIMEOUT", "message": message}
        if cause:
            message = f"its supervisor was told to stop by {cause}; is the host going down?"
            return {**end, "reason": "LOST", "message": message}
        if complaint:
            message = "the job could not be started: " + complaint.decode("utf-8", "replace")
            return {**end, "exit_code": None, "reason": "LAUNCH_FAILURE", "message": message}
        if killer is not None:
            return {**end, "reason": "SIGNALED", "message": f"ended by signal {killer}"}
        if code:
            return {**end, "reason": "NONZERO_EXIT", "message": f"ended with exit code {code}"}
        return {**end, "state": "COMPLETED", "reason": ""}

    def _record_end(self, final: dict[str, Any]) -> None:
        """Write the end, however long that takes: a full disk must not lose it."""
        final = {**self.record, **final, "end_time": self.end_time or time.time()}
        complained = False
        while True:
            try:
                with self.store.lock(float("inf")):
                    if self._current() is not None:
                        self.store.write(self.job.record_path(self.index), final)
                return
            except OSError as exc:
                if not os.path.isdir(self.job.path):
                    return
                if not complained:
                    log(f"job {task_id(self.job.number, self.index)}: cannot record its end: {exc}")
                complained = True
                time.sleep(TICK)


# ---------------------------------------------------------------- commands


def emit(value: Any) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")


def read_script(path: str) -> bytes:
    """Return the content of a job script; ``-`` is standard input."""
    try:
        if path == "-":
            script = sys.stdin.buffer.read()
        else:
            with open(path, "rb") as file:
                script = file.read()
    except OSError as exc:
        raise EmbeddedError(f"cannot read the job script {path!r}: {exc.strerror}") from None
    first = script.split(b"\n", 1)[0]
    if b"\0" in first:
        raise EmbeddedError(f"{path!r} must be a script (text), not a binary program")
    if first.startswith(b"#!") and first.endswith(b"\r"):
        raise EmbeddedError(f"{path!r} has DOS line ends (\\r\\n); convert it with dos2unix")
    if first.startswith(b"#!") and not first[2:].strip():
        raise EmbeddedError(f"{path!r} names no interpreter behind '#!'; use #!/bin/sh")
    return script


def check_fits(store: Store, spec: dict[str, Any]) -> None:
    """Refuse a request that this host can never fulfil."""
    total, gpus = store.totals()
    if spec["nodes"] > 1 and not spec["simulate-nodes"]:
        raise EmbeddedError(
            f"nodes={spec['nodes']}: the embedded scheduler has one node; ask for nodes=1, or "
            "for simulated nodes on this host with --simulate-nodes"
        )
    need = spec["nodes"] * spec["ppn"] * spec["threads"]
    if need > total:
        raise EmbeddedError(
            f"nodes={spec['nodes']}, ppn={spec['ppn']}, threads={spec['threads']} need {need} "
            f"slots, and there are {total}; ask for at most {total}, or allow more with "
            "'config --slots N' or CJDASK_EMBEDDED_SLOTS"
        )
    if spec["nodes"] * spec["gpus"] > gpus:
        raise EmbeddedError(
            f"gpus={spec['gpus']} on nodes={spec['nodes']}, and there are {gpus}; ask for at most "
            f"{gpus} in all, or tell how many this host has with CJDASK_EMBEDDED_GPUS"
        )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    if spec["mem"] and spec["mem"] > memory:
        raise EmbeddedError(
            f"mem={spec['mem']} MB, and this host has {memory}; ask for at most {memory}"
        )


def grace_setting() -> float:
    """Return the seconds between TERM and KILL."""
    text = os.environ.get("CJDASK_EMBEDDED_KILL_GRACE") or str(KILL_GRACE)
    if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]+)?", text):
        raise EmbeddedError(f"CJDASK_EMBEDDED_KILL_GRACE must be seconds such as 5, not {text!r}")
    return float(text)


def cmd_submit(store: Store, words: list[str]) -> int:
    """Enter a job: ``submit [--option=value ...] SCRIPT [ARG ...]``."""
    given, rest = parse_options(words, OPTIONS)
    if not rest:
        raise UsageError("submit needs a SCRIPT: submit [--option=value ...] SCRIPT [ARG ...]")
    script = read_script(rest[0])
    name = "stdin" if rest[0] == "-" else os.path.basename(rest[0])
    umask = os.umask(0)
    os.umask(umask)
    try:
        here = os.getcwd()
    except OSError as exc:
        raise EmbeddedError(f"the current directory cannot be used ({exc}); change it") from None
    asked = {**header_options(script), **given}
    spec = {
        **DEFAULTS,
        **{"jobname": _text("the name of the script", name)},
        **{"submit_time": time.time(), "submit_dir": here, "umask": umask},
        **{"token": os.urandom(8).hex(), "grace": grace_setting(), "args": rest[1:]},
        **({"stdout": "%x-%A_%a.out"} if "array" in asked else {}),
        **asked,
        **{"chdir": os.path.normpath(os.path.join(here, asked.get("chdir", "")))},
    }
    check_fits(store, spec)
    dropped = {*JOB_VARIABLES, *RANK_VARIABLES}
    env = {key: value for key, value in os.environ.items() if key not in dropped}
    files = {"script": script, "env.json": json.dumps(env).encode()}
    files["job.json"] = json.dumps(spec).encode()
    number = store.add(files, spec)
    emit({"id": str(number)})
    sys.stdout.flush()
    try:
        ensure_manager(store)
    except OSError as exc:
        text = f"job {number} waits, no manager could be started ({exc}); any query tries again"
        print(f"{PROGRAM}: warning: {text}", file=sys.stderr)
    return 0


def waiting_reason(store: Store, job: Job, known: dict[int, Job]) -> str:
    """Return why the pending tasks of a job wait."""
    verdict = store.dependency(job, known)[0] if job.spec["depends"] else "READY"
    if verdict != "READY":
        return "DEPENDENCY"
    busy = sum(record["state"] == "RUNNING" for record in job.records.values())
    return "ARRAY_LIMIT" if job.limit is not None and busy >= job.limit else "RESOURCES"


def describe(job: Job, index: int | None, waiting: str) -> dict[str, Any]:
    """Return what a query says of a task."""
    spec = job.spec
    record = job.lost_record(index) if job.is_lost(index) else job.record(index)
    stdout = expand(spec["stdout"], spec, job.number, index)
    stderr = expand(spec["stderr"], spec, job.number, index) if spec["stderr"] else stdout
    return {
        "id": task_id(job.number, index),
        "array_id": None if index is None else str(job.number),
        "array_index": index,
        "state": record["state"],
        "reason": waiting if record["state"] == "PENDING" else record.get("reason", ""),
        "message": record.get("message", ""),
        "exit_code": record.get("exit_code"),
        "signal": record.get("signal"),
        "jobname": spec["jobname"],
        "queue": spec["queue"],
        "account": spec["account"],
        "comment": spec["comment"],
        "nodes": record.get("nodes", []),
        "slots": record.get("slots"),
        "gpus": record.get("gpus", []),
        "walltime": spec["time"],
        "mem": spec["mem"],
        "submit_time": spec["submit_time"],
        "start_time": record.get("start_time"),
        "end_time": record.get("end_time"),
        "stdout": stdout,
        "stderr": stderr,
        "workdir": spec["chdir"],
    }


def cmd_query(store: Store, words: list[str]) -> int:
    """Print one line per task: ``query [--all] [ID ...]``."""
    options, ids = parse_options(words, {"all": None})
    known: dict[int, Job] = {}
    if not ids:
        numbers = set(store.numbers(store.active))
        if "all" in options:
            numbers |= set(store.numbers(store.ended))
        ids = [str(number) for number in sorted(numbers)]
    listed = bool(options) or len(words) > len(options)
    for text in ids:
        number, index = split_id(text) or (0, None)
        job = known.get(number) or store.load(number)
        if job is not None:
            known[number] = job
        if job is None or (index is not None and index not in job.indexes):
            emit({"id": text, "state": "UNKNOWN"})
            continue
        waiting = "" if job.is_ended() else waiting_reason(store, job, known)
        for one in job.indexes if index is None else (index,):
            shown = describe(job, one, waiting)
            if listed or shown["state"] not in ENDED:
                emit(shown)
    sys.stdout.flush()
    if os.listdir(store.active):
        ensure_manager(store)
    return 0


def cancel_one(
    store: Store, jobs: dict[int, Job | None], text: str, grace: float
) -> tuple[dict[str, Any], list[str]]:
    """Cancel a job, an array or a task; return the answer and whom to tell. Needs the lock.

    ``jobs`` keeps those that were read since it is held.
    """
    number, index = split_id(text) or (0, None)
    if number not in jobs:
        jobs[number] = store.load(number)
    job = jobs[number]
    if job is None or (index is not None and index not in job.indexes):
        return {"id": text, "cancelled": False, "why": "unknown"}, []
    final = ended_record("CANCELLED", "", "cancelled before it started")
    tell = []
    pending = False
    for one in job.indexes if index is None else (index,):
        record = job.record(one)
        if record["state"] == "RUNNING" and not job.is_lost(one):
            job.records[one] = {**record, "cancel": grace}
            store.write(job.record_path(one), job.records[one])
            tell.append(record["supervisor"])
        elif record["state"] == "PENDING":
            pending = True
    if pending:
        whole = index is None
        path = os.path.join(job.path, "rest.json") if whole else job.record_path(index)
        store.write(path, final)
        if whole:
            job.rest = final
        else:
            job.records[index] = final
    if pending or tell:
        return {"id": text, "cancelled": True}, tell
    return {"id": text, "cancelled": False, "why": "already ended"}, []


def cmd_cancel(store: Store, words: list[str]) -> int:
    """End jobs and tasks: ``cancel ID ...``; does not wait for their end.

    The last go first: where the first ones run, none of the others starts in their place.
    """
    _, ids = parse_options(words, {})
    if not ids:
        raise UsageError("cancel needs an ID: cancel ID ...")
    grace = grace_setting()
    answers: list[dict[str, Any]] = []
    for first in reversed(range(0, len(ids), CANCELLED_AT_ONCE)):
        with store.lock():
            jobs: dict[int, Job | None] = {}
            some = ids[first : first + CANCELLED_AT_ONCE]
            done = [cancel_one(store, jobs, text, grace) for text in some]
        answers[:0] = [answer for answer, _ in done]
        for _, tell in done:
            for identity in tell:
                send(identity, signal.SIGUSR1)
    for answer in answers:
        emit(answer)
    sys.stdout.flush()
    if os.listdir(store.active):
        ensure_manager(store)
    return 0


def cmd_info(store: Store, words: list[str]) -> int:
    """Print what is going on: ``info``."""
    if words:
        raise UsageError(f"info takes no arguments, not {words[0]!r}")
    counts = {"PENDING": 0, "RUNNING": 0}
    used, gpus_used = 0, 0
    for number in store.numbers(store.active):
        job = store.load(number)
        for index in job.indexes if job else ():
            record = job.record(index) if job else {}
            if record["state"] in counts and not (job and job.is_lost(index)):
                counts[record["state"]] += 1
                used += record.get("slots", 0)
                gpus_used += len(record.get("gpus", ()))
    total, gpus = store.totals()
    identity = str(store.manager().get("identity", ""))
    emit(
        {
            **{"slots_total": total, "slots_used": used, "gpus_total": gpus},
            **{"gpus_used": gpus_used, "pending": counts["PENDING"], "running": counts["RUNNING"]},
            **{"state_dir": store.root, "host": store.host, "version": VERSION},
            "manager_pid": int(identity.partition(":")[0]) if identity else None,
        }
    )
    return 0


def cmd_config(store: Store, words: list[str]) -> int:
    """Change and print settings: ``config [--slots=N|auto] [--gpus=N]``."""

    def setting(name: str, value: str) -> int | None:
        return None if value == "auto" else _count(name, value, int(name == "slots"))

    changes, rest = parse_options(words, {"slots": setting, "gpus": setting})
    if rest:
        raise UsageError(f"config takes only options, not {rest[0]!r}")
    if changes:
        store.configure(changes)
        if os.listdir(store.active):
            ensure_manager(store)
    total, gpus = store.totals()
    emit({"slots": total, "gpus": gpus})
    return 0


def cmd_purge(store: Store, words: list[str]) -> int:
    """Remove the records of ended jobs: ``purge [--older-than=SECONDS]``."""
    options, rest = parse_options(words, {"older-than": _age})
    if rest:
        raise UsageError(f"purge takes only options, not {rest[0]!r}")
    jobs = [store.load(number) for number in store.numbers(store.active)]
    store.archive([job for job in jobs if job and job.is_ended() and not job.broken])
    emit({"purged": store.purge(options.get("older-than", 0.0))})
    return 0


def _age(name: str, value: str) -> float:
    if not re.fullmatch(r"[0-9]{1,10}(\.[0-9]+)?", value):
        raise EmbeddedError(f"{name} must be seconds, not {value!r}")
    return float(value)


def cmd_manage(store: Store, words: list[str]) -> int:
    """Be the manager (internal): the one word is the file that holds its lock."""
    signal.pthread_sigmask(signal.SIG_BLOCK, MANAGER_SIGNALS)
    handle = int(words[0])
    os.set_inheritable(handle, False)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    Manager(store, handle).run()
    return 0


def cmd_supervise(store: Store, words: list[str]) -> int:
    """Be the supervisor of a task (internal)."""
    signal.pthread_sigmask(signal.SIG_BLOCK, SUPERVISOR_SIGNALS)
    text, slots, shown, manager = words
    number, index = split_id(text) or (0, None)
    gpus = [int(device) for device in shown.split(",")] if shown != "-" else []
    try:
        job = Job(number, os.path.join(store.active, str(number)), records=False)
        supervisor = Supervisor(store, job, index)
        if job.broken or not supervisor.claim(int(slots), gpus, manager):
            return 0
    except FileNotFoundError:
        return 0
    except OSError as exc:
        log(f"job {text}: cannot be claimed now: {exc}")
        return EXIT_LATER
    supervisor.run()
    ensure_manager(store)
    return 0


# ---------------------------------------------------------------- launcher


def rank_devices(env: dict[str, str], node: int, local: int, ppn: int) -> str | None:
    """Return the GPUs of one process: its share of those of its node."""
    count = int(env.get("CJ_GPUS", "0"))
    if not count:
        return None
    devices = env.get("CUDA_VISIBLE_DEVICES", "").split(",")[node * count : (node + 1) * count]
    if count < ppn:
        return devices[local % count]
    return ",".join(devices[local * count // ppn : (local + 1) * count // ppn])


def _become_rank(command: list[str], rank: int, nodes: list[str], ppn: int) -> None:
    env = dict(os.environ)
    node, local = divmod(rank, ppn)
    env.update(
        CLUSTERJOB_RANK=str(rank),
        CLUSTERJOB_LOCAL_RANK=str(local),
        CLUSTERJOB_NODE_RANK=str(node),
        CLUSTERJOB_NTASKS=str(len(nodes) * ppn),
        CLUSTERJOB_NODE=nodes[node],
    )
    devices = rank_devices(env, node, local, ppn)
    if devices is not None:
        env["CUDA_VISIBLE_DEVICES"] = devices
    if rank:
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.execvpe(command[0], command, env)


def cmd_launch(words: list[str]) -> int:
    """Start ``nodes*ppn`` copies of a command in a job: ``launch -- COMMAND ...``.

    Returns the exit code of the first copy that fails, 128+N when signal N ended it.
    """
    _, command = parse_options(words, {})
    if not command:
        raise UsageError("launch needs a COMMAND: launch -- COMMAND ...")
    if not os.environ.get("CJ_NODELIST"):
        raise EmbeddedError("launch works only inside a job; submit a script that calls it")
    nodes = os.environ["CJ_NODELIST"].split(",")
    ppn = int(os.environ.get("CJ_PPN", "1"))
    wanted = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    running = set()
    for rank in range(len(nodes) * ppn):
        pid = os.fork()
        if pid:
            running.add(pid)
            continue
        code = 127
        try:
            default_signals()
            _become_rank(command, rank, nodes, ppn)
        except OSError as exc:
            code = 127 if isinstance(exc, FileNotFoundError) else 126
            os.write(2, f"{PROGRAM}: error: cannot start {command[0]!r}: {exc.strerror}\n".encode())
        finally:
            os._exit(code)
    supervisor = os.environ.get("CJ_SUPERVISOR", "")
    first = 0
    while running:
        got = signal.sigwaitinfo(wanted)
        if got.si_signo != signal.SIGCHLD and str(got.si_pid) != supervisor:
            for pid in running:  # a supervisor tells all processes of a job itself
                os.kill(pid, got.si_signo)
        pid = -1
        while running and pid:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid in running:
                running.remove(pid)
                signalled = os.WIFSIGNALED(status)
                code = 128 + os.WTERMSIG(status) if signalled else os.WEXITSTATUS(status)
                first = first or code
    return first


# ---------------------------------------------------------------- main

COMMANDS = {
    "submit": cmd_submit,
    "query": cmd_query,
    "cancel": cmd_cancel,
    "info": cmd_info,
    "config": cmd_config,
    "purge": cmd_purge,
}
INTERNAL = {"_manage": cmd_manage, "_supervise": cmd_supervise}


def default_state() -> str:
    """Return the state directory that is used when none is named: one per host."""
    chosen = os.environ.get("CJDASK_EMBEDDED_DIR")
    if chosen:
        return chosen
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(home, "cjdask", "embedded-" + os.uname().nodename)


def dispatch(words: list[str]) -> int:
    """Run one command line and return its exit code."""
    if words and words[0] in ("-h", "--help"):
        sys.stdout.write(__doc__ or "")
        return 0
    options, rest = parse_options(words, {"state": _text})
    names = ", ".join([*COMMANDS, "launch"])
    if not rest:
        raise UsageError(f"a command is missing; the commands are: {names}")
    command, arguments = rest[0], rest[1:]
    if command == "launch":
        return cmd_launch(arguments)
    root = os.path.realpath(os.path.expanduser(options.get("state") or default_state()))
    try:
        store = Store(root)
        if command in INTERNAL:
            return INTERNAL[command](store, arguments)
        if command not in COMMANDS:
            raise UsageError(f"unknown command {command!r}; the commands are: {names}")
        store.prepare()
        return COMMANDS[command](store, arguments)
    except BrokenPipeError:
        raise
    except OSError as exc:
        raise StateError(
            f"state directory {root!r} cannot be used: {exc}; repair that, or choose another "
            "with --state DIR or CJDASK_EMBEDDED_DIR"
        ) from exc


def main(words: list[str] | None = None) -> int:
    """Run the program and return its exit code."""
    try:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        code = dispatch(sys.argv[1:] if words is None else words)
        sys.stdout.flush()
        return code
    except EmbeddedError as exc:
        print(f"{PROGRAM}: error: {exc}", file=sys.stderr)
        return exc.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # nobody reads: stay silent at exit
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
