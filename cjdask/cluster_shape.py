"""The size of one job of a Dask cluster, from options of two vocabularies in several places."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from distributed.deploy.utils import nprocesses_nthreads

from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import clock, parse_mem, parse_time

__all__ = [
    "Layers",
    "contradiction",
    "cores_to_ask_for",
    "memory_of_job",
    "memory_to_ask_for",
    "shape_of",
    "time_limit",
    "whole",
]


class Layers(list[dict[str, Any]]):
    """Options from several places; what stands in the first goes before the others."""

    def get(self, key: str) -> Any:
        return next((layer[key] for layer in self if key in layer), None)

    def one(self, ours: str, theirs: str, convert: Callable[[Any], Any]) -> Any:
        """Return the value of an option that has two names, ``None`` if it has none."""
        for layer in self:
            values = [convert(layer[key]) for key in (ours, theirs) if key in layer]
            if values and values[0] != values[-1]:
                raise contradiction(layer, theirs, ours)
            if values:
                return values[0]
        return None


def contradiction(values: Mapping[str, Any], *keys: str) -> ResourcesNotSupportedError:
    """Return the error that says that those of the keys that have values disagree."""
    shown = " and ".join(f"{key}={values[key]!r}" for key in keys if key in values)
    return ResourcesNotSupportedError(f"{shown} contradict each other; give one of them")


def whole(values: Mapping[str, Any], key: str) -> int | None:
    """Return the value of a key, ``None`` if it has none.

    Raises:
        ResourcesNotSupportedError: it is no whole number of at least 1.
    """
    value = values.get(key)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ResourcesNotSupportedError(f"{key}={value!r}: give a whole number of at least 1")
    return value


# -- nodes, processes, threads -----------------------------------------------------------------


def shape_of(layers: Layers) -> tuple[int, int, int]:
    """Return nodes, processes per node and threads per process."""
    shape: dict[str, int] = {}
    for layer in reversed(layers):
        if any(key in layer for key in ("nodes", "ppn", "threads", "processes", "cores")):
            shape = dict(zip(("nodes", "ppn", "threads"), _shape(layer, shape), strict=True))
    return shape.get("nodes", 1), shape.get("ppn", 1), shape.get("threads", 1)


def _shape(given: Mapping[str, Any], default: Mapping[str, int]) -> tuple[int, int, int]:
    """Return nodes, processes per node and threads per process.

    ``default`` fills what ``given`` leaves open.
    """
    nodes = whole(given, "nodes") or default.get("nodes", 1)
    ppn = _ppn(given, nodes)
    threads, cores = whole(given, "threads"), whole(given, "cores")
    if cores is None:
        return nodes, ppn or default.get("ppn", 1), threads or default.get("threads", 1)
    if ppn and threads:
        if cores // (nodes * ppn) != threads:
            raise contradiction(
                {"nodes": nodes, **given}, "cores", "processes", "nodes", "ppn", "threads"
            )
        return nodes, ppn, threads
    if threads:
        ppn, rest = divmod(cores, nodes * threads)
        if rest or not ppn:
            raise contradiction({"nodes": nodes, **given}, "cores", "nodes", "threads")
        return nodes, ppn, threads
    if ppn is None:
        ppn = default.get("ppn") or nprocesses_nthreads(max(1, cores // nodes))[0]
        if nodes * ppn > cores and "ppn" in default:
            ppn = max(1, cores // nodes)
    threads = cores // (nodes * ppn)
    if not threads:
        raise contradiction({"nodes": nodes, **given}, "cores", "processes", "nodes", "ppn")
    return nodes, ppn, threads


def _ppn(given: Mapping[str, Any], nodes: int) -> int | None:
    """Return the processes per node that ``ppn`` or ``processes`` (per job) ask for."""
    ppn, processes = whole(given, "ppn"), whole(given, "processes")
    if processes is None:
        return ppn
    if processes % nodes or (ppn is not None and ppn * nodes != processes):
        raise contradiction({"nodes": nodes, **given}, "processes", "nodes", "ppn")
    return processes // nodes


def cores_to_ask_for(job_cpu: Any, nodes: int, ppn: int, threads: int) -> int:
    """Return the cores per process to ask the scheduler for; ``job_cpu`` is per job."""
    if job_cpu is None:
        return threads
    cores = whole({"job_cpu": job_cpu}, "job_cpu") or 1
    if cores % (nodes * ppn):
        raise ResourcesNotSupportedError(
            f"job_cpu={job_cpu!r} cannot be shared equally by nodes={nodes} times ppn={ppn}"
        )
    return cores // (nodes * ppn)


# -- memory and time ---------------------------------------------------------------------------


def memory_of_job(layers: Layers, nodes: int) -> int | None:
    """Return the memory of one job in bytes: ``mem`` is per node, ``memory`` per job."""

    for layer in layers:
        shares = {
            key: math.ceil(parse_mem(layer[key], key) / parts)
            for key, parts in (("mem", 1), ("memory", nodes))
            if key in layer
        }
        if len(set(shares.values())) > 1:
            raise contradiction({"nodes": nodes, **layer}, "memory", "mem", "nodes")
        if shares:
            return max(shares.values()) * nodes * 2**20
    return None


def memory_to_ask_for(job_mem: Any, memory: int | None, nodes: int) -> int | None:
    """Return the MB per node to ask the scheduler for; both arguments are per job."""
    if job_mem is not None:
        return math.ceil(parse_mem(job_mem, "job_mem") / nodes)
    return None if memory is None else memory // (nodes * 2**20)


def time_limit(layers: Layers, backend: str) -> str | None:
    """Return the walltime as text, the same for ``time`` and dask-jobqueue's ``walltime``."""

    layers = Layers(map(dict, layers))
    for layer in layers:
        text = layer.get("walltime")
        if backend == "lsf" and isinstance(text, str) and re.fullmatch(r"\d+:\d+", text):
            layer["walltime"] = f"{text}:00"  # bsub -W and dask-jobqueue: hours and minutes
    seconds = layers.one("time", "walltime", parse_time)
    return None if seconds is None else clock(seconds)
