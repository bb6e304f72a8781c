"""What the Slurm backend writes and reads, where a transcript does not show it."""

from __future__ import annotations

import logging
import re
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cjdask.backends.slurm import SlurmBackend
from cjdask.backends.slurm_answers import STATES, expand_nodes, infos
from cjdask.backends.slurm_options import COMMON, OPTIONS, SHORT
from cjdask.command import Output
from cjdask.errors import ParseError, ResourcesNotSupportedError, SubmitError
from cjdask.resources import COMMON_KEYS, Resources
from cjdask.status import JobInfo, Reason, Status

BACKEND = SlurmBackend()


def headers(**resources: Any) -> list[str]:
    """Return what is written behind the prefix."""
    lines = BACKEND.headers(Resources.of(resources))
    assert all(line.startswith("#SBATCH ") for line in lines)
    return [line.removeprefix("#SBATCH ") for line in lines]


def test_documented_example() -> None:
    """The job of the documentation has its directives in alphabetical order of our keys."""
    assert headers(
        jobname="printenv",
        queue="test",
        time="00:05:00",
        nodes=1,
        threads=1,
        mem=100,
        stdout="printenv.out",
        stderr="printenv.err",
    ) == [
        "--job-name=printenv",
        "--mem=100",
        "--nodes=1",
        "--partition=test",
        "--error=printenv.err",
        "--output=printenv.out",
        "--cpus-per-task=1",
        "--time=00:05:00",
    ]


@pytest.mark.parametrize(
    ("nodes", "ppn", "threads"), [(2, 32, 1), (1, 1, 32), (4, 2, 16), (2, 2, 4)]
)
def test_parallel_jobs(nodes: int, ppn: int, threads: int) -> None:
    """Nodes, processes per node and threads have an option each."""
    assert headers(nodes=nodes, ppn=ppn, threads=threads) == [
        f"--nodes={nodes}",
        f"--tasks-per-node={ppn}",
        f"--cpus-per-task={threads}",
    ]


@pytest.mark.parametrize(
    ("key", "value", "line"),
    [
        ("time", "01:30:00", "--time=01:30:00"),
        ("time", "30", "--time=00:30:00"),
        ("time", "7-00:00:30", "--time=168:00:30"),
        ("mem", 8000, "--mem=8000"),
        ("mem", "4GiB", "--mem=4096"),
        ("gpus", 2, "--gres=gpu:2"),
        ("array", "0-99%10", "--array=0-99%10"),
        ("array", 3, "--array=0-2"),
        ("depends", ["1", "2_3"], "--dependency=afterok:1:2_3 --kill-on-invalid-dep=yes"),
        ("exclusive", True, "--exclusive"),
        ("account", "phys", "--account=phys"),
        ("contiguous", True, "--contiguous"),
        ("F", "nodes", "-F nodes"),
        ("mail_type", "END", "--mail-type=END"),
        ("nice", 100, "--nice=100"),
        ("nodelist", "n[1-3,7]", "--nodelist=n[1-3,7]"),
        ("--container-thing", "x", "--container-thing=x"),
        ("-Z", "x", "-Z x"),
        ("comment", "", '--comment=""'),
        ("jobname", "a b", '--job-name="a b"'),
        ("jobname", "it's #1", '--job-name="it\'s #1"'),
        ("jobname", 'say "hi"', r'--job-name="say \"hi\""'),
        ("jobname", r"a\b", r'--job-name="a\\b"'),
        ("jobname", "$(x)", "--job-name=$(x)"),
        ("stdout", "o u %j.txt", '--output="o u %j.txt"'),
    ],
)
def test_options(key: str, value: object, line: str) -> None:
    """Each resource is written in Slurm's form, quoted where sbatch would read it otherwise."""
    assert headers(**{key: value}) == [line]


@pytest.mark.parametrize("value", [None, False])
def test_nothing_asked_for(value: object) -> None:
    """None and False write nothing."""
    assert headers(contiguous=value, exclusive=value) == []


def test_every_common_key_is_mapped() -> None:
    """No common key is forgotten, and each option is one of sbatch's."""
    assert set(COMMON) == set(COMMON_KEYS)
    assert {option.removeprefix("--") for option in COMMON.values()} <= OPTIONS
    assert set(SHORT.values()) <= OPTIONS


