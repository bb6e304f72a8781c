"""The options of a Dask cluster: two vocabularies and the configuration, made one.

The words of this package (``nodes ppn threads mem time``) describe each machine of a job,
those of dask-jobqueue (``cores processes memory walltime``) the job as a whole. Both may be
mixed as long as they agree. A keyword goes before the configuration.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib import resources as package_files
from shutil import which
from types import SimpleNamespace
from typing import Any

import dask.config
import yaml

from cjdask.backends import BatchBackend, ClusterjobBackend, detect_backend
from cjdask.cluster_shape import (
    Layers,
    contradiction,
    cores_to_ask_for,
    memory_of_job,
    memory_to_ask_for,
    shape_of,
    time_limit,
    whole,
)
from cjdask.cluster_times import duration, margin
from cjdask.errors import ResourcesNotSupportedError
from cjdask.jobscript_machine import machine_defaults
from cjdask.protocols import protocol_for
from cjdask.protocols.remote import RemoteProtocol
from cjdask.resources import Resources, parse_time
from cjdask.scheduler import Scheduler, scheduler_for

__all__ = ["DASK_CUDA", "DASK_WORKER", "DEFAULT", "ClusterOptions", "resolve", "resolve_pool"]

_DEFAULTS = yaml.safe_load(package_files.files("cjdask").joinpath("clusterjob.yaml").read_text())
dask.config.update_defaults(_DEFAULTS)

_RENAMED = {
    "extra": "worker_extra_args",
    "env_extra": "job_script_prologue",
    "header_skip": "job_directives_skip",
    "job_extra": "job_extra_directives",
}
"""Names that dask-jobqueue 0.9 documents as deprecated."""

DASK_WORKER = "distributed.cli.dask_worker"
"""The program of a worker, unless another is asked for."""

DASK_CUDA = "dask_cuda.cli"
"""The program of a worker that has a GPU, of the package dask-cuda."""
CUDA_WORKER = "dask_cuda.CUDAWorker"
"""The class of what it runs, by the name that its users know."""

DEFAULT = "default"
"""The name of the pool that a cluster has from the start."""

_EXTRA = ("jobname", "depends", "stdout", "stderr", "host", "dashboard_address")
KNOWN = sorted({*(key.replace("-", "_") for key in _DEFAULTS["clusterjob"]), *_EXTRA})
"""Every keyword that is not an option of one scheduler."""

_OF_THE_CLUSTER = (
    *("asynchronous", "jobs", "loop", "n_workers", "name", "scheduler_cls", "security"),
    *("shutdown_on_close", "silence_logs"),
)
ALLOWED = sorted({*KNOWN, *_OF_THE_CLUSTER})
"""Every keyword of a cluster."""

_SHARED = (
    *("backend", "protocol", "host", "dashboard_address", "scheduler_options"),
    *("shared_temp_directory", "remote", "ssh", "scheduler", "scheduler_resources"),
    *("idle_timeout",),
)
"""What all pools of a cluster share, beside the keywords of the cluster itself."""

PLACES = ("here", "login", "job")
"""Where the Dask scheduler may run."""

_REFUSED = {
    "array": "use scale(jobs=...); jobs that start together are one array anyway",
    "config_name": "the configuration is in the section 'clusterjob' of dask.config",
}


@dataclass(frozen=True)
class ClusterOptions:
    """What a cluster was asked for, checked, in one vocabulary.

    ``nodes``, ``ppn`` and ``threads`` are those of the workers; ``memory`` is what the
    workers of one job share, in bytes. ``resources`` is what the scheduler is asked for.
    ``walltime`` and ``walltime_margin``, before which workers leave, are in seconds; a margin
    of 0 is none.
    """

    backend: str
    nodes: int
    ppn: int
    threads: int
    memory: int | None
    resources: dict[str, Any]
    job_name: str
    shebang: str | None = None
    prologue: tuple[str, ...] = ()
    epilogue: tuple[str, ...] = ()
    extra_directives: tuple[str, ...] = ()
    directives_skip: tuple[str, ...] = ()
    log_directory: str | None = None
    shared_temp_directory: str | None = None
    python: str | None = None
    worker_command: str = DASK_WORKER
    worker_class: str | None = None
    worker_extra_args: tuple[str, ...] = ()
    nanny: bool = True
    death_timeout: str | float | None = None
    local_directory: str | None = None
    interface: str | None = None
    protocol: str | None = None
    max_failures: int = 3
    idle_grace: float = 0.0
    walltime: int | None = None
    walltime_margin: float = 0.0
    arrays: bool = True
    scheduler_options: dict[str, Any] = field(default_factory=dict)
    remote: str | RemoteProtocol | None = None
    ssh: str = "ssh"
    place: str = "here"
    """Where the Dask scheduler runs, one of `PLACES`."""
    scheduler_resources: dict[str, Any] = field(default_factory=dict)
    idle_timeout: float = 0.0
    """Seconds; 0 is never."""

    @property
    def machine(self) -> Scheduler:
        """The scheduler that gets the jobs."""
        return scheduler_for(self.backend, *_machine(self.remote, self.ssh))

    @property
    def workers(self) -> int:
        """The number of workers in one job."""
        return self.nodes * self.ppn

    @property
    def cores(self) -> int:
        """The number of threads of all workers of one job."""
        return self.workers * self.threads

    @property
    def successor_ahead(self) -> float:
        """The seconds before workers take no more tasks at which a job's successor is submitted."""
        return min(self.walltime_margin, ((self.walltime or 0) - self.walltime_margin) / 2)

    @property
    def worker_memory(self) -> int | None:
        """The memory limit of one worker in bytes."""
        return None if self.memory is None else self.memory // self.workers


