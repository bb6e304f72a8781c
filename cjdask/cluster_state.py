"""What this machine keeps of a cluster whose Dask scheduler runs elsewhere, to take it up again."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import tempfile
from contextlib import suppress
from datetime import timedelta
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from distributed.security import Security

from cjdask.errors import ClusterjobError

__all__ = ["ClusterState", "read_security", "write_json"]

FORMAT = 1
"""The version of the file; one that a release cannot read has another number."""
_KIND = "cjdask cluster"


def states_folder() -> Path:
    """Return the folder of all clusters' states, that of the user."""
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "cjdask" / "clusters"


class ClusterState:
    """The state of one cluster, which one process at a time has.

    ``runs`` is the journal of its jobs.
    """

    def __init__(self, name: str) -> None:
        if not re.fullmatch(r"\w[\w.-]{0,99}", name):
            raise ClusterjobError(
                f"name={name!r}: the name of a cluster that can be taken up again has letters, "
                "digits, and _ . - behind the first one"
            )
        self.name = name
        self.folder = states_folder() / name
        self.runs = self.folder / "runs"
        self._file = self.folder / "cluster.json"
        self._lock: int | None = None
        self._saved: dict[str, Any] = {}

    def create(self) -> None:
        """Take the name for a new cluster.

        Raises:
            ClusterjobError: there is a cluster of this name, or the folder cannot be made.
        """
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise ClusterjobError(f"{self.folder} cannot be made: {error}") from error
        self._take()
        if self._file.exists():
            self.release()
            raise ClusterjobError(
                f"there is a cluster named {self.name!r}: take it up by "
                f"ClusterjobCluster.from_name({self.name!r}), or give another name"
            )

    def open(self) -> dict[str, Any]:
        """Take the state of a cluster that was left running, and return it.

        Raises:
            ClusterjobError: there is none of that name, another process has it, or it cannot
                be read.
        """
        if not self._file.exists():
            known = sorted(path.parent.name for path in states_folder().glob("*/cluster.json"))
            close = get_close_matches(self.name, known, 3) or known[:10]
            hint = f"; there are {', '.join(close)}" if close else ""
            raise ClusterjobError(f"there is no cluster named {self.name!r} to take up{hint}")
        self._take()
        try:
            data: dict[str, Any] = json.loads(self._file.read_text())
            if data.pop("kind") != _KIND or data.pop("format") != FORMAT:
                raise ValueError("it is of another version of cjdask")
        except (OSError, ValueError, KeyError) as error:
            self.release()
            raise ClusterjobError(f"{self._file} cannot be read: {error}") from error
        self._saved = data
        return data

    def _take(self) -> None:
        path = self.folder / "lock"
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(lock, 100).decode() or "another process"
            os.close(lock)
            raise ClusterjobError(
                f"the cluster {self.name!r} is in use by {owner}; call its detach(), or end it"
            ) from None
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()}".encode())
        self._lock = lock

    def save(self, **data: Any) -> None:
        """Write what is to be kept, if it is not what is there; for the owner alone.

        Raises:
            ClusterjobError: a value cannot be kept as text, or the file not be written.
        """
        if data == self._saved:
            return
        try:
            write_json(self._file, {"kind": _KIND, "format": FORMAT, **data})
        except TypeError as error:
            raise ClusterjobError(
                f"an option cannot be kept to take up the cluster again: {error}"
            ) from error
        except OSError as error:
            raise ClusterjobError(f"{self._file} cannot be written: {error}") from error
        self._saved = data

    def release(self) -> None:
        """Let other processes have it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def discard(self) -> None:
        """Forget the cluster, which is no more."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self.release()


def write_json(path: Path, data: dict[str, Any]) -> None:
    """Write a file in one step, for its owner alone; when this returns it is on the disk."""
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=1, default=_plain)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(temporary)
        raise


def _plain(value: Any) -> Any:
    """Return what stands for a value that JSON has not."""
    if isinstance(value, timedelta):
        return f"{value.total_seconds()}".removesuffix(".0") + "s"
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"{value!r} is no text and no number")


def read_security(security: Security | None) -> dict[str, Any]:
    """Return the parts of a security, certificates and keys as text; empty for none.

    >>> read_security(None)
    {}
    """
    found: dict[str, Any] = {}
    for name in Security.__slots__ if security is not None else ():
        value = getattr(security, name)
        if name.endswith(("_cert", "_key", "_file")) and value is not None and "\n" not in value:
            value = Path(value).expanduser().read_text()
        if isinstance(value, str | bool):
            found[name] = value
    return found