@pytest.mark.parametrize(
    ("resources", "words"),
    [
        ({"mailtype": "END"}, ["'mailtype'", "mail-type", "'--mailtype'"]),
        ({"partion": "x"}, ["'partion'", "partition", "'--partion'"]),
        ({"Z": "x"}, ["'Z'", "'-Z'"]),
        ({"queue": "a", "partition": "b"}, ["'queue'", "'partition'", "--partition"]),
        ({"queue": "a", "p": "b"}, ["'queue'", "'p'"]),
        ({"queue": "a", "--partition": "b"}, ["'queue'", "'--partition'"]),
        ({"ppn": 2, "ntasks_per_node": 2}, ["'ppn'", "'ntasks_per_node'"]),
        ({"mem": 2, "mem_per_cpu": 2}, ["'mem'", "'mem_per_cpu'"]),
        ({"gpus": 2, "gres": "gpu:2"}, ["'gpus'", "'gres'"]),
        ({"depends": "1", "kill_on_invalid_dep": "no"}, ["'depends'", "'kill_on_invalid_dep'"]),
        ({"q": "a", "qos": "b"}, ["'q'", "'qos'"]),
        ({"W": True}, ["'W'", "leave it out"]),
        ({"--test-only": True}, ["'--test-only'", "leave it out"]),
        ({"clusters": "other"}, ["'clusters'", "SLURM_CLUSTERS"]),
    ],
)
def test_refused(resources: dict[str, object], words: list[str]) -> None:
    """What sbatch does not have, what contradicts itself and what loses the id is refused."""
    with pytest.raises(ResourcesNotSupportedError) as caught:
        headers(**resources)
    assert [word for word in words if word not in str(caught.value)] == []


def test_launcher_says_all_counts() -> None:
    """The launcher of several processes is srun with every count and the quoted command."""
    text = BACKEND.launcher(Resources.of({"nodes": 2, "ppn": 3, "threads": 4}), "echo 'a b' $X")
    trap, _, srun = text.partition("\n")
    assert trap.endswith("TERM")
    program, *options, bash, flag, command = shlex.split(srun)
    assert (program, bash, flag) == ("srun", "/bin/bash", "-c")
    assert set(options) >= {
        "--nodes=2",
        "--ntasks=6",
        "--ntasks-per-node=3",
        "--cpus-per-task=4",
        "--kill-on-bad-exit=0",
    }
    assert command.endswith("; echo 'a b' $X")
    assert all(f"CLUSTERJOB_{name}=" in command for name in ("RANK", "LOCAL_RANK", "NODE_RANK"))


def test_launcher_of_one_process_needs_no_step() -> None:
    """One process is run as it is, so that it may call srun itself."""
    assert shlex.split(BACKEND.launcher(Resources.of({"threads": 4}), "a 'b c'")) == [
        "env",
        "CLUSTERJOB_RANK=0",
        "CLUSTERJOB_LOCAL_RANK=0",
        "CLUSTERJOB_NODE_RANK=0",
        "/bin/bash",
        "-c",
        "a 'b c'",
    ]


@pytest.mark.parametrize(
    ("gpus", "ppn", "bound"),
    [
        (4, 2, ["per_task:2"]),
        (2, 2, ["per_task:1"]),
        (3, 2, ["per_task:1"]),
        (2, 4, ["single:2"]),
        (2, 3, ["single:2"]),
        (1, 3, ["single:3"]),
        (0, 2, []),
    ],
)
def test_processes_get_gpus_of_their_own(gpus: int, ppn: int, bound: list[str]) -> None:
    """Each gets an equal share; where there are more processes several use the same."""
    text = BACKEND.launcher(Resources.of({"ppn": ppn, "gpus": gpus}), "x")
    assert re.findall(r"--gpu-bind=(\S+)", text) == bound


VARIABLES_OF_A_JOB = """
    SLURM_NTASKS SLURM_NPROCS SLURM_CPUS_PER_TASK SLURM_MEM_PER_NODE SLURM_JOB_ID SLURM_JOBID
    SLURM_NODELIST SLURM_NNODES SLURM_ARRAY_TASK_ID SLURM_TASKS_PER_NODE SLURM_SUBMIT_DIR
    SLURM_GPUS_PER_NODE SLURM_WORKING_CLUSTER SLURM_CLUSTER_NAME SLURM_PROCID"""


