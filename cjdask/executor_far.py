"""The folder of calls whose jobs are on another machine.

It is there, and a folder here has what came back. Both look as `cjdask.executor_folder` tells,
but for what only one side needs: ``calls``, logs and records are there, the manifest and the
journal are here, so that a program which was killed goes on from here.

One command fetches all outcomes that are there, and removes those which it brought before: what
was under way when a link broke comes again. What has come is kept here as if it was written here.
"""

from __future__ import annotations

import hashlib
import io
import logging
import os
import posixpath
import re
import secrets
import tarfile
import threading
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from importlib.resources import files as package_files
from typing import Any

from cjdask.command import Command, Output
from cjdask.errors import PayloadError, ProtocolError
from cjdask.executor_folder import CallFolder, PackedTask
from cjdask.protocols import protocol_for

__all__ = ["DEFAULT_THERE", "FarFolder"]

logger = logging.getLogger(__name__)

DEFAULT_THERE = "~/.cjdask/calls"
"""Where calls are put on another machine."""
SOONEST = 2.0
"""Seconds between two looks for outcomes at least."""
LATEST = 10.0
"""The same at most, when nothing has come for long."""
BIG = 4 << 20
"""Bytes from which on an outcome is copied by itself, and gone on with where a link broke."""
MOST = 16 << 20
"""Bytes of others that one command brings at most."""
MOST_FILES = 4000
COMMAND_WITHIN = 60.0
FETCH_WITHIN = 600.0
TAIL_BYTES = 8000
"""How much of a log is looked at."""

_NAME = re.compile(r"[\w-][\w.-]*")

_PREPARE = r"""
umask 077
mkdir -p -- "$1" "$2" || exit
[ -d "$1" ] && [ ! -L "$1" ] && [ -O "$1" ] || { echo "it is not a folder of yours" >&2; exit 1; }
chmod 700 -- "$1" "$2" || exit
(cd -- "$2" && xargs -r rm -f --)
[ -e "$3" ] || echo missing
"""
"""What has come goes before calls of the same name are made again."""
_TAKE = r"""
cd -- "$1" 2>/dev/null || { cat >/dev/null; echo; echo; exit 0; }
xargs -r rm -f --
list=$(find . -maxdepth 1 -type f ! -name '.*' -printf '%s %f\n')
printf '%s\n\n' "$list"
printf '%s\n' "$list" | awk -v big="$2" -v most="$3" -v files="$4" '
    NF == 2 && $1 < big && $2 !~ /\.resume$/ {
        sum += $1; if (sum > most || ++count > files) exit; print $2
    }' | tar -c -f - --no-recursion -T - 2>/dev/null
exit 0
"""
"""Removes the files that its input names; prints sizes and names of all others, and an archive."""
_CLEAN = r"""
cd -- "$1" 2>/dev/null || exit 0
asked=$(cat)
kept=results/.keep.$$
mkdir -p results
printf '%s\n' "$asked" | sed -n 's/^-//p' | (cd results && xargs -r rm -f --)
find results -maxdepth 1 -type f \( -name "$2.*" -o -name "*.$2.*" \) ! -name '*.resume' -delete
printf '%s\n' "$asked" | sed -n 's/^+//p' >"$kept"
if [ -d "$2" ]; then
    find "$2" -type f | grep -vxFf "$kept" | tr '\n' '\0' | xargs -0 -r rm -f --
    [ -z "$3" ] || find "$2" -depth -type d -empty -delete
fi
rm -f "$kept"
"""
"""Cleans up after a batch. Its input names outcomes that have come, and logs that stay."""
_LEAVE = r"""
cd -- "$1" 2>/dev/null || exit 0
(cd results && xargs -r rm -f --)
for folder in */; do case $2$folder in xresults/) ;; x*) exit 0 ;; esac; done
rmdir results 2>/dev/null && cd .. && rmdir -- "$1" 2>/dev/null
exit 0
"""
_TAILS = r"""
while IFS= read -r path; do
    printf '\n%s\n' "$1"
    tail -c "$3" -- "$path" 2>/dev/null | tail -n "$2"
done
"""


