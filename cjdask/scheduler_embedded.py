"""The embedded scheduler on another machine: its one file is copied there."""

from __future__ import annotations

import hashlib
import logging
import posixpath

from cjdask.backends import ClusterjobBackend
from cjdask.backends.local import PROGRAM, LocalBackend
from cjdask.command import Command
from cjdask.errors import SchedulerUnavailableError
from cjdask.protocols.base import Protocol
from cjdask.scheduler import Scheduler

__all__ = ["EmbeddedScheduler"]

logger = logging.getLogger(__name__)

OLDEST = (3, 8)
"""The oldest Python that the embedded scheduler runs with."""

_PYTHON = r"""
wanted='import sys; sys.exit(sys.version_info < (3, 8))'
for name in "$@" python3 python python3.13 python3.12 python3.11 python3.10 python3.9 python3.8; do
    path=$(command -v -- "$name") && "$path" -c "$wanted" 2>/dev/null && exec printf %s "$path"
done
exit 47
"""


class EmbeddedScheduler(Scheduler):
    """Keeps the slots of a machine that has no scheduler of its own.

    ``python`` is tried first there; else what is called python3 and so on.
    """

    def __init__(self, backend: LocalBackend, protocol: Protocol, python: str = "") -> None:
        super().__init__(backend, protocol)
        self.python = python

    @property
    def backend(self) -> ClusterjobBackend:
        """The backend, once its program is there.

        Raises:
            SchedulerUnavailableError: there is no Python for it.
            ProtocolError: the machine cannot be asked, or the file not be written.
        """
        with self._probing:
            if not self._probed:
                self._backend = self._installed()
                self._probed = True
            return self._backend

    def _installed(self) -> LocalBackend:
        wanted = [self.python] if self.python else []
        output = self.protocol.run(Command.ask("/bin/sh", "-c", _PYTHON, "sh", *wanted), 60)
        python = output.stdout
        if output.exit_code != 0:
            version = ".".join(map(str, OLDEST))
            raise SchedulerUnavailableError(
                f"{self.protocol.host} has no Python of version {version} or newer, which jobs "
                "without a scheduler need; install one there, or have it on the PATH of a login",
                output,
            )
        content = PROGRAM.read_bytes()
        mark = hashlib.sha256(content).hexdigest()[:12]
        path = self.protocol.expand(f"~/.local/share/cjdask/embedded-{mark}.py")
        look = Command.ask("/bin/sh", "-c", '[ -e "$1" ]', "sh", path)
        if self.protocol.run(look, 60).exit_code != 0:
            logger.info("copying the embedded scheduler to %s", self.protocol.host)
            self.protocol.create(path, content)
        return LocalBackend(python, posixpath.normpath(path))
