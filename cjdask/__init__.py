"""Describe a batch job once and run it on any HPC scheduler.

The public names are loaded when they are first used, so that ``import cjdask`` is quick and
needs neither dask nor paramiko.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cjdask.backends import BatchBackend as BatchBackend
    from cjdask.backends import ClusterjobBackend as ClusterjobBackend
    from cjdask.backends import register_backend as register_backend
    from cjdask.cluster import ClusterjobCluster as ClusterjobCluster
    from cjdask.errors import ClusterjobError as ClusterjobError
    from cjdask.errors import HostKeyError as HostKeyError
    from cjdask.errors import JobCancelled as JobCancelled
    from cjdask.errors import JobDied as JobDied
    from cjdask.errors import JobError as JobError
    from cjdask.errors import JobFailed as JobFailed
    from cjdask.errors import JournalError as JournalError
    from cjdask.errors import LinkLostError as LinkLostError
    from cjdask.errors import LoginError as LoginError
    from cjdask.errors import ParseError as ParseError
    from cjdask.errors import PayloadError as PayloadError
    from cjdask.errors import ProtocolError as ProtocolError
    from cjdask.errors import RemoteException as RemoteException
    from cjdask.errors import ResourcesNotSupportedError as ResourcesNotSupportedError
    from cjdask.errors import SchedulerError as SchedulerError
    from cjdask.errors import SchedulerUnavailableError as SchedulerUnavailableError
    from cjdask.errors import ScriptError as ScriptError
    from cjdask.errors import SettingsError as SettingsError
    from cjdask.errors import StagingError as StagingError
    from cjdask.errors import SubmitError as SubmitError
    from cjdask.errors import UnknownBackendError as UnknownBackendError
    from cjdask.errors import UnreachableError as UnreachableError
    from cjdask.executor import ClusterExecutor as ClusterExecutor
    from cjdask.executor import map as map
    from cjdask.executor_backends import CondorExecutor as CondorExecutor
    from cjdask.executor_backends import LocalExecutor as LocalExecutor
    from cjdask.executor_backends import LpbsExecutor as LpbsExecutor
    from cjdask.executor_backends import LsfExecutor as LsfExecutor
    from cjdask.executor_backends import OarExecutor as OarExecutor
    from cjdask.executor_backends import PbsExecutor as PbsExecutor
    from cjdask.executor_backends import PbsProExecutor as PbsProExecutor
    from cjdask.executor_backends import SgeExecutor as SgeExecutor
    from cjdask.executor_backends import SlurmExecutor as SlurmExecutor
    from cjdask.executor_calls import ClusterFuture as ClusterFuture
    from cjdask.executor_joblib import JoblibBackend as JoblibBackend
    from cjdask.job import BatchJob as BatchJob
    from cjdask.job import GenericJob as GenericJob
    from cjdask.job import GenericProtocol as GenericProtocol
    from cjdask.job import create_job as create_job
    from cjdask.job import reload_job as reload_job
    from cjdask.job_parameters import LaunchParameters as LaunchParameters
    from cjdask.jobscript import JobScript as JobScript
    from cjdask.protocols import ConnectionParameters as ConnectionParameters
    from cjdask.protocols import connect as connect
    from cjdask.resources import time_to_seconds as time_to_seconds
    from cjdask.run import AsyncResult as AsyncResult
    from cjdask.run import cancel_all as cancel_all
    from cjdask.run_many import as_completed as as_completed
    from cjdask.run_many import wait_all as wait_all
    from cjdask.status import JobInfo as JobInfo
    from cjdask.status import Reason as Reason
    from cjdask.status import Status as Status
    from cjdask.status import str_status as str_status

__version__ = "0.1.0"

_HOME = {
    "backends": ("BatchBackend", "ClusterjobBackend", "register_backend"),
    "cluster": ("ClusterjobCluster",),
    "errors": (
        "ClusterjobError",
        "HostKeyError",
        "JobCancelled",
        "JobDied",
        "JobError",
        "JobFailed",
        "JournalError",
        "LinkLostError",
        "LoginError",
        "ParseError",
        "PayloadError",
        "ProtocolError",
        "RemoteException",
        "ResourcesNotSupportedError",
        "SchedulerError",
        "SchedulerUnavailableError",
        "ScriptError",
        "SettingsError",
        "StagingError",
        "SubmitError",
        "UnknownBackendError",
        "UnreachableError",
    ),
    "executor": ("ClusterExecutor", "map"),
    "executor_backends": (
        "CondorExecutor",
        "LocalExecutor",
        "LpbsExecutor",
        "LsfExecutor",
        "OarExecutor",
        "PbsExecutor",
        "PbsProExecutor",
        "SgeExecutor",
        "SlurmExecutor",
    ),
    "executor_calls": ("ClusterFuture",),
    "executor_joblib": ("JoblibBackend",),
    "job": ("BatchJob", "GenericJob", "GenericProtocol", "create_job", "reload_job"),
    "job_parameters": ("LaunchParameters",),
    "jobscript": ("JobScript",),
    "protocols": ("ConnectionParameters", "connect"),
    "resources": ("time_to_seconds",),
    "run": ("AsyncResult", "cancel_all"),
    "run_many": ("as_completed", "wait_all"),
    "status": ("JobInfo", "Reason", "Status", "str_status"),
}
_MODULE_OF = {name: f"cjdask.{module}" for module, names in _HOME.items() for name in names}

_OF_CLUSTERFUTURES = "map"
"""A name that ``from cjdask import *`` must not put in the place of the builtin."""

__all__ = sorted(_MODULE_OF.keys() - {_OF_CLUSTERFUTURES})


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'cjdask' has no attribute {name!r}")
    value = getattr(import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
