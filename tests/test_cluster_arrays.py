"""Jobs of a cluster that start together are one array."""

from __future__ import annotations

import asyncio
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

import cjdask.scheduler
from cjdask import ClusterjobCluster, SchedulerUnavailableError, Status, SubmitError
from cjdask.cluster_options import resolve
from cjdask.cluster_script import Recipe
from cjdask.command import Command, Output
from cjdask.protocols.local import LocalProtocol
from cjdask.scheduler import Scheduler
from cjdask.testing import until
from tests.cluster_fakes import changes, protocol_of, register_fake, start_workers, with_cluster

MOST = 4


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler with arrays of four tasks as the backend ``fake``."""
    scheduler = register_fake(monkeypatch, tmp_path)
    monkeypatch.setattr(type(scheduler.backend), "max_array_size", MOST)
    return scheduler


def submissions(fake: Scheduler) -> list[str]:
    """List the tasks of each submission, ``""`` where it was no array."""
    calls = [call for call in protocol_of(fake).calls if call[0] == "fake-submit"]
    return ["".join(call[2:]) for call in calls]


def test_jobs_that_start_together_are_an_array(fake: Scheduler) -> None:
    """Ten jobs are arrays of four, four and two; one job is none; one command cancels all."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=10)
        assert sorted(submissions(fake)) == ["1-2", "1-4", "1-4"]
        assert len({row.job_id for row in cluster.jobs.values()}) == 10
        await cluster.scale(jobs=11)
        assert submissions(fake)[3:] == [""]
        assert len(protocol_of(fake).living()) == 11
        await cluster.scale(jobs=0)
        assert changes(fake) == {"submit": 4, "cancel": 1}
        assert not protocol_of(fake).living()

    with_cluster(test)


def test_a_setting_turns_arrays_off(fake: Scheduler) -> None:
    """With arrays=False each job is submitted by itself."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=3)
        assert submissions(fake) == ["", "", ""]

    with_cluster(test, arrays=False)


def test_a_task_is_cancelled_and_replaced_by_itself(fake: Scheduler) -> None:
    """A lost task comes back as a job of its own; scaling down cancels single tasks at once."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=4)
        protocol_of(fake).end("1_2", Status.CANCELLED)
        lost = list(cluster.workers)[1]
        while lost in cluster.workers or len(cluster.workers) < 4:
            await asyncio.sleep(0.01)
        assert protocol_of(fake).living() == ["1_1", "1_3", "1_4", "2"]
        assert cluster.jobs[lost].status is Status.CANCELLED
        assert cluster.jobs[lost].job_id == "1_2"
        await start_workers(cluster, next(iter(cluster.workers)))
        await cluster.scale(jobs=1)
        assert protocol_of(fake).living() == ["1_1"]
        cancel = [call for call in protocol_of(fake).calls if call[0] == "fake-cancel"]
        assert [set(call[1:]) for call in cancel] == [{"1_3", "1_4", "2"}]

    with_cluster(test)


def test_a_refused_array_leaves_nothing(fake: Scheduler) -> None:
    """The scheduler's words are raised, and none of the jobs of the array is planned."""
    protocol_of(fake).refuse_after = 1

    async def test(cluster: ClusterjobCluster) -> None:
        with pytest.raises(SubmitError, match="Invalid account"):
            await cluster.scale(jobs=2 * MOST)
        assert len(cluster.workers) == len(cluster.worker_spec) == MOST

    with_cluster(test)
    assert not protocol_of(fake).living()


def test_jobs_of_an_array_are_in_the_table(fake: Scheduler) -> None:
    """Each task has its own status, id and log file, and the workers of its name."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=3)
        first, second, third = cluster.workers
        await start_workers(cluster, second)
        protocol_of(fake).end("1_3", Status.FAILED, 7)
        await asyncio.to_thread(until, lambda: cluster.jobs[third].status.ended, 10)
        assert [row.status.name for row in list(cluster.jobs.values())[:3]] == [
            "PENDING",
            "PENDING",
            "FAILED",
        ]
        assert [cluster.jobs[name].workers for name in (first, second, third)] == [0, 1, 0]
        assert cluster.jobs[third].exit_code == 7
        assert (cluster.workers[second].job_id, cluster.jobs[second].job_id) == ("1_2", "1_2")

    with_cluster(test)


def recipe(backend: str, **options: Any) -> Recipe:
    """Return the recipe of a cluster on a backend."""
    return Recipe.plan(resolve({"backend": backend, **options}), "w", None)


@pytest.mark.parametrize(
    ("backend", "options", "most"),
    [
        ("slurm", {"nodes": 2}, 1000),
        ("local", {}, 10000),
        ("htcondor", {}, 10000),
        ("htcondor", {"nodes": 2}, 1),
        ("lpbs", {}, 1),
        ("slurm", {"arrays": False}, 1),
    ],
)
def test_where_arrays_are_right(
    backend: str, options: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrays have the limit of the scheduler, and are not used where it has none like this."""
    monkeypatch.setattr(cjdask.scheduler, "_schedulers", {})
    monkeypatch.setattr(LocalProtocol, "which", lambda *_: None)  # none that could be asked
    assert recipe(backend, **options).most_tasks() == most


