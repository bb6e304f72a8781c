"""Pools of one cluster on a real Slurm: wide workers, narrow ones, and some that have a GPU."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from distributed import Client

from cjdask import ClusterjobCluster
from tests.cluster_fakes import whereabouts
from tests.cluster_slurm import squeue

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("slurm")]


@pytest.mark.timeout(240)
def test_pools_on_slurm(slurm_cluster: Callable[..., ClusterjobCluster], slurm_name: str) -> None:
    """Tasks find the worker of 8 threads, the 8 of one thread, and those with a GPU each."""
    with slurm_cluster(ppn=8, threads=1, mem=3000, nanny=False) as cluster:
        common = {"job_name": slurm_name, "mem": 1000}
        wide = cluster.add_pool("wide", ppn=1, threads=8, **common)
        gpu = cluster.add_pool("gpu", ppn=2, gpus=2, queue="gpu", **common)
        for pool in cluster.pools.values():
            pool.scale(jobs=1)
        cluster.wait_for_workers(8 + 1 + 2, timeout=120)
        assert squeue(slurm_name) == ["RUNNING"] * 3
        with Client(cluster) as client:
            found = {
                name: client.gather(
                    [client.submit(whereabouts, resources={name: 1}, pure=False) for _ in range(32)]
                )
                for name in cluster.pools
            }
        for name, pool in cluster.pools.items():
            assert {job for job, *_ in found[name]} == set(pool.planned())
        processes, threads = (
            {name: len({place[index] for place in found[name]}) for name in found}
            for index in (1, 2)
        )
        assert processes == {"default": 8, "wide": 1, "gpu": 2}
        assert threads["wide"] == 8
        devices = {pid: device for _, pid, _, device in found["gpu"]}
        assert sorted(devices.values()) == ["0", "1"]
        wide.scale(0)
        assert (len(cluster.plan), len(wide.planned())) == (10, 0)
        lines = [re.split(r"\s{2,}", line)[:1] for line in str(cluster.jobs).splitlines()]
        assert lines == [["pool"], ["default"], ["wide"], ["gpu"]]
        assert set(gpu.jobs) == set(gpu.planned())


@pytest.mark.timeout(240)
def test_pools_adapt_apart_on_slurm(
    slurm_cluster: Callable[..., ClusterjobCluster], slurm_name: str
) -> None:
    """Tasks that ask for a pool make this pool grow, and no other."""
    with slurm_cluster(ppn=1, nanny=False) as cluster, Client(cluster) as client:
        wide = cluster.add_pool("wide", threads=2, job_name=slurm_name)
        cluster.adapt(maximum_jobs=2, interval="300ms")
        wide.adapt(maximum_jobs=2, interval="300ms", target_duration="1s")
        futures = client.map(lambda _: whereabouts()[0], range(60), resources={"wide": 1})
        jobs = set(client.gather(futures))
        assert len(jobs) == 2
        assert all(wide.owns(job) for job in jobs)
        assert set(cluster.jobs) == jobs
