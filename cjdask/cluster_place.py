"""A Dask scheduler that runs apart: on the login node or in a batch job, behind a port forwarded.

`Server` starts, finds and ends it, by commands that block; `PlacedScheduler` is what Dask's
`SpecCluster` takes for a scheduler.
"""

from __future__ import annotations

import asyncio
import json
import logging
import shlex
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.comm.addressing import get_address_host
from distributed.core import Status
from distributed.utils import format_dashboard_link

from cjdask.cluster_folder import make_folder
from cjdask.cluster_options import ClusterOptions
from cjdask.cluster_relay import NearRelay
from cjdask.cluster_script import Recipe, command_words
from cjdask.cluster_server import CONTACT, FORMAT, LOG, SETTINGS
from cjdask.command import Command
from cjdask.errors import ClusterjobError, JobFailed, ProtocolError, ResourcesNotSupportedError
from cjdask.jobscript import JobScript
from cjdask.journal import entries
from cjdask.protocols.base import Forward
from cjdask.run import AsyncResult
from cjdask.run_files import files_of
from cjdask.status import Status as JobStatus

if TYPE_CHECKING:
    from cjdask.cluster_state import ClusterState

__all__ = ["Contact", "PlacedScheduler", "Server"]

logger = logging.getLogger(__name__)

JOB = "dask-scheduler"
"""The id in the journal, and the name, of the job that the Dask scheduler runs in."""
STARTS_WITHIN = 90.0
"""Seconds from its start until a Dask scheduler must be there."""
ENDS_WITHIN = 10.0
"""Seconds for it to end by itself when it was told to."""
COMMAND_WITHIN = 60.0
TAIL = 3000
"""How many bytes of its log an error shows."""

_OPTIONS = ("host", "interface", "port", "protocol", "dashboard_address")
"""What can be said of a Dask scheduler that runs apart."""

_ALIVE = r"""
[ "$3" ] || [ -e "$1" ] || exit 1
[ -z "$2" ] || [ "$(uname -n)" != "${4:-$(uname -n)}" ] || kill -0 "$2" 2>/dev/null
"""
"""Tells by its contact file and its process, where it runs on this very host, whether it lives."""
_END = r"""
[ "$(uname -n)" = "${2:-$(uname -n)}" ] || exit 0
for try in 1 2 3 4 5 6 7 8 9 10; do
    kill "$1" 2>/dev/null || exit 0
    sleep 0.5
done
kill -9 "$1" 2>/dev/null || :
"""
_REACH = r"""
port=$1; shift
for host in "$@"; do
    timeout 3 bash -c "exec 3<>/dev/tcp/$host/$port" 2>/dev/null && exec echo "$host"
done
exit 1
"""


@dataclass(frozen=True)
class Contact:
    """Where a Dask scheduler that runs apart can be reached, as it told."""

    pid: int
    host: str
    addresses: tuple[str, ...]
    """Where workers may find it."""
    relay: int
    dashboard: int | None

    @classmethod
    def parse(cls, text: bytes) -> Contact:
        """Read what `cjdask.cluster_server` has written."""
        data = json.loads(text)
        if data.pop("format") != FORMAT:
            raise ClusterjobError("the Dask scheduler is of another version of cjdask")
        return cls(**{**data, "addresses": tuple(data["addresses"])})