def resolve(keywords: Mapping[str, Any], *defaults: Mapping[str, Any]) -> ClusterOptions:
    """Read the options of a cluster from keywords.

    What they leave open comes from ``defaults``, the first of which goes before the others,
    then from dask's configuration, and last from the defaults of all jobs.

    Raises:
        ResourcesNotSupportedError: two names that mean the same have different values, a
            keyword is unknown, or the scheduler cannot be asked for a resource.
        UnknownBackendError: there is no such backend.
    """
    own = Layers([*map(_modern, (keywords, *defaults)), _configured()])
    layers = Layers([*own, _modern(machine_defaults(own.get("backend")))])
    for key in (key for layer in layers for key in _REFUSED if key in layer):
        raise ResourcesNotSupportedError(f"{key}={layers.get(key)!r}: {_REFUSED[key]}")
    place = _scheduler_place(layers)  # before it is connected to
    machine = _machine(layers.get("remote"), layers.get("ssh") or "ssh")
    there = protocol_for(*machine).which if machine else which
    name = layers.get("backend") or detect_backend(there)
    backend = scheduler_for(name, *machine).backend
    nodes, ppn, threads = shape_of(layers)
    memory = memory_of_job(layers, nodes)
    asked = {
        "queue": layers.get("queue"),
        "account": layers.one("account", "project", str),
        "time": time_limit(layers, name),
        "nodes": nodes,
        "ppn": ppn,
        "threads": cores_to_ask_for(layers.get("job_cpu"), nodes, ppn, threads),
        "mem": memory_to_ask_for(layers.get("job_mem"), memory, nodes),
        **{key: layers.get(key) for key in ("gpus", "exclusive", "depends", "stdout", "stderr")},
    }
    asked = {key: value for key, value in asked.items() if value is not None}
    native = {
        key: value for layer in reversed(layers) for key, value in layer.items() if key not in KNOWN
    }
    _check(backend, asked, native)
    walltime = parse_time(asked["time"]) if "time" in asked else None
    if memory is None and "mem" in asked:
        memory = asked["mem"] * nodes * 2**20
    return ClusterOptions(
        backend=name,
        nodes=nodes,
        ppn=ppn,
        threads=threads,
        memory=memory,
        resources={**asked, **native},
        job_name=layers.one("job_name", "jobname", str),
        shebang=layers.get("shebang"),
        prologue=_lines(layers.get("job_script_prologue")),
        epilogue=_lines(layers.get("job_script_epilogue")),
        extra_directives=_lines(layers.get("job_extra_directives")),
        directives_skip=_lines(layers.get("job_directives_skip")),
        worker_extra_args=_lines(layers.get("worker_extra_args")),
        scheduler_options=_scheduler_options(layers),
        **_worker_program(layers, asked.get("gpus"), ppn),
        **place,
        idle_grace=duration("idle_grace", layers.get("idle_grace") or 0),
        walltime=walltime,
        walltime_margin=margin(layers.get("walltime_margin"), walltime),
        max_failures=whole({"max_failures": layers.get("max_failures")}, "max_failures") or 3,
        **{
            key: layers.get(key)
            for key in (
                *("log_directory", "shared_temp_directory", "python", "nanny"),
                *("death_timeout", "local_directory", "interface", "protocol", "arrays"),
            )
        },
    )


def resolve_pool(
    name: str, keywords: Mapping[str, Any], cluster: Mapping[str, Any]
) -> ClusterOptions:
    """Read the options of a pool; what its keywords leave open is as ``cluster`` was told.

    Raises:
        ResourcesNotSupportedError: as `resolve`, or a keyword is that of a whole cluster.
    """
    if not re.fullmatch(r"[A-Za-z][\w.-]*", name):
        raise ResourcesNotSupportedError(
            f"name={name!r}: the name of a pool begins with a letter, which letters, digits and "
            "_ . - may follow"
        )
    for key in keywords:
        if key in ("jobs", "n_workers"):
            raise ResourcesNotSupportedError(
                f"{key}={keywords[key]!r}: a pool has no jobs at first; call its scale({key}=...)"
            )
        if key in _OF_THE_CLUSTER or key in _SHARED:
            raise ResourcesNotSupportedError(
                f"{key}={keywords[key]!r}: all pools share it; give it to the cluster"
            )
    job_name = keywords.get("job_name") or keywords.get("jobname")
    if job_name is None:
        job_name = f"{resolve(cluster).job_name}-{name}"
    return resolve({**keywords, "job_name": job_name}, cluster)


