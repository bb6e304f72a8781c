"""What is known of a job that is known by its id only."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import Any

from cjdask.command import Command
from cjdask.journal import Entry
from cjdask.resources import Resources
from cjdask.run_record import RECORDS
from cjdask.scheduler import COMMAND_TIMEOUT, Scheduler

__all__ = ["found_entry"]

_SEARCH = """
cd -- "$1" 2>/dev/null || exit 0
find . -maxdepth 1 -name 'cjdask-*.begin' -exec grep -lF "\\"job_id\\": \\"$2\\"" {} + | head -n 1
"""


def found_entry(
    scheduler: Scheduler, job_id: str, folder: str, resources: Mapping[str, Any]
) -> Entry:
    """Return what a journal would have of a job, with the record that it left in its folder.

    Raises:
        ResourcesNotSupportedError: the resources are wrong.
        ProtocolError: the machine could not be asked.
    """
    place = scheduler.protocol.expand(folder)
    records = os.path.join(place, RECORDS)
    search = Command.ask("/bin/sh", "-c", _SEARCH, "sh", records, job_id)
    name = scheduler.protocol.run(search, COMMAND_TIMEOUT).stdout.strip().removeprefix("./")
    tag = name.partition(".")[0] or f"cjdask-{secrets.token_hex(12)}"
    return Entry(
        tag=tag,
        backend=scheduler.name,
        remote=scheduler.remote,
        ssh=scheduler.ssh,
        resources=Resources.of(resources).plain(),
        folder=place,
        record=os.path.join(records, tag),
        local_folder=os.getcwd(),
        written=0.0,
        job_id=job_id,
    )
