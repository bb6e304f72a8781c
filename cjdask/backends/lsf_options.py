"""The options of LSF's bsub, and how they are written into a job script."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import Resources

__all__ = ["COMMON", "Dialect", "default_log"]

COMMON = {
    "account": "-P",
    "exclusive": "-x",
    "queue": "-q",
    "stderr": "-e",
    "stdout": "-o",
}
"""The options that take a common key as it is."""

NOT_FOR_JOBS = ("-I", "-IS", "-ISp", "-ISs", "-IX", "-Ip", "-Is", "-K", "-V", "-XF", "-h", "-pack")
"""Options with which bsub waits for the job, or submits none or several."""

OPENLAVA = ("-is", "-sp", "-Zs")
"""All other options of OpenLava's bsub that are longer than a letter (usage message, 2.2)."""

_BYTES = {unit: 2 ** (10 * power) for power, unit in enumerate("KMGTPEZ", 1)}


def default_log(resources: Resources) -> str:
    """Return where a job writes that names no file. Without any, LSF would send it by mail."""
    return "lsf-%J_%I.out" if resources.array else "lsf-%J.out"


@dataclass(frozen=True)
class Dialect:
    """How one site's LSF wants to be spoken to.

    Args:
        ibm: it has the options of IBM LSF. Others do not refuse them but read ``-gpu`` as
            ``-g pu``, so for them they are refused here.
        unit: the unit of a plain amount of memory, as ``LSF_UNIT_FOR_LIMITS`` in lsf.conf has
            it; empty where that is not set, so that limits are in KB and reservations in MB
            (bsub(1), lsf.conf(5)). ``None`` writes the unit behind the number; that needs
            10.1.0.2.
    """

    ibm: bool = True
    unit: str | None = None

    def headers(self, resources: Resources, prefix: str) -> list[str]:
        """Write the header lines.

        Raises:
            ResourcesNotSupportedError: what this LSF cannot be asked for, or two keys that say
                the same.
        """
        lines = []
        said: dict[str, str] = {}
        for key, option, value in self._options(resources):
            if said.setdefault(option, key) != key and option != "-R":
                raise ResourcesNotSupportedError(
                    f"{said[option]!r} and {key!r} both mean bsub's {option} (backend 'lsf'); "
                    "give one of them"
                )
            lines.append(f"{prefix} {option}{_written(option, value)}")
        return lines

    def _options(self, resources: Resources) -> Iterator[tuple[str, str, Any]]:
        given = resources.given()
        shape = [key for key in ("nodes", "ppn", "threads") if key in given]
        for key in given:
            if key in shape[:1]:
                cores = resources.cores_per_node
                yield key, "-n", (resources.nodes or 1) * cores
                yield key, "-R", f"span[ptile={cores}]"
            elif key in resources.native:
                yield key, self._native(key), resources.native[key]
            elif key in COMMON:
                yield key, COMMON[key], getattr(resources, key)
            elif key == "jobname" or (key == "array" and not resources.jobname):
                yield key, "-J", _name(resources)
            elif key not in shape and key != "array":
                for option, value in self._common(resources, key):
                    yield key, option, value

    def _common(self, resources: Resources, key: str) -> list[tuple[str, Any]]:
        value = getattr(resources, key)
        if key == "time":
            hours, minutes = divmod(math.ceil(value / 60), 60)
            return [("-W", f"{hours}:{minutes:02d}")]
        if key == "mem":
            # The limit may be counted over all hosts, the reservation is for each.
            limit = self._memory(value * (resources.nodes or 1), "K")
            return [("-M", limit), ("-R", f"rusage[mem={self._memory(value, 'M')}]")]
        if key == "gpus":
            self.need_ibm("gpus", "what the site made of them, such as R='rusage[gpu=1]'")
            return [("-gpu", f"num={value}")]
        # -ti ends a job whose condition can no longer come true, which else waits for ever.
        condition = " && ".join(f"done({job_id})" for job_id in value)
        return [("-w", condition), *([("-ti", True)] if self.ibm else [])]

    def _memory(self, megabytes: int, default: str) -> str:
        if self.unit is None:
            return f"{megabytes}MB"
        return str(math.ceil(megabytes * 2**20 / _BYTES[(self.unit or default)[0].upper()]))

    def _native(self, key: str) -> str:
        option = key if key.startswith("-") else f"-{key}"
        if option in NOT_FOR_JOBS:
            raise ResourcesNotSupportedError(
                f"{key!r} cannot be asked for on LSF (backend 'lsf'): bsub would wait, or not "
                "submit one job; leave it out"
            )
        if len(option) > 2 and option not in OPENLAVA:
            self.need_ibm(key, f"the options of its bsub, which reads {option} as something else")
        return option

    def need_ibm(self, key: str, instead: str) -> None:
        """Refuse what only IBM LSF can do, where the scheduler is another one."""
        if not self.ibm:
            raise ResourcesNotSupportedError(
                f"{key!r} cannot be asked of this scheduler (backend 'lsf'), which does not have "
                f"the options of IBM LSF; use {instead}"
            )


def _name(resources: Resources) -> str:
    name, array = resources.jobname or "cjdask", resources.array
    if re.search(r"[][*]", name):
        raise ResourcesNotSupportedError(
            f"jobname={name!r}: LSF (backend 'lsf') takes [ ] and * for an array or a pattern; "
            "leave them out"
        )
    if array is None:
        return name
    if array.indices[0] == 0:
        raise ResourcesNotSupportedError(
            f"array={str(array)!r}: LSF (backend 'lsf') numbers tasks from 1; say "
            f"array='1-{len(array)}' or range(1, {len(array) + 1}) for {len(array)} tasks"
        )
    return f"{name}[{array.ranges()}]" + (f"%{array.limit}" if array.limit else "")


def _written(option: str, value: Any) -> str:
    """Write a value as bsub reads it from a script: in quotes where a shell would want them."""
    if value is True:
        return ""
    text = str(value)
    if re.fullmatch(r"[\w%+,./:=@-]+", text):
        return f" {text}"
    quote = "'" if re.search(r'["\\$`]', text) else '"'
    if quote in text:
        raise ResourcesNotSupportedError(
            f"{option} {text!r}: LSF (backend 'lsf') has no way to write both kinds of quotes"
        )
    return f" {quote}{text}{quote}"
