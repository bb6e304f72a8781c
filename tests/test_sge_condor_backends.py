"""How the backends of Grid Engine and HTCondor write jobs and read odd answers."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends.htcondor import HTCondorBackend
from cjdask.backends.sge import SgeBackend
from cjdask.backends.sge_answers import ParallelEnvironment
from cjdask.command import Output
from cjdask.errors import (
    ParseError,
    ResourcesNotSupportedError,
    SchedulerError,
    SchedulerUnavailableError,
)
from cjdask.jobscript import JobScript
from cjdask.resources import Resources
from cjdask.status import Reason, Status

PROBED = """\
max_aj_tasks                 1000
pe_name                mpi
slots                  999
allocation_rule        $fill_up
control_slaves         TRUE
queues all.q long.q
pe_name                rr
allocation_rule        $round_robin
control_slaves         TRUE
queues all.q
pe_name                smp
allocation_rule        $pe_slots
control_slaves         FALSE
queues all.q
pe_name                two
allocation_rule        2
control_slaves         TRUE
queues all.q
pe_name                unused
allocation_rule        4
control_slaves         TRUE
queues
pe_name                loose
allocation_rule        8
control_slaves         FALSE
queues all.q
"""


def site() -> SgeBackend:
    """Return the backend for a site with six parallel environments."""
    backend = SgeBackend().probed([Output.of(), Output.of(PROBED)])
    assert isinstance(backend, SgeBackend)
    return backend


def sge(**asked: Any) -> list[str]:
    """Return the headers but for those that every job has."""
    return [line.removeprefix("#$ ") for line in site().headers(Resources.of(asked))[2:]]


# -- Grid Engine -------------------------------------------------------------------------------


def test_sge_headers() -> None:
    """All common keys are written, in the order of our keys; shell and folder come first."""
    asked = {"jobname": "x", "queue": "all.q", "account": "p", "time": "90", "nodes": 2, "ppn": 2}
    asked |= {"threads": 4, "mem": 8001, "stdout": "a b", "stderr": "e", "array": "1-10:3%2"}
    backend = SgeBackend(parallel_environment="mpi")
    assert backend.headers(Resources.of({**asked, "depends": ["3", "4"]})) == [
        "#$ -S /bin/bash",
        "#$ -cwd",
        "#$ -P p",
        "#$ -t 1-10:3",
        "#$ -tc 2",
        "#$ -hold_jid 3,4",
        "#$ -N x",
        "#$ -l h_vmem=1001M",
        "#$ -pe mpi 16",
        "#$ -q all.q",
        "#$ -e e",
        '#$ -o "a b"',
        "#$ -l h_rt=01:30:00",
    ]


@pytest.mark.parametrize(
    ("asked", "header"),
    [
        ({"threads": 1}, []),
        ({"threads": 8}, ["-pe smp 8"]),
        ({"nodes": 2, "ppn": 2}, ["-pe two 4"]),
        ({"nodes": 3}, ["-pe rr 3"]),
        ({"nodes": 2, "threads": 4}, ["-pe mpi 8"]),
        ({"nodes": 2, "threads": 8}, ["-pe mpi 16"]),
        ({"nodes": 2, "queue": "long.q"}, ["-pe mpi 2", "-q long.q"]),
        ({"nodes": 1, "parallel_environment": "own"}, ["-pe own 1"]),
        ({"nodes": 2, "pe": "own 7"}, ["-pe own 7"]),
    ],
)
def test_sge_environments(asked: dict[str, Any], header: list[str]) -> None:
    """The parallel environment that fits the shape, the queue and the launcher is taken."""
    assert sge(**asked) == header


def test_sge_without_an_environment() -> None:
    """A job that no environment fits is refused with the list of those that there are."""
    with pytest.raises(ResourcesNotSupportedError, match=r"smp \(allocation_rule \$pe_slots\)"):
        sge(threads=2, queue="long.q")
    with pytest.raises(ResourcesNotSupportedError, match="parallel_environment="):
        SgeBackend().headers(Resources.of({"nodes": 2}))


@pytest.mark.parametrize(
    "asked",
    [
        {"gpus": 1},
        {"exclusive": True},
        {"array": "1,3,7"},
        {"array": 10},
        {"depends": "3.1"},
        {"jobname": "1st"},
        {"jobname": "a b"},
        {"jobname": "é"},
        {"jobname": "none"},
        {"stdout": "a,b"},
        {"sync": "y"},
        {"t": "1-3"},
    ],
)
def test_sge_refusals(asked: dict[str, Any]) -> None:
    """What Grid Engine cannot be asked for is refused by name, with what to do instead."""
    with pytest.raises(ResourcesNotSupportedError, match=next(iter(asked)) + "|a,b"):
        sge(**asked)


def test_sge_native_options() -> None:
    """Native options are written as qsub has them; shell and folder may be the user's."""
    assert sge(V=True, notify=False, j=True, l="gpu=1") == ["-V", "-j y", "-l gpu=1"]
    headers = site().headers(Resources.of({"S": "/bin/sh", "wd": "/w"}))
    assert headers == ["#$ -S /bin/sh", "#$ -wd /w"]


