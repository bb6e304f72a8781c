"""Settings that dask-jobqueue documents for SLURMCluster, on a real Slurm.

Values that name what another site has (account, queue, quality of service, network, more cores
than a node of the tests) are those of this one.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from getpass import getuser

import dask.config
import psutil
import pytest
from dask import annotate, delayed
from distributed import Client, as_completed

from cjdask import ClusterjobCluster
from tests.cluster_slurm import scontrol

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]

OWN = dict.fromkeys(("ppn", "mem", "time"))
"""Takes back what the fixture gives in the words of this package."""


def test_a_deployment(slurm_cluster: Callable[..., ClusterjobCluster]) -> None:
    """Cores, processes, memory, account, walltime and queue of the first example."""
    with slurm_cluster(
        **OWN,
        cores=8,
        processes=4,
        memory="8GB",
        account="other",
        walltime="00:10:00",
        queue="long",
    ) as cluster:
        cluster.scale(jobs=1)
        cluster.wait_for_workers(4, timeout=90)
        (job,) = cluster.workers.values()
        shown = scontrol(job.job_id)
        assert {"Account=other", "Partition=long", "TimeLimit=00:10:00"} <= set(shown)
        assert "NumCPUs=8" in shown
        workers = cluster.scheduler_info["workers"].values()
        assert {worker["nthreads"] for worker in workers} == {2}
        assert sum(worker["memory_limit"] for worker in workers) == pytest.approx(8e9, rel=0.01)


def test_prologue_directives_and_resources(slurm_cluster: Callable[..., ClusterjobCluster]) -> None:
    """The examples of low-priority nodes and of arguments of workers, in one cluster."""
    with slurm_cluster(
        **OWN,
        memory="1g",
        processes=1,
        cores=2,
        job_script_prologue=['export LANG="en_US.utf8"', 'export LC_ALL="C.utf8"'],
        job_extra_directives=['--qos="high"', "--comment=low"],
        job_directives_skip=["--mem", "another-string"],
        worker_extra_args=["--resources ssdGB=200,GPU=2"],
    ) as cluster:
        assert "--mem=" not in cluster.job_script()
        cluster.scale(2)
        with Client(cluster) as client:
            client.wait_for_workers(2, timeout=90)
            for job in cluster.workers.values():
                assert "QOS=high" in scontrol(job.job_id)
            with annotate(resources={"GPU": 1}):
                first = [delayed(os.getenv)("LANG", i) for i in range(10)]
            with annotate(resources={"ssdGB": 100}):
                second = [delayed(str.upper)(each) for each in first]
            assert client.gather(client.compute(second)) == ["EN_US.UTF8"] * 10


def test_a_section_of_a_configuration_file(
    slurm_cluster: Callable[..., ClusterjobCluster], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Networks, local directory, death timeout and job-mem come from the configuration."""
    monkeypatch.setenv("USER", getuser())
    node = socket.gethostbyname("n1")
    (network,) = (
        name
        for name, addresses in psutil.net_if_addrs().items()
        if any(each.address.rpartition(".")[0] == node.rpartition(".")[0] for each in addresses)
    )
    section = {
        "name": "dask-worker",
        "cores": 1,
        "memory": "1GB",
        "processes": 1,
        "interface": "eth0",
        "scheduler-options": {"interface": network},
        "death-timeout": 60,
        "local-directory": "/tmp/$USER/$SLURM_JOB_ID",
        "queue": "debug",
        "walltime": "00:10:00",
        "job-mem": "1GB",
        "job-extra": {"--comment=x": None},
    }
    configured = dask.config.set({"clusterjob": {**dask.config.get("clusterjob"), **section}})
    with configured, pytest.warns(FutureWarning, match="job_extra has been renamed"):
        cluster = slurm_cluster(**OWN, jobs=1)
    with cluster:
        cluster.wait_for_workers(1, timeout=90)
        (job,) = cluster.workers.values()
        (worker,) = cluster.scheduler_info["workers"].values()
        assert worker["local_directory"].startswith(f"/tmp/{getuser()}/{job.job_id}/")
        assert {"MinMemoryNode=954M", "Comment=x"} <= set(scontrol(job.job_id))


@pytest.mark.timeout(240)
def test_workers_of_a_finite_lifetime(slurm_cluster: Callable[..., ClusterjobCluster]) -> None:
    """Work goes on when workers leave by --lifetime, since the cluster adapts."""

    def features(number: int) -> tuple[int, int]:
        time.sleep(0.5)
        return number, number**2

    with slurm_cluster(
        **OWN,
        walltime="00:10:00",
        cores=2,
        memory="1gb",
        nanny=False,
        worker_extra_args=["--lifetime", "12s", "--lifetime-stagger", "2s"],
    ) as cluster:
        cluster.adapt(minimum=0, maximum=2)
        with Client(cluster) as client:
            found = dict(each.result() for each in as_completed(client.map(features, range(80))))
            assert found == {number: number**2 for number in range(80)}
        assert len(cluster.jobs) > 1