@pytest.mark.parametrize(
    ("answer", "most"), [("MaxArraySize = 101", 100), ("MaxArraySize = 0", 1), ("", 1000)]
)
def test_the_limit_of_a_site(answer: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm is asked once how long arrays may be; a site may have turned them off."""
    asked: list[Command] = []

    def run(self: LocalProtocol, command: Command, timeout: float | None = None) -> Output:
        asked.append(command)
        return Output.of(f"MaxJobCount = 9\n{answer}\nMaxDBDMsgs = 7\n")

    monkeypatch.setattr(cjdask.scheduler, "_schedulers", {})
    monkeypatch.setattr(LocalProtocol, "which", lambda *_: "/usr/bin/scontrol")
    monkeypatch.setattr(LocalProtocol, "run", run)
    for _ in range(2):
        assert recipe("slurm").most_tasks() == most
    assert [command.argv for command in asked] == [("scontrol", "show", "config")]


def test_a_limit_that_is_not_told(fake: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scheduler cannot say how long arrays may be, jobs are submitted one by one."""

    def no_answer(self: object) -> Command:
        raise SchedulerUnavailableError("no contact")

    monkeypatch.setattr(type(fake.backend), "array_command", no_answer)

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=2)
        assert submissions(fake) == ["", ""]

    with_cluster(test)


LOGS = {
    "slurm": ("#SBATCH --output={}.%a.out", "$SLURM_ARRAY_TASK_ID"),
    "pbspro": ("#PBS -o {}.out.^array_index^", "$PBS_ARRAY_INDEX"),
    "pbs": ("#PBS -o {}.out", "$PBS_ARRAYID"),
    "lsf": ("#BSUB -o {}.%I.out", "$LSB_JOBINDEX"),
    "sge": ("#$ -o {}.$TASK_ID.out", "$SGE_TASK_ID"),
    "oar": ("#OAR -O {}.%jobid%.out", "$OAR_ARRAY_INDEX"),
    "local": ("#CJ --stdout={}.%a.out", "$CJ_ARRAY_INDEX"),
}


@pytest.mark.parametrize("backend", LOGS)
def test_tasks_write_logs_of_their_own(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tasks of an array have a log each, and their index tells them their name."""
    monkeypatch.setattr(LocalProtocol, "which", lambda *_: None)  # another scheduler's qstat
    script = str(recipe(backend).script(["tcp://h:1"], "w-17", 3))
    line, variable = LOGS[backend]
    logs = f"{Path.cwd()}/dask-worker-logs/w-17-to-19"
    assert line.format(logs) in script.replace('"', "").replace("'", "")
    assert f"export CLUSTERJOB_DASK_NUMBER=$((16 + {variable}))" in script
    assert "w-$CLUSTERJOB_DASK_NUMBER-$CLUSTERJOB_RANK" in script


def test_names_of_tasks() -> None:
    """The tasks 1 to 3 of the array that begins with job 9 are the jobs 9, 10 and 11."""
    script = str(recipe("slurm").script(["tcp://h:1"], "w-9", 3))
    (line,) = re.findall(r"^export CLUSTERJOB_DASK_NUMBER=.*$", script, re.MULTILINE)
    for task, name in ((1, "w-9"), (2, "w-10"), (3, "w-11")):
        text = f'SLURM_ARRAY_TASK_ID={task}\n{line}\necho "w-$CLUSTERJOB_DASK_NUMBER"'
        assert subprocess.check_output(["bash", "-c", text], text=True).strip() == name