def test_sge_probing() -> None:
    """The limit of tasks is the site's; no answer is an error."""
    assert site().max_array_size == 1000
    down = Output.of(stderr="error: commlib error: got select error", exit_code=1)
    with pytest.raises(SchedulerUnavailableError):
        SgeBackend().probed([down, down])


def test_sge_shell_lines() -> None:
    """Scripts in a shell get guards, others the program of their ``#!`` line and none."""
    job = JobScript("true", "x", backend="sge", depends="7", parallel_environment="smp")
    text = str(job)
    assert "for cj_id in 7; do" in text
    assert "trap 'case $? in 99|100) exit 1;; esac' EXIT" in text
    python = JobScript("#!/usr/bin/env python3\npass\n", "x", backend="sge")
    assert "#$ -S /usr/bin/env\n" in str(python)
    assert "trap" not in str(python)
    python.resources["depends"] = "7"
    with pytest.raises(ResourcesNotSupportedError, match="python3"):
        str(python)


QACCT = """#!/bin/sh
for record in $(cat "$(dirname "$0")/$2"); do
    echo ==============================================================
    echo "granted_pe   NONE"
    echo "taskid       ${record%%:*}"
    rest=${record#*:}
    echo "failed       ${rest%%:*}  : some words"
    echo "exit_status  ${rest#*:}                  (Killed)"
done
"""


@pytest.mark.parametrize(
    ("records", "code"),
    [
        ("undefined:0:0", 5),
        ("undefined:0:3", 121),
        ("undefined:37:137", 121),
        ("undefined:25:99 undefined:0:0", 5),
        ("undefined:0:0 undefined:100:137", 121),
    ],
)
def test_sge_guard(tmp_path: Path, records: str, code: int) -> None:
    """A script after another one runs only where the last record of that one is good."""
    (tmp_path / "qacct").write_text(QACCT)
    (tmp_path / "qacct").chmod(0o755)
    (tmp_path / "7").write_text(records)
    script = str(JobScript("exit 5\n", "x", backend="sge", depends="7"))
    done = subprocess.run(
        ["/bin/sh", "-c", script], env={"PATH": f"{tmp_path}:/usr/bin:/bin"}, check=False
    )
    assert done.returncode == code