def test_submission_inside_a_job() -> None:
    """A job's own variables do not reach a submission from within; the site's and others do."""
    kept = {"SLURM_CONF": "/c", "SLURM_CLUSTERS": "c", "SBATCH_QOS": "q", "LC_ALL": "de", "X": "1"}
    of_a_job = dict.fromkeys(VARIABLES_OF_A_JOB.split(), "7")
    command = BACKEND.submit_command(Resources(), "-x.slr")
    assert command.argv[-2:] == ("--", "-x.slr")
    assert command.environment({**kept, **of_a_job}) == kept


def test_questions_are_not_bent_by_the_environment() -> None:
    """Variables that change what squeue, sacct and scancel do are dropped; times are epochs."""
    bending = {"SQUEUE_FORMAT": "x", "SACCT_FORMAT": "x", "SCANCEL_BATCH": "1", "LC_ALL": "de_DE"}
    query = BACKEND.query_command(["1"]).environment(bending)
    ended = BACKEND.ended_command(["1"]).environment(bending)
    cancel = BACKEND.cancel_command(["1"]).environment(bending)
    assert "SQUEUE_FORMAT" not in query
    assert "SACCT_FORMAT" not in ended
    assert "SCANCEL_BATCH" not in cancel
    assert query["LC_ALL"] == ended["LC_ALL"] == cancel["LC_ALL"] == "C"
    assert query["SLURM_TIME_FORMAT"] == ended["SLURM_TIME_FORMAT"] == "%s"


def test_no_ids_is_no_question() -> None:
    """Without ids Slurm would list all jobs there are, so the question is refused."""
    for make in (BACKEND.query_command, BACKEND.ended_command):
        with pytest.raises(ValueError, match="no job ids"):
            make([])


@pytest.mark.parametrize("stdout", ["", "Submitted batch job 7\n", "7 8\n", "x7\n"])
def test_an_unclear_submission_is_an_error(stdout: str) -> None:
    """Only an id, or an id and a cluster, is taken as an accepted job."""
    with pytest.raises(SubmitError):
        BACKEND.parse_submit(Output.of(stdout))


DOCUMENTED = """
    BOOT_FAIL CANCELLED COMPLETED CONFIGURING COMPLETING DEADLINE FAILED NODE_FAIL OUT_OF_MEMORY
    PENDING PREEMPTED RUNNING RESV_DEL_HOLD REQUEUE_FED REQUEUE_HOLD REQUEUED RESIZING REVOKED
    SIGNALING SPECIAL_EXIT STAGE_OUT STOPPED SUSPENDED TIMEOUT EXPEDITING LAUNCH_FAILED
    POWER_UP_NODE RECONFIG_FAIL UPDATE_DB"""


FAILURES = """
    BOOT_FAIL DEADLINE FAILED LAUNCH_FAILED NODE_FAIL OUT_OF_MEMORY PREEMPTED RECONFIG_FAIL
    TIMEOUT"""


def test_every_documented_state_is_in_the_table() -> None:
    """The table has the states of Slurm's manuals, and no others."""
    assert set(STATES) == set(DOCUMENTED.split())


def test_ends() -> None:
    """Just these states are ends; one of them is good and one is a cancellation."""
    ends = {word: status for word, (status, _) in STATES.items() if status.ended}
    assert [w for w, s in ends.items() if s is Status.COMPLETED] == ["COMPLETED"]
    assert [w for w, s in ends.items() if s is Status.CANCELLED] == ["CANCELLED"]
    assert {w for w, s in ends.items() if s is Status.FAILED} == set(FAILURES.split())


def one(state: str, code: str = "0", why: str = "None") -> JobInfo:
    """Make the record of one line."""
    [info] = infos("7", state, code, ("1", "2", "3"), "n1", why)
    return info


def test_unknown_states_are_no_end_and_are_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    """A word that no version has is taken as running, or pending if it says so, and logged."""
    with caplog.at_level(logging.WARNING):
        assert [one("DANCING").status for _ in range(3)] == [Status.RUNNING] * 3
        assert one("ON_HOLD").status is Status.PENDING
    assert sum("DANCING" in record.message for record in caplog.records) == 1


