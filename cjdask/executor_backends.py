"""One executor for each scheduler, with the arguments that clusterfutures documents."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import Any, ClassVar

from cjdask.executor import ClusterExecutor
from cjdask.executor_calls import ClusterFuture

__all__ = [
    "CondorExecutor",
    "LocalExecutor",
    "LpbsExecutor",
    "LsfExecutor",
    "OarExecutor",
    "PbsExecutor",
    "PbsProExecutor",
    "SgeExecutor",
    "SlurmExecutor",
]


class BackendExecutor(ClusterExecutor):
    """A `ClusterExecutor` for one scheduler.

    Parameters
    ----------
    debug : whether to tell on standard error what is submitted
    keep_logs : whether logs stay; those of calls that died always do
    additional_setup_lines : lines for the head of the job script, directives among them
    additional_import_paths : where modules are looked for first
    **options : all others of `ClusterExecutor`
    """

    backend: ClassVar[str]

    def __init__(
        self,
        debug: bool = False,
        keep_logs: bool = False,
        additional_setup_lines: str | Iterable[str] = (),
        additional_import_paths: Iterable[str | os.PathLike[str]] = (),
        **options: Any,
    ) -> None:
        super().__init__(
            self.backend,
            debug=debug,
            keep_logs=keep_logs,
            additional_setup_lines=additional_setup_lines,
            additional_import_paths=additional_import_paths,
            **options,
        )

    def submit(  # type: ignore[override]
        self,
        fn: Callable[..., Any],
        /,
        *args: Any,
        additional_setup_lines: str | Iterable[str] | None = None,
        **kwargs: Any,
    ) -> ClusterFuture:
        """Do as `ClusterExecutor.submit`, with other lines for the job script if wanted.

        A function with an argument of that name gets it from `ClusterExecutor` only.
        """
        if additional_setup_lines is None:
            return super().submit(fn, *args, **kwargs)
        changes = {"additional_setup_lines": additional_setup_lines}
        return self._submit(self._options.changed(changes), fn, args, kwargs)


class LocalExecutor(BackendExecutor):
    """Runs calls in jobs of the embedded scheduler, on this machine."""

    backend = "local"


class SlurmExecutor(BackendExecutor):
    """Runs calls in jobs of Slurm."""

    backend = "slurm"


class CondorExecutor(BackendExecutor):
    """Runs calls in jobs of HTCondor."""

    backend = "htcondor"


class PbsProExecutor(BackendExecutor):
    """Runs calls in jobs of PBS Pro."""

    backend = "pbspro"


class PbsExecutor(BackendExecutor):
    """Runs calls in jobs of TORQUE."""

    backend = "pbs"


class LpbsExecutor(BackendExecutor):
    """Runs calls in jobs of LPBS."""

    backend = "lpbs"


class LsfExecutor(BackendExecutor):
    """Runs calls in jobs of LSF."""

    backend = "lsf"


class SgeExecutor(BackendExecutor):
    """Runs calls in jobs of Grid Engine."""

    backend = "sge"


class OarExecutor(BackendExecutor):
    """Runs calls in jobs of OAR."""

    backend = "oar"