class Server:
    """The program of the Dask scheduler on its machine; all methods block."""

    def __init__(self, recipe: Recipe, state: ClusterState, security: Mapping[str, Any]) -> None:
        options = recipe.options
        self.place = options.place
        self.protocol = options.machine.protocol
        self.recipe = recipe
        self.state = state
        self.security = dict(security)
        self.settings = _settings(options, bool(security))
        self.contact: Contact | None = None
        self.run: AsyncResult | None = None
        self._pid: int | None = None

    def path(self, name: str) -> str:
        """Return the path there of one of its files."""
        return f"{self.recipe.folder}/{name}"

    def start(self) -> None:
        """Start it, and wait until it can be connected to.

        Raises:
            ClusterjobError: it ended instead; the message has its log.
            SubmitError: the scheduler refused its job.
        """
        settings = {"format": FORMAT, "security": self.security, "options": self.settings}
        options = self.recipe.options
        words = [*command_words(options.python), "-m", "cjdask.cluster_server", self.recipe.folder]
        head = options.shebang or "#!/bin/bash"
        lines = [head, *options.prologue, f"exec {shlex.join(words)}"]
        files = {SETTINGS: json.dumps(settings), "server.sh": "\n".join(lines) + "\n"}
        make_folder(self.protocol, self.recipe.folder, files, self.recipe.log_directory)
        if self.place == "job":
            script = self.recipe.server_script(JOB, "\n".join(lines))
            self.run = script.submit(cache_id=JOB, cache_folder=self.state.runs, retry=False)
            logger.info("waiting for job %s, in which the Dask scheduler runs", self.run.job_id)
        else:
            self._pid = self._launch(shlex.split(head[2:]))
        self._await_contact()

    def _launch(self, shell: list[str]) -> int:
        script = shlex.join([*shell, self.path("server.sh")])
        launch = (
            f"cd {shlex.quote(self.recipe.workdir)} && "
            f"{{ setsid {script} >{shlex.quote(self.path(LOG))} 2>&1 </dev/null & echo $!; }}"
        )
        output = self.protocol.run(Command(("/bin/sh", "-c", launch)), COMMAND_WITHIN)
        if output.exit_code != 0:
            raise ClusterjobError(
                f"the Dask scheduler cannot be started on {self.protocol.host}: {output.stderr}"
            )
        return int(output.stdout)

    def _await_contact(self) -> None:
        """Wait for what it writes; one in a job may be queued for as long as it takes."""
        deadline = time.monotonic() + STARTS_WITHIN
        while not self.find():
            if self.run is not None:
                self.run.wait(1.0)
                if self.run.known().status is JobStatus.PENDING:
                    deadline = time.monotonic() + STARTS_WITHIN
            else:
                time.sleep(0.3)
            ended = not self._lives(starting=True)
            if (ended and not self.find()) or time.monotonic() > deadline:
                raise self._failure(ended)

    def _failure(self, ended: bool) -> ClusterjobError:
        log = self.log()
        what = "ended" if ended else f"did not come within {STARTS_WITHIN:g} s"
        if self.run is not None:
            message = f"job {self.run.job_id}, in which the Dask scheduler was to run, {what}"
            info = self.run.known()
            return JobFailed(f"{message} {info.describe() if ended else ''}", info, log)
        text = "".join(f"\n  | {line}" for line in log.splitlines()[-20:])
        return ClusterjobError(f"the Dask scheduler on {self.protocol.host} {what}{text}")

    def log(self) -> str:
        """Return the end of what it wrote."""
        try:
            if self.run is not None:
                return self.run.stderr(20)
            return self.protocol.read(self.path(LOG), TAIL).decode(errors="replace")
        except (OSError, ValueError):
            return ""

    def find(self) -> bool:
        """Read where it can be reached; tell whether it is known.

        Raises:
            ProtocolError: the machine cannot be asked.
        """
        try:
            self.contact = Contact.parse(self.protocol.read(self.path(CONTACT)))
        except FileNotFoundError:
            return False
        return True

    def ended(self) -> bool:
        """Tell whether it has ended for good, as far as that can be told now."""
        try:
            return not self._lives()
        except ProtocolError as error:
            logger.debug("the Dask scheduler cannot be looked for: %s", error)
            return False

    def _lives(self, starting: bool = False) -> bool:
        if self.run is not None and self.run.ready():
            return False
        pid, host = self._process() if self.run is None else ("", "")
        state = "starting" if starting else ""
        argv = ("/bin/sh", "-c", _ALIVE, "sh", self.path(CONTACT), pid, state, host)
        return self.protocol.run(Command(argv), COMMAND_WITHIN).exit_code == 0

    def _process(self) -> tuple[str, str]:
        """Return the number of its process and the name of its host, empty if not known."""
        if self.contact is not None:
            return str(self.contact.pid), self.contact.host
        return str(self._pid or ""), ""

    def reach(self) -> str:
        """Return the address of its host that can be reached from the machine.

        Raises:
            ClusterjobError: there is none.
        """
        assert self.contact is not None
        hosts = [get_address_host(address) for address in self.contact.addresses]
        argv = ("/bin/sh", "-c", _REACH, "sh", str(self.contact.relay), *hosts)
        found = self.protocol.run(Command.ask(*argv), COMMAND_WITHIN)
        if found.exit_code != 0:
            raise ClusterjobError(
                f"the Dask scheduler on {self.contact.host} cannot be reached from "
                f"{self.protocol.host} at any of {', '.join(hosts)}, port {self.contact.relay}"
            )
        return found.stdout.strip()

    def end(self) -> None:
        """See that it has ended, as it may have been told already; tidy up after all jobs.

        Raises:
            SchedulerError, ProtocolError: it could not be ended.
        """
        if self.run is not None:
            deadline = time.monotonic() + ENDS_WITHIN
            while not self.run.left_queue() and time.monotonic() < deadline:
                time.sleep(0.2)
            if not self.run.left_queue():
                self.run.cancel()
        else:
            pid, host = self._process()
            if pid:
                argv = ("/bin/sh", "-c", _END, "sh", pid, host)
                self.protocol.run(Command(argv), COMMAND_WITHIN)
        files = files_of(self.recipe.options.machine)
        for entry in entries(self.state.runs, JobScript.cache_prefix):
            files.over(entry.record)
        files.flush()
        self.state.discard()