class FarFolder(CallFolder):
    """A folder on another machine, and what came from it in one of this machine.

    ``parent`` is the folder there that it is made in; where it is known already ``place`` has
    it. All methods may be called from several threads.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        remote: str,
        ssh: str,
        parent: str = DEFAULT_THERE,
        durable: bool = False,
        there: str | None = None,
    ) -> None:
        super().__init__(path, durable)
        self._remote, self._ssh = remote, ssh
        self.protocol = protocol_for(remote, ssh)
        self._parent = parent
        self._there = there
        self._lock = threading.RLock()
        self._came: set[str] = set()
        """Outcomes that are here, and are to go there with the next command."""
        self._saved: set[str] = set()
        """Calls that have saved themselves; what they saved stays there."""
        self._left: list[tuple[str, tuple[str, ...], list[str]]] = []
        """What could not be cleaned up, as the link was down."""
        self._looked_at = float("-inf")
        self._tried_at = self._next = 0.0
        self._pause = SOONEST
        self._silent = False

    def __repr__(self) -> str:
        return f"<FarFolder {self._there or self._parent} on {self.protocol.host}>"

    # -- as the jobs see it ----------------------------------------------------------------------

    @property
    def there(self) -> str:
        with self._lock:
            if self._there is None:
                name = self._lasting_name() if self.durable else os.path.basename(self.path)
                self._there = posixpath.join(self.protocol.expand(self._parent), name)
            return self._there

    def _lasting_name(self) -> str:
        """Return the name of the folder there that belongs to the one here for good."""
        target = os.path.join(self.path, "there")
        temporary = f"{target}.{secrets.token_hex(4)}"
        try:
            with open(temporary, "w", encoding="ascii") as file:
                file.write(f"m{secrets.token_hex(8)}")
                file.flush()
                os.fsync(file.fileno())
            with suppress(FileExistsError):
                os.link(temporary, target)
            os.unlink(temporary)
            with open(target, encoding="ascii") as file:
                return file.read()
        except OSError as error:
            raise PayloadError(f"{target} cannot be written: {error}") from error

    @property
    def place(self) -> tuple[str, str, str]:  # type: ignore[override]
        return self._remote, self._ssh, self.there

    @property
    def runner(self) -> str:
        content = package_files("cjdask").joinpath("executor_runner.py").read_bytes()
        mark = hashlib.sha256(content).hexdigest()[:12]
        return self.protocol.expand(f"~/.local/share/cjdask/runner-{mark}")

    @property
    def cwd(self) -> str:
        return self.protocol.expand("~")

    def import_paths(self, given: Sequence[str]) -> list[str]:
        return [self.protocol.expand(path) for path in given]

    # -- putting ---------------------------------------------------------------------------------

    def prepare(self) -> None:
        super().prepare()
        program = posixpath.join(self.runner, "executor_runner.py")
        with self._lock:
            done = sorted(self._came)
            made = self._run(_PREPARE, self.there, self.results_there, program, lines=done)
            self._came.difference_update(done)
        if made.exit_code != 0:
            raise PayloadError(
                f"the folder {self.there} on {self.protocol.host} for calls cannot be used "
                f"({made.stderr.strip()}); give the executor another folder=..., one that the "
                "nodes there see too"
            )
        if made.stdout.strip():
            content = package_files("cjdask").joinpath("executor_runner.py").read_bytes()
            self.protocol.create(program, content)

    def put(self, batch: str, setup: dict[str, Any], tasks: Sequence[PackedTask]) -> None:
        super().put(batch, setup, tasks)
        calls = os.path.join(self.batch(batch), "calls")
        try:
            self.protocol.upload([calls], posixpath.join(self.batch_there(batch), "calls"))
        finally:
            os.unlink(calls)
        self._hurry()

    def _hurry(self) -> None:
        """Look often for a while."""
        with self._lock:
            self._pause = SOONEST
            self._next = min(self._next, time.monotonic() + SOONEST)

    # -- fetching --------------------------------------------------------------------------------

    def arrived(self, fresh: bool = False) -> list[str]:
        with self._lock:
            if fresh:
                self._next = min(self._next, self._tried_at + SOONEST)
            if time.monotonic() >= self._next:
                try:
                    self._look()
                except ProtocolError as error:
                    self._next = time.monotonic() + SOONEST
                    if not self._silent:
                        logger.warning("outcomes cannot be fetched now, trying on: %s", error)
                    self._silent = True
            return [*self._listed(), *self._saved]

    def current(self) -> list[str]:
        with self._lock:
            since = time.monotonic()
            while not self.looked_since(since):
                self._look()
            return [*self._listed(), *self._saved]

    def looked_since(self, moment: float) -> bool:
        return self._looked_at >= moment

    def _look(self) -> None:
        """Fetch what is there, as much as one command may bring.

        Raises:
            ProtocolError: the link is down.
        """
        began = self._tried_at = time.monotonic()
        self._catch_up()
        limits = (str(BIG), str(MOST), str(MOST_FILES))
        done = sorted(self._came)
        output = self._run(_TAKE, self.results_there, *limits, lines=done, within=FETCH_WITHIN)
        if output.exit_code != 0:
            raise ProtocolError(f"outcomes on {output.host} cannot be read: {output.stderr}")
        self._came.difference_update(done)
        listing, _, archive = output.raw_stdout.partition(b"\n\n")
        sizes = _sizes(listing.decode("utf-8", "replace"))
        self._saved = {name for name in sizes if name.endswith(".resume")}
        wanted = {name: size for name, size in sizes.items() if name not in self._saved}
        self._unpack(archive)
        self._copy([name for name, size in wanted.items() if size >= BIG])
        more = any(size < BIG and name not in self._came for name, size in wanted.items())
        self._pause = SOONEST if wanted else min(self._pause * 1.2, LATEST)
        self._next = time.monotonic() if more and wanted else time.monotonic() + self._pause
        if not more:
            self._looked_at = began
        if self._silent:
            logger.warning("outcomes can be fetched again from %s", self.protocol.host)
            self._silent = False

    def _unpack(self, archive: bytes) -> None:
        if not archive:
            return
        try:
            with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
                for member in tar:
                    name = member.name.removeprefix("./")
                    file = tar.extractfile(member) if _NAME.fullmatch(name) else None
                    if file is not None:
                        self._write(name, file.read())
                        self._came.add(name)
        except tarfile.TarError as error:
            raise ProtocolError(f"outcomes from {self.protocol.host} are cut: {error}") from error

    def _copy(self, names: Sequence[str]) -> None:
        for name in names:
            with suppress(FileNotFoundError):  # another program of this cache has it now
                source = posixpath.join(self.results_there, name)
                self.protocol.download([source], os.path.join(self.results, name))
            self._came.add(name)

    def _write(self, name: str, data: bytes) -> None:
        temporary = os.path.join(self.results, f".{name}.{os.getpid()}")
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with open(os.open(temporary, flags, 0o600), "wb") as file:
            file.write(data)
            if self.durable:
                file.flush()
                os.fsync(file.fileno())
        os.rename(temporary, os.path.join(self.results, name))

    def store(self, name: str, outcome: bytes) -> None:
        with self._lock:
            self._write(name, outcome)
            self._came.add(name)

    def remove(self, name: str) -> None:
        super().remove(name)
        with self._lock:
            self._came.add(name)

    def tails(self, paths: Sequence[str], lines: int) -> list[str]:
        token = secrets.token_hex(8)
        try:
            output = self._run(_TAILS, token, str(lines), str(TAIL_BYTES), lines=paths)
        except ProtocolError as error:
            logger.info("logs cannot be read now: %s", error)
            return [""] * len(paths)
        found = output.stdout.split(f"\n{token}\n")[1:]
        return [*found, *[""] * (len(paths) - len(found))]

    # -- cleaning up -----------------------------------------------------------------------------

    def clean(self, batch: str, keep: Collection[str] = (), folders: bool = True) -> None:
        super().clean(batch)
        start = f"{self.there}/"
        kept = [f"+{path.removeprefix(start)}" for path in keep if path.startswith(start)]
        with self._lock:
            done = sorted(self._came)
            self._do(
                _CLEAN,
                self.there,
                batch,
                "x" if folders else "",
                lines=[*(f"-{name}" for name in done), *kept],
            )
            self._came.difference_update(done)

    def remove_if_empty(self) -> None:
        super().remove_if_empty()
        if self.durable and next(self.batches(), None) is not None:
            return
        with self._lock:
            shared = "x" if self.durable else ""
            self._do(_LEAVE, self.there, shared, lines=sorted(self._came))
            self._came.clear()

    def _do(self, script: str, *arguments: str, lines: Sequence[str]) -> None:
        """Clean something up; where the link is down, later."""
        self._left.append((script, arguments, list(lines)))
        try:
            self._catch_up()
        except ProtocolError as error:
            logger.info("files of calls stay on %s for now: %s", self.protocol.host, error)

    def _catch_up(self) -> None:
        while self._left:
            script, arguments, lines = self._left[0]
            self._run(script, *arguments, lines=lines)
            del self._left[0]

    def _run(
        self,
        script: str,
        *arguments: str,
        lines: Sequence[str] = (),
        within: float = COMMAND_WITHIN,
    ) -> Output:
        text = "".join(f"{line}\n" for line in lines)
        argv = ("/bin/sh", "-c", script, "cjdask", *arguments)
        return self.protocol.run(Command(argv, input=text, env={"LC_ALL": "C"}), within)


def _sizes(listing: str) -> dict[str, int]:
    """Read sizes and names.

    >>> _sizes("12 c1.ok\\n7 c2.b1.error")
    {'c1.ok': 12, 'c2.b1.error': 7}
    """
    pairs = (line.partition(" ") for line in listing.splitlines() if line)
    return {name: int(size) for size, _, name in pairs if _NAME.fullmatch(name)}