@pytest.mark.parametrize(
    ("hosts", "nodes", "expected", "shared"),
    [
        ("a 4\nb 4", 2, "a b", False),
        ("a 16", 2, "a a", False),
        ("a 2\na 2\nb 4", 2, "a b", False),
        ("a 4\nb 8", 3, "a b b", False),
        ("a 3\nb 5", 2, "a b", True),
        ("a 1\nb 1\nc 6", 2, "a c", True),
    ],
)
def test_sge_hosts(tmp_path: Path, hosts: str, nodes: int, expected: str, shared: bool) -> None:
    """Nodes go where slots are, the first to the master host; too few slots are told."""
    from cjdask.backends.sge import _HOSTS

    lines = [f"{line} all.q@x UNDEFINED" for line in hosts.splitlines()]
    (tmp_path / "pe").write_text("\n".join(lines) + "\n")
    done = subprocess.run(
        ["/bin/bash", "-c", _HOSTS.format(nodes=nodes, cores=4)],
        env={"PE_HOSTFILE": str(tmp_path / "pe"), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == expected.split()
    assert ("share cores" in done.stderr) is shared


def test_sge_log_paths() -> None:
    """Logs are where Grid Engine puts them: by default name.o7, tasks are counted from 1."""
    log, of = site().log_path, Resources.of
    assert log(of({"jobname": "x"}), "stdout", "7", None) == "x.o7"
    assert log(of({"jobname": "x", "array": "1-3"}), "stderr", "7", 3) == "x.e7.3"
    assert log(of({"jobname": "x", "j": "y"}), "stderr", "7", None) == "x.o7"
    assert log(of({"jobname": "x", "stdout": "d/"}), "stdout", "7", None) == "d/x.o7"
    path = of({"jobname": "x", "stdout": "$JOB_NAME.$JOB_ID.$TASK_ID.$HOSTNAME"})
    assert log(path, "stdout", "7", 1) == "x.7.1.$HOSTNAME"


def xml(state: str, name: str = "x") -> Output:
    """Return an answer of qstat with one job."""
    return Output.of(
        "<job_info><queue_info/><job_info><job_list state='pending'>"
        f"<JB_job_number>7</JB_job_number><JB_name>{name}</JB_name><state>{state}</state>"
        "<queue_name>all.q@a</queue_name></job_list></job_info></job_info>"
    )


@pytest.mark.parametrize(
    ("state", "status", "reason"),
    [
        ("t", Status.PENDING, Reason.NONE),
        ("dr", Status.RUNNING, Reason.NONE),
        ("dt", Status.PENDING, Reason.NONE),
        ("Rr", Status.RUNNING, Reason.NONE),
        ("Rq", Status.PENDING, Reason.REQUEUED),
        ("hRwq", Status.PENDING, Reason.HELD),
        ("dEqw", Status.PENDING, Reason.HELD),
        ("S", Status.PENDING, Reason.SUSPENDED),
    ],
)
def test_sge_states(state: str, status: Status, reason: Reason) -> None:
    """Letters of a state combine; each is looked for."""
    (info,) = site().parse_query(xml(state), ["7"])
    assert (info.status, info.reason, info.native) == (status, reason, state)


def test_sge_odd_answers(caplog: pytest.LogCaptureFixture) -> None:
    """Odd names and control characters do no harm; an unknown state is no end and is told."""
    (info,) = site().parse_query(xml("r", "a%lt;b\x01"), [])
    assert info.status is Status.RUNNING
    with caplog.at_level(logging.WARNING):
        (info,) = site().parse_query(xml("X"), [])
    assert not info.status.ended
    assert "'X'" in caplog.text
    with pytest.raises(SchedulerError):
        site().parse_ended(Output.of("now 1\n", "qacct: error opening accounting file"), ["7"])


RECORD = """\
now 1795230000
==============================================================
hostname     a
jobnumber    7
taskid       undefined
qsub_time    Sat Nov 21 01:12:02 2026
start_time   Sat Nov 21 01:12:03 2026
end_time     Sat Nov 21 01:12:09 2026
granted_pe   NONE
failed       100 : assumedly after job
exit_status  137                  (Killed)
"""


def test_sge_who_deleted_it() -> None:
    """Where the record says who deleted a job, a kill by somebody else is no cancel."""
    (info,) = site().parse_ended(Output.of(RECORD), ["7"])
    assert (info.status, info.signal) == (Status.CANCELLED, 9)
    (info,) = site().parse_ended(Output.of(RECORD + "deleted_by   NONE\n"), ["7"])
    assert (info.status, info.reason) == (Status.FAILED, Reason.SIGNALED)
    (info,) = site().parse_ended(Output.of(RECORD + "deleted_by   me@a\n"), ["7"])
    assert (info.status, info.message) == (Status.CANCELLED, "deleted by me@a")
    with pytest.raises(ParseError):
        site().parse_ended(Output.of(RECORD.replace("hostname", "houseman")), ["7"])


def test_sge_environment_fits() -> None:
    """A queue that is a pattern is not compared."""
    environment = ParallelEnvironment("mpi", "$fill_up", True, ("all.q",))
    assert environment.fits(["$fill_up"], "all*", several=True)
    assert not environment.fits(["$fill_up"], "long.q", several=True)


# -- HTCondor ----------------------------------------------------------------------------------

condor = HTCondorBackend()


def described(**asked: Any) -> list[str]:
    """Return the lines of the submit file."""
    (text,) = condor.submission_files(Resources.of(asked), "x.sh").values()
    return text.splitlines()


def test_condor_submit_file() -> None:
    """The script has no headers; all that is asked for is in the file beside it."""
    asked = {"jobname": "a$b", "time": "90", "ppn": 2, "threads": 4, "mem": 8000, "gpus": 1}
    job = JobScript("true\n", "x", backend="htcondor", **{k: asked[k] for k in ("time", "mem")})
    assert str(job).split() == ["#!/bin/bash", "true"]
    lines = described(**asked, account="group.me", **{"+Project": '"p"'})
    assert {
        "executable = $Fp(SUBMIT_FILE)x.sh",
        "accounting_group = group.me",
        "batch_name = a$(DOLLAR)b",
        "request_cpus = 8",
        "request_gpus = 1",
        "request_memory = 8000",
        "allowed_job_duration = 5400",
        '+Project = "p"',
        "output = a_b.$(ClusterId).out",
    } <= set(lines)
    assert lines[-1] == "queue"
    assert not any(line.startswith("environment") for line in lines)
    assert "periodic_remove = False" in described(time="1", periodic_remove="False")


def test_condor_nodes_and_arrays() -> None:
    """Nodes and tasks are procs; each has its own log, the first node the plain one."""
    nodes = described(nodes=2, stdout="out")
    assert "output = out$(cjdask_node)" in nodes
    assert nodes[-5:] == [
        "+CjdaskRank = $(cjdask_rank)",
        "queue cjdask_rank, cjdask_node from (",
        "0",
        "1 .1",
        ")",
    ]
    array = described(array="7,1%1", stdout="o.$(ProcId)", stderr="e")
    assert {"output = o.$(ProcId)", "error = e.$(cjdask_task)", "max_materialize = 1"} <= set(array)
    assert array[-3:] == ["1", "7", ")"]


@pytest.mark.parametrize(
    "asked",
    [
        {"queue": "q"},
        {"exclusive": True},
        {"depends": "7"},
        {"array": 2, "nodes": 2},
        {"-l": "x"},
    ],
)
def test_condor_refusals(asked: dict[str, Any]) -> None:
    """What HTCondor cannot be asked for is refused by name when the script is rendered."""
    with pytest.raises(ResourcesNotSupportedError, match=next(iter(asked))):
        condor.headers(Resources.of(asked))


def test_condor_log_paths() -> None:
    """Logs are where the submit file says, with HTCondor's macros filled in."""
    log, of = condor.log_path, Resources.of
    assert log(of({"jobname": "x y"}), "stdout", "7", None) == "x_y.7.out"
    assert log(of({"jobname": "x", "array": "3,5"}), "stderr", "7", 5) == "x.7.err.5"
    assert log(of({"stdout": "o.$(cluster).$(Process)"}), "stdout", "7", None) == "o.7.0"
    assert log(of({"stdout": "o", "nodes": 2}), "stdout", "7", None) == "o"


def test_condor_variables(tmp_path: Path) -> None:
    """The core variables are read from the ClassAds beside a job, in either spelling."""
    ad = 'ClusterId = 7\nGlobalJobId = "head#7.0#1"\nJobBatchName = "a b"\nCjdaskTask = 3\n'
    (tmp_path / "job").write_text(ad)
    (tmp_path / "machine").write_text('Machine = "node1"\n')
    names = ("ID", "SUBMIT_HOST", "NAME", "ARRAY_INDEX", "NODELIST")
    body = "; ".join(f'echo "${{CLUSTERJOB_{name}}}" $CLUSTERJOB_{name}' for name in names)
    done = subprocess.run(
        ["/bin/sh", "-c", condor.replace_body_vars(body)],
        env={"_CONDOR_JOB_AD": f"{tmp_path}/job", "_CONDOR_MACHINE_AD": f"{tmp_path}/machine"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == ["7 7", "head head", "a b a b", "3 3", "node1 node1"]


def ads(*rows: dict[str, Any]) -> Output:
    """Return an answer with these job ads, of job 7."""
    return Output.of(json.dumps([{"ClusterId": 7, "ProcId": 0, **row} for row in rows]))


def test_condor_nodes_are_one_job() -> None:
    """A job of several nodes runs as long as one of them does, also when others have left."""
    first = {"JobStatus": 2, "CjdaskNodes": 2, "RemoteHost": "slot1@b"}
    (info,) = condor.parse_query(ads(first), ["7"])
    assert info.status is Status.RUNNING
    (info,) = condor.parse_query(ads(first, {"JobStatus": 1, "CjdaskNodes": 2}), ["7"])
    assert info.status is Status.RUNNING
    (info,) = condor.parse_query(ads({"JobStatus": 3, "CjdaskNodes": 2}), ["7"])
    assert info.status is Status.RUNNING
    ended = {"JobStatus": 4, "CjdaskNodes": 2, "ExitBySignal": False}
    assert condor.parse_ended(ads({**ended, "ExitCode": 0}), ["7"]) == []
    both = ads({**ended, "ExitCode": 5, "LastRemoteHost": "slot1@a"}, {**ended, "ExitCode": 0})
    (info,) = condor.parse_ended(both, ["7"])
    assert (info.status, info.exit_code, info.nodes) == (Status.FAILED, 5, ("a",))


@pytest.mark.parametrize(
    ("ad", "status", "reason"),
    [
        ({"JobStatus": 1, "NumJobStarts": 1}, Status.PENDING, Reason.REQUEUED),
        ({"JobStatus": 6}, Status.RUNNING, Reason.NONE),
        ({"JobStatus": 5, "HoldReasonCode": 34}, Status.FAILED, Reason.OUT_OF_MEMORY),
        ({"JobStatus": 5, "HoldReason": None}, Status.PENDING, Reason.HELD),
        ({"JobStatus": 3, "LastHoldReasonCode": 46}, Status.CANCELLED, Reason.NONE),
        ({"JobStatus": 99}, Status.RUNNING, Reason.NONE),
    ],
)
def test_condor_states(ad: dict[str, Any], status: Status, reason: Reason) -> None:
    """The status is that of JobStatus and the codes of holds; an unknown one is no end."""
    (info,) = condor.parse_query(ads(ad), [])
    assert (info.status, info.reason) == (status, reason)


def test_condor_odd_answers() -> None:
    """Ads in another encoding are read; an answer that is cut off is an error."""
    raw = b'[{"ClusterId": 7, "ProcId": 0, "JobStatus": 5, "HoldReason": "caf\xe9"}]'
    (info,) = condor.parse_query(Output((), "h", 0, raw), [])
    assert info.message.startswith("caf")
    with pytest.raises(ParseError):
        condor.parse_ended(Output.of("[\n"), ["7"])
    with pytest.raises(SchedulerError):
        condor.parse_cancel(
            Output.of(stderr="\nPermission denied to remove job 7.0\n", exit_code=1), ["7"]
        )