def _settings(options: ClusterOptions, encrypted: bool) -> dict[str, Any]:
    """Return the keywords of the Dask scheduler.

    Raises:
        ResourcesNotSupportedError: one cannot be given to a Dask scheduler that runs apart.
    """
    for key in options.scheduler_options.keys() - set(_OPTIONS):
        raise ResourcesNotSupportedError(
            f"scheduler_options={{{key!r}: ...}}: a Dask scheduler that does not run in this "
            f"process takes {', '.join(_OPTIONS)}"
        )
    protocol = options.protocol or ("tls://" if encrypted else None)
    settings: dict[str, Any] = {"protocol": protocol, "dashboard_address": ":0", "port": 0}
    settings |= {"idle_timeout": options.idle_timeout or None, **options.scheduler_options}
    if "host" not in settings and "interface" not in settings:
        if options.interface is not None:
            settings["interface"] = options.interface
        elif options.backend == "local":
            settings["host"] = "127.0.0.1"
    return {key: value for key, value in settings.items() if value is not None}


class PlacedScheduler:
    """Stands for a Dask scheduler that runs apart; the process here reaches it by a relay."""

    status = Status.created
    contact_address: str | None = None

    def __init__(self, server: Server, taken_up: bool = False) -> None:
        self.server = server
        self.node_addresses: tuple[str, ...] = ()
        self.address = ""
        self.external_address = ""
        self.relay: NearRelay | None = None
        self._taken_up = taken_up
        self._forwards: list[Forward] = []
        self._starting: asyncio.Future[None] | None = None
        self._dashboard: Forward | None = None

    def __await__(self) -> Generator[Any, Any, PlacedScheduler]:
        async def start() -> PlacedScheduler:
            if self._starting is None:
                loop = asyncio.get_running_loop()
                self._starting = loop.run_in_executor(None, self._start)
            await asyncio.shield(self._starting)
            return self

        return start().__await__()

    def _start(self) -> None:
        server = self.server
        if not self._taken_up:
            server.start()
        elif not server.find():
            raise ClusterjobError(f"the Dask scheduler on {server.protocol.host} has ended")
        assert server.contact is not None
        host = server.reach()
        way = self._forward(server.contact.relay, host)
        self.relay = NearRelay((way.host, way.port), server.ended)
        self.relay.start()
        if server.contact.dashboard is not None:
            self._dashboard = self._forward(server.contact.dashboard, host)
        self.node_addresses = server.contact.addresses
        self.address = self.node_addresses[0]
        scheme = self.address.partition("://")[0]
        self.external_address = f"{scheme}://127.0.0.1:{self.relay.port}"
        self.status = Status.running

    def _forward(self, port: int, host: str) -> Forward:
        forward = self.server.protocol.forward(port, host)
        self._forwards.append(forward)
        return forward

    @property
    def dashboard_link(self) -> str:
        """The address of the dashboard for a browser on this machine, empty without one."""
        if self._dashboard is None:
            return ""
        link: str = format_dashboard_link(self._dashboard.host, self._dashboard.port)
        return link

    def hurry(self, patience: float) -> None:
        """Have connections fail after so many seconds without a link from now on."""
        if self.relay is not None:
            self.relay.patience = patience

    async def close(self) -> None:
        """Close what leads there; whether it goes on is not decided here."""
        if self.status == Status.closed:
            return
        self.status = Status.closed
        await asyncio.get_running_loop().run_in_executor(None, self.disconnect)

    def disconnect(self) -> None:
        """Close the ways there."""
        if self.relay is not None:
            self.relay.stop()
        while self._forwards:
            self._forwards.pop().close()