def _configured() -> dict[str, Any]:
    """Return the configuration, in which ``name`` is that of jobs, as with dask-jobqueue."""
    config = _modern(dask.config.get("clusterjob"))
    if "name" in config:
        config["job_name"] = config.pop("name")
    return config


def _modern(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that have a value, under their present names."""
    found = {}
    for key, value in options.items():
        name = key if key.startswith("-") else key.replace("-", "_")
        if value is None:
            continue
        if name in _RENAMED:
            warnings.warn(
                f"{name} has been renamed to {_RENAMED[name]}", FutureWarning, stacklevel=5
            )
            name = _RENAMED[name]
            if options.get(name) or options.get(name.replace("_", "-")):
                continue
        found[name] = value
    return found


def _lines(value: Any) -> tuple[str, ...]:
    """Take text, or several texts, or a mapping of options to values."""
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if isinstance(value, Mapping):
        return tuple(f"{key} {val}" if val is not None else str(key) for key, val in value.items())
    return tuple(str(line) for line in value if line is not None)


def _worker_program(layers: Layers, gpus: int | None, ppn: int) -> dict[str, Any]:
    """Return the command and the class of the workers, of which each process is to be one."""
    command, kind = layers.get("worker_command"), layers.get("worker_class")
    if kind is not None and not isinstance(kind, str):
        raise ResourcesNotSupportedError(
            f"worker_class={kind!r}: give its name with that of its module, as text"
        )
    if kind == CUDA_WORKER:
        if command not in (DASK_WORKER, DASK_CUDA):
            raise contradiction(
                {"worker_command": command, "worker_class": kind}, "worker_command", "worker_class"
            )
        command, kind = DASK_CUDA, None
    if command == DASK_CUDA and (gpus or 0) > ppn:
        raise ResourcesNotSupportedError(
            f"gpus={gpus} and ppn={ppn}: dask-cuda has a worker for each GPU; give ppn={gpus}"
        )
    return {"worker_command": command, "worker_class": kind}


def _machine(remote: str | RemoteProtocol | None, ssh: str) -> tuple[Any, ...]:
    """Return the arguments of `scheduler_for` that name a machine."""
    return (remote, ssh) if remote else ()


def _scheduler_place(layers: Layers) -> dict[str, Any]:
    """Return where the Dask scheduler runs, and for how long if nobody needs it."""
    remote = layers.get("remote")
    place = layers.get("scheduler") or ("login" if remote else "here")
    if place not in PLACES:
        raise ResourcesNotSupportedError(
            f"scheduler={place!r}: where the Dask scheduler runs is one of {', '.join(PLACES)}"
        )
    if remote and place == "here":
        raise ResourcesNotSupportedError(
            f"scheduler='here' and remote={remote!r}: workers there cannot connect to this "
            "machine; give 'login' or 'job'"
        )
    return {
        "remote": remote,
        "ssh": layers.get("ssh") or "ssh",
        "place": place,
        "scheduler_resources": dict(layers.get("scheduler_resources") or {}),
        "idle_timeout": duration("idle_timeout", layers.get("idle_timeout") or 0),
    }


def _scheduler_options(layers: Layers) -> dict[str, Any]:
    options = dict(layers.get("scheduler_options") or {})
    for key in ("host", "dashboard_address"):
        value = layers.get(key)
        if value is not None and options.setdefault(key, value) != value:
            raise ResourcesNotSupportedError(
                f"{key}={value!r} and scheduler_options={layers.get('scheduler_options')!r} "
                "contradict each other; give one of them"
            )
    return options


def _check(backend: ClusterjobBackend, asked: dict[str, Any], native: dict[str, Any]) -> None:
    """Check that the scheduler can be asked for all this, and that no keyword is misspelt."""
    for key in native:
        if not key.startswith("-") and get_close_matches(key, ALLOWED, 1, cutoff=0.85):
            raise _unknown(key, backend)
    _headers(backend, asked)
    for key, value in native.items():
        try:
            _headers(backend, {key: value})
        except ResourcesNotSupportedError as error:
            raise _unknown(key, backend, error) from None
    _headers(backend, {**asked, **native})


def _headers(backend: ClusterjobBackend, resources: dict[str, Any]) -> list[str]:
    checked = Resources.of(resources)
    if isinstance(backend, BatchBackend):
        return backend.headers(checked)
    return backend.resource_headers(SimpleNamespace(resources=resources))


def _unknown(
    key: str, backend: ClusterjobBackend, error: Exception | None = None
) -> ResourcesNotSupportedError:
    close = get_close_matches(key, ALLOWED, 3)
    hint = f", did you mean {_alternatives(close)}?" if close else "."
    reason = f" ({error})" if error else ""
    dashed = f"**{{'--{key.replace('_', '-')}': ...}}"
    passed = f" An option of {backend.name} is passed on when written {dashed}."
    return ResourcesNotSupportedError(
        f"unknown keyword {key!r}{hint}{reason or passed} The keywords are {', '.join(ALLOWED)}"
    )


def _alternatives(names: Iterable[str]) -> str:
    return " or ".join(repr(name) for name in names)