@pytest.mark.parametrize(
    ("why", "reason"),
    [
        ("JobHeldUser", Reason.HELD),
        ("JobHeldAdmin", Reason.HELD),
        ("JobHoldMaxRequeue", Reason.HELD),
        ("Dependency", Reason.DEPENDENCY),
        ("DependencyNeverSatisfied", Reason.DEPENDENCY),
        ("Priority", Reason.NONE),
    ],
)
def test_reasons_to_wait(why: str, reason: Reason) -> None:
    """Slurm's word for why a job waits is the message, and mapped where there is a reason."""
    info = one("PENDING", why=why)
    assert (info.reason, info.message) == (reason, why)


@pytest.mark.parametrize(
    "ident", ["", "x", "7_", "7_[1-2", "7_[1-2,...]", "7.batch", "7_x", "7_[3-1]"]
)
def test_ids_that_are_not_understood(ident: str) -> None:
    """A cut or unknown form of a job id is no record."""
    with pytest.raises(ParseError, match="not understood"):
        BACKEND.parse_query(Output.of(f"{ident}|RUNNING|None|0|1|2|3|n1|\n"), [])


def test_a_row_of_the_task_itself_counts_more() -> None:
    """A task that was cancelled on its own is not told by the row of the rest."""
    rows = "7_2|COMPLETED|0:0|1|2|3|n1\n7_[1-3]|CANCELLED by 0|0:0|1|9|9|None assigned\n"
    for text in (rows, "".join(reversed(rows.splitlines(keepends=True)))):
        found = BACKEND.parse_ended(Output.of(text), ["7"])
        assert {info.task: info.status.name for info in found} == {
            1: "CANCELLED",
            2: "COMPLETED",
            3: "CANCELLED",
        }


def test_only_what_was_asked_for() -> None:
    """Records of jobs that nobody asked for are left out; tasks may be asked for one by one."""
    rows = "".join(f"7_{i}|RUNNING|None|0|1|2|3|n1|\n" for i in range(3))
    rows += "8|RUNNING|None|0|1|2|3|n1|\n"
    found = BACKEND.parse_query(Output.of(rows), ["7_1", "9"])
    assert [(info.job_id, info.task) for info in found] == [("7", 1)]
    assert len(BACKEND.parse_query(Output.of(rows), [])) == 4


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("n1", ["n1"]),
        ("n[1-3,5],login", ["n1", "n2", "n3", "n5", "login"]),
        ("r[1-2]n[08-10]", ["r1n08", "r1n09", "r1n10", "r2n08", "r2n09", "r2n10"]),
        ("a[001-002]-ib,b", ["a001-ib", "a002-ib", "b"]),
    ],
)
def test_node_lists(text: str, names: list[str]) -> None:
    """A short list of nodes is written out, with its leading zeros."""
    assert list(expand_nodes(text)) == names


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 9)), min_size=1, max_size=5))
def test_node_lists_round_trip(ranges: list[tuple[int, int]]) -> None:
    """Every range of every part is written out in full and in order."""
    text = ",".join(f"n[{first:03d}-{first + more:03d}]" for first, more in ranges)
    expected = [f"n{i:03d}" for first, more in ranges for i in range(first, first + more + 1)]
    assert list(expand_nodes(text)) == expected


@pytest.mark.parametrize(
    ("resources", "stream", "task", "path"),
    [
        ({}, "stdout", None, "slurm-84.out"),
        ({}, "stderr", None, "slurm-84.out"),
        ({}, "stdout", 3, "slurm-84_3.out"),
        ({"stdout": "a.out"}, "stderr", None, "a.out"),
        ({"stdout": "a.out", "stderr": "b.err"}, "stderr", None, "b.err"),
        ({"stdout": "%x-%j.out", "jobname": "my job"}, "stdout", None, "my job-84.out"),
        ({"stdout": "%5j-%A.out"}, "stdout", None, "00084-84.out"),
        ({"stdout": "%A_%3a"}, "stdout", 7, "84_007"),
        ({"stdout": "%%j%"}, "stdout", None, "%j%"),
        ({"stdout": r"b\%j"}, "stdout", None, "b%j"),
        ({"stdout": "%n-%t-%s-%J"}, "stdout", None, "0-0-batch-84"),
        ({"stdout": "%u-%N-%q"}, "stdout", None, "%u-%N-%q"),
        ({"stdout": "%j"}, "stdout", 7, "%j"),
    ],
)
def test_log_path(resources: dict[str, object], stream: str, task: int | None, path: str) -> None:
    """Slurm's patterns are filled in as it does; those unknown from here are left."""
    assert BACKEND.log_path(Resources.of(resources), stream, "84", task) == path
