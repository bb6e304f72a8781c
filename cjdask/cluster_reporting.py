"""What a cluster tells of its jobs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dask.utils import parse_timedelta
from distributed.core import Status
from distributed.deploy.cluster import Cluster
from distributed.utils import Logs

from cjdask.cluster_drain import SECONDS_LEFT
from cjdask.cluster_ending import EndingCluster
from cjdask.cluster_keeper import wait_for_workers
from cjdask.cluster_scaling import job_of
from cjdask.cluster_table import JobTable

__all__ = ["ReportingCluster"]


class ReportingCluster(EndingCluster):
    """The part of a cluster that hears of its workers and tells of its jobs."""

    @property
    def jobs(self) -> JobTable:
        """The jobs of this cluster by name, those that have ended too, as a table.

        It shows what the last answer of the scheduler told.
        """
        arrived = self.arrived()
        rows = [row for pool in self.pools.values() for row in pool.keeper.rows(arrived)]
        return JobTable(sorted(rows, key=lambda row: row.submitted))

    @property
    def leaving(self) -> bool:
        """Tell whether the cluster closes or is closed, or its Dask scheduler does or is."""
        return self._leaving.is_set() or self._dispatcher.ended or self._scheduler_has_ended()

    def _scheduler_has_ended(self) -> bool:
        return getattr(self.scheduler, "status", None) in (Status.closing, Status.closed)

    def drop_job(self, name: str) -> None:
        """Plan no more with a job that has ended."""
        self.worker_spec.pop(name, None)
        self._dispatcher.placed.pop(name, None)
        self.expiring.pop(name, None)
        if name in self.workers:
            self.workers.pop(name).set_closed()

    def note(self, message: str) -> None:
        """Keep a message for `get_logs`."""
        self._cluster_manager_logs.append((datetime.now(), message))

    async def _get_logs(
        self, cluster: bool = True, scheduler: bool = True, workers: Any = True
    ) -> Logs:
        logs: Logs = await super()._get_logs(cluster, scheduler, workers)
        if cluster:
            for pool in self.pools.values():
                logs.update(await pool.keeper.logs())
        return logs

    async def _wait_for_workers(self, n_workers: int = 0, timeout: Any = None) -> None:
        pools = self.pools.values()
        seconds = timeout and parse_timedelta(timeout)
        await wait_for_workers(
            pools, lambda: len(self.scheduler_info["workers"]), n_workers, seconds
        )

    def wait_for_workers(self, n_workers: int, timeout: Any = None) -> Any:
        """Wait until there are ``n_workers`` workers.

        Raises:
            JobError: jobs fail so that they cannot come; the message has the log's tail.
            TimeoutError: they have not come in time (seconds, or text such as ``"5m"``).
        """
        return super().wait_for_workers(n_workers, timeout)

    def __repr__(self) -> str:
        jobs = self.jobs.summary()
        text: str = super().__repr__()
        return text.removesuffix(")") + f", jobs=({jobs}))" if jobs else text

    def _repr_html_(self, cluster_status: str | None = None) -> str:
        jobs = f"{cluster_status or ''}<tr><td colspan=2>{self.jobs._repr_html_()}</td></tr>"
        html: str = super()._repr_html_(cluster_status=jobs)
        return html

    def _update_worker_status(self, op: str, msg: Any) -> None:
        if op == "remove":
            worker = self.scheduler_info["workers"].pop(msg, None)
            job = job_of(worker["name"]) if worker is not None else ""
            if (pool := self.pool_of(job)) is not None:
                pool.keeper.worker_left(job)
        else:
            arrived = list(msg["workers"].values())
            Cluster._update_worker_status(self, op, msg)
            for worker in arrived:
                job = job_of(worker["name"])
                if (pool := self.pool_of(job)) is not None:
                    pool.keeper.worker_came(job, worker.get(SECONDS_LEFT))
