"""What the backends of LSF and OAR write, and what they understand beside the transcripts."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cjdask.backends.lsf import LsfBackend
from cjdask.backends.oar import OarBackend
from cjdask.command import Command, Output
from cjdask.errors import (
    ClusterjobError,
    ParseError,
    ProtocolError,
    ResourcesNotSupportedError,
    SchedulerError,
    SchedulerUnavailableError,
    SubmitError,
)
from cjdask.jobscript import JobScript
from cjdask.protocols.local import LocalProtocol
from cjdask.resources import COMMON_KEYS, Resources
from cjdask.status import JobInfo, Reason, Status

IBM = LsfBackend()
OPENLAVA = LsfBackend(ibm=False, unit="")
OAR = OarBackend()

DESIGN = {"nodes": 2, "ppn": 2, "threads": 4, "mem": 8000, "time": "01:30:00"}
"""The example of the project's table of mappings."""

EVERYTHING: dict[str, Any] = {
    **DESIGN,
    "jobname": "j",
    "queue": "q",
    "account": "a",
    "gpus": 1,
    "stdout": "o",
    "stderr": "e",
    "array": "1-3",
    "depends": "7",
    "exclusive": True,
}


def headers(backend: LsfBackend | OarBackend, **asked: Any) -> list[str]:
    """Return header lines without their prefix."""
    lines = backend.headers(Resources.of(asked))
    assert all(line.startswith(backend.prefix + " ") for line in lines)
    return [line.removeprefix(backend.prefix + " ") for line in lines]


def refused(backend: LsfBackend | OarBackend, **asked: Any) -> str:
    """Return with what message a resource is refused; it names the backend."""
    with pytest.raises(ResourcesNotSupportedError) as caught:
        backend.headers(Resources.of(asked))
    assert backend.name in str(caught.value)
    return str(caught.value)


# -- both -------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", [IBM, OPENLAVA, OAR], ids=["ibm", "openlava", "oar"])
@pytest.mark.parametrize("key", COMMON_KEYS)
def test_every_common_key_is_mapped_or_refused(backend: Any, key: str) -> None:
    """A common key makes a header, or an error that names the key and says what to do."""
    try:
        said = " ".join(headers(backend, **{key: EVERYTHING[key]}))
    except ResourcesNotSupportedError as error:
        said = str(error)
        words = (key, backend.name, "say ", "use ")
    else:
        words = ("-",)
    assert any(word in said for word in words[2:] or words)
    assert all(word in said for word in words[:2])


@pytest.mark.parametrize("backend", [IBM, OAR], ids=["lsf", "oar"])
def test_headers_are_in_alphabetical_order_of_the_keys(backend: Any) -> None:
    """The order of headers is that of the names of resources, not that of giving them."""
    asked = {key: EVERYTHING[key] for key in ("time", "queue", "nodes", "account", "jobname")}
    lines = headers(backend, **asked)
    assert lines == headers(backend, **dict(sorted(asked.items())))
    assert lines[0] in ("-P a", "--project a")


@pytest.mark.parametrize("name", ["lsf", "oar"])
def test_false_and_none_ask_for_nothing(name: str) -> None:
    """An option of the scheduler that is False or None makes no header."""
    job = JobScript("true", "j", backend=name, t=False, q=None, exclusive=False)
    assert [line.split()[1:] for line in str(job).splitlines()[1:-1]] == [
        ["-J" if name == "lsf" else "-n", "j"]
    ]


@pytest.mark.parametrize("backend", [IBM, OAR], ids=["lsf", "oar"])
@pytest.mark.parametrize("array", [3, "0-9", range(5)])
def test_tasks_are_numbered_from_1(backend: Any, array: Any) -> None:
    """An array with a task 0 is refused, and the message has one of as many tasks that is not."""
    count = len(Resources.of({"array": array}).array or ())
    message = refused(backend, array=array, jobname="j")
    assert f"array='1-{count}'" in message
    assert headers(backend, array=f"1-{count}")


@pytest.mark.parametrize("backend", [IBM, OAR], ids=["lsf", "oar"])
def test_one_option_twice_is_refused(backend: Any) -> None:
    """A common key and an option that say the same are refused, with both names."""
    message = refused(backend, queue="a", q="b")
    assert "'q'" in message
    assert "'queue'" in message


# -- LSF: writing -------------------------------------------------------------------------------


def test_lsf_writes_the_table_of_the_design() -> None:
    """Slots are cores, so many on a host; -W is hours and minutes; memory has its unit."""
    assert headers(IBM, **DESIGN) == [
        "-M 16000MB",
        '-R "rusage[mem=8000MB]"',
        "-n 16",
        '-R "span[ptile=8]"',
        "-W 1:30",
    ]


@pytest.mark.parametrize(
    ("nodes", "ppn", "threads", "slots", "ptile"),
    [(2, 32, 1, 64, 32), (1, 1, 32, 32, 32), (4, 2, 16, 128, 32)],
)
def test_lsf_shapes(nodes: int, ppn: int, threads: int, slots: int, ptile: int) -> None:
    """The documented shapes on nodes of 32 cores."""
    lines = headers(IBM, nodes=nodes, ppn=ppn, threads=threads)
    assert lines == [f"-n {slots}", f'-R "span[ptile={ptile}]"']


@pytest.mark.parametrize(
    ("unit", "limit", "usage"),
    [
        (None, "8000MB", "8000MB"),
        ("", "8192000", "8000"),
        ("KB", "8192000", "8192000"),
        ("MB", "8000", "8000"),
        ("GB", "8", "8"),
        ("g", "8", "8"),
    ],
)
def test_lsf_memory_is_in_the_unit_of_the_site(unit: str | None, limit: str, usage: str) -> None:
    """Plain numbers mean what lsf.conf says; without that limits are KB, reservations MB."""
    lines = headers(LsfBackend(unit=unit), mem=8000)
    assert lines == [f"-M {limit}", f'-R "rusage[mem={usage}]"']


@pytest.mark.parametrize(
    ("time", "written"), [("30", "0:30"), ("0:01", "0:01"), ("1-12", "36:00"), ("1:30:01", "1:31")]
)
def test_lsf_walltime(time: str, written: str) -> None:
    """-W has no seconds: the next minute is asked for."""
    assert headers(IBM, time=time) == [f"-W {written}"]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("plain/path_%J.out", "plain/path_%J.out"),
        ("select[mem>100]", '"select[mem>100]"'),
        ("a b", '"a b"'),
        ("it's", '"it\'s"'),
        ('say "x"', "'say \"x\"'"),
        ("$HOME; `x`", "'$HOME; `x`'"),
        ("", '""'),
    ],
)
def test_lsf_quotes(value: str, written: str) -> None:
    """A value is in quotes where bsub would split it, of the kind that it does not have."""
    assert headers(IBM, G=value) == [f"-G {written}"]


def test_lsf_refuses_what_no_quotes_hold() -> None:
    """A value with both kinds of quotes cannot be written."""
    assert "quotes" in refused(IBM, G="""it's "x" """)


def test_lsf_arrays_and_names() -> None:
    """An array is part of the name; a name may not look like one."""
    assert headers(IBM, jobname="j", array="1-9:4%2") == ['-J "j[1,5,9]%2"']
    assert headers(IBM, array=range(1, 4)) == ['-J "cjdask[1-3]"']
    assert "[ ]" in refused(IBM, jobname="j[1-3]")


def test_lsf_dependencies_end_with_what_they_wait_for() -> None:
    """A job whose condition can no longer come true is ended by LSF where that can be asked."""
    assert headers(IBM, depends=["1", "2"]) == ['-w "done(1) && done(2)"', "-ti"]
    assert headers(OPENLAVA, depends="1") == ['-w "done(1)"']


def test_lsf_native_options() -> None:
    """Single letters and words are options with one dash; several -R are one requirement."""
    asked = {"R": "select[x]", "m": "h1 h2", "app": "p", "-U": "rsv", "H": True}
    assert headers(IBM, nodes=1, **asked) == [
        "-U rsv",
        "-H",
        '-R "select[x]"',
        "-app p",
        '-m "h1 h2"',
        "-n 1",
        '-R "span[ptile=1]"',
    ]


@pytest.mark.parametrize("asked", [{"gpus": 1}, {"app": "p"}, {"oo": "file"}, {"-cwd": "/x"}])
def test_options_that_other_lsfs_misread_are_refused(asked: dict[str, Any]) -> None:
    """OpenLava reads -oo x as -o o and takes x for a command: what only IBM has is refused."""
    assert headers(IBM, **asked)
    assert "IBM" in refused(OPENLAVA, **asked)
    assert headers(OPENLAVA, sp=5) == ["-sp 5"]


@pytest.mark.parametrize("key", ["K", "I", "Is", "pack"])
def test_lsf_refuses_options_that_wait(key: str) -> None:
    """Options with which bsub waits for the job are no options of a job."""
    assert "wait" in refused(IBM, **{key: True})


def test_lsf_core_variables() -> None:
    """The core variables become LSF's own, in both spellings."""
    body = "$CLUSTERJOB_ID ${CLUSTERJOB_WORKDIR} $CLUSTERJOB_SUBMIT_HOST $CLUSTERJOB_NAME"
    body += " $CLUSTERJOB_NODELIST ${CLUSTERJOB_ARRAY_INDEX}x"
    assert IBM.replace_body_vars(body) == (
        "$LSB_JOBID ${LS_SUBCWD} $LSB_SUB_HOST $LSB_JOBNAME $LSB_HOSTS ${LSB_JOBINDEX}x"
    )


def test_lsf_logs_never_go_by_mail() -> None:
    """A job that names no file gets one on bsub's command line, and log_path knows it."""
    array = Resources.of({"array": "1-2"})
    assert IBM.submit_command(array, "j.lsf").argv == ("bsub", "-o", "lsf-%J_%I.out")
    assert IBM.log_path(array, "stderr", "5", 2) == "lsf-5_2.out"
    named = Resources.of({"stdout": "o.%J.%I", "stderr": "e"})
    assert IBM.submit_command(named, "j.lsf").argv == ("bsub",)
    assert IBM.log_path(named, "stdout", "5", None) == "o.5.0"
    assert IBM.log_path(named, "stderr", "5", None) == "e"
    assert IBM.submit_command(Resources.of({"oo": "x"}), "j.lsf").argv == ("bsub",)


def test_lsf_gets_the_script_as_its_standard_input(tmp_path: Path) -> None:
    """Bsub is given the text of the script, its id is kept, whatever the environment says."""
    bsub = tmp_path / "bsub"
    bsub.write_text('#!/bin/sh\necho "Job <5> is submitted to queue <$(cat)>. $BSUB_QUIET"\n')
    bsub.chmod(0o755)
    (tmp_path / "it's.lsf").write_text("text")
    command = IBM.submit_command(Resources(), "it's.lsf")
    fitted = Command(
        (str(bsub), *command.argv[1:]),
        env={"BSUB_QUIET": ""},
        cwd=str(tmp_path),
        stdin_path=command.stdin_path,
    )
    output = LocalProtocol().run(fitted)
    assert output.stdout.startswith("Job <5> is submitted to queue <text>.")
    assert IBM.parse_submit(output) == "5"
    assert "BSUB_QUIET" not in command.environment({"BSUB_QUIET": "1", "BSUB_BLOCK": "y"})
    job = SimpleNamespace(resources={"stdout": "o"}, filename="it's.lsf")
    done = subprocess.run(
        IBM.cmd_submit(job),
        cwd=tmp_path,
        env={"PATH": f"{tmp_path}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert IBM.get_job_id(done.stdout) == "5"


def test_a_file_for_standard_input_that_is_not_there(tmp_path: Path) -> None:
    """It is an error of the machine, with the name of the file."""
    command = Command(("cat",), cwd=str(tmp_path), stdin_path="nothing")
    with pytest.raises(ProtocolError, match="nothing"):
        LocalProtocol().run(command)


def test_a_folder_is_told_as_a_shell_tells_it(tmp_path: Path) -> None:
    """PWD is the folder that a command runs in: oarsub takes the job's folder from it."""
    output = LocalProtocol().run(Command(("printenv", "PWD"), cwd=str(tmp_path)))
    assert output.stdout == f"{tmp_path}\n"


# -- LSF: finding out -----------------------------------------------------------------------------

LAVA_VERSION = Output.of(stderr="openlava project 2.2, Nov 21 2026\n")
LAVA_TRIAL = Output.of(
    stderr="bjobs: invalid option -- 'o'\nUsage: bjobs [-h] [-V] [-w |-l] [-a]\n", exit_code=255
)
TRIAL = Output.of(stderr="Job <1> is not found\n", exit_code=255)
NO_FILE = Output.of(stderr="cat: /etc/lsf.conf: No such file or directory\n", exit_code=1)


@pytest.mark.parametrize(
    ("version", "conf", "unit"),
    [
        ("IBM Spectrum LSF Standard 10.1.0.13, Apr 15 2022\n", "LSF_UNIT_FOR_LIMITS=GB\n", None),
        ("IBM Spectrum LSF Standard 10.1.0.0, Jul 08 2016\n", "LSF_UNIT_FOR_LIMITS=MB\n", "MB"),
        ("Platform LSF 9.1.3.0, Jul 04 2014\n", '# x\n LSF_UNIT_FOR_LIMITS = "gb"\n', "gb"),
        ("Platform LSF 9.1.3.0, Jul 04 2014\n", "#LSF_UNIT_FOR_LIMITS=GB\n", ""),
    ],
)
def test_lsf_finds_out_how_memory_is_written(version: str, conf: str, unit: str | None) -> None:
    """A version that takes units gets them; an older one numbers in the site's unit."""
    found = IBM.probed([Output.of(stderr=version), TRIAL, Output.of(conf)])
    assert (found.dialect.ibm, found.dialect.unit) == (True, unit)


def test_lsf_finds_out_that_bjobs_has_no_format() -> None:
    """Where bjobs refuses -o, plain rows are asked for."""
    found = IBM.probed([LAVA_VERSION, LAVA_TRIAL, NO_FILE])
    assert (found.dialect.ibm, found.dialect.unit) == (False, "")
    assert found.query_command(["1", "2"]).argv == ("bjobs", "-w", "1", "2")
    assert IBM.query_command(["1"]).argv[:2] == ("bjobs", "-o")


def test_lsf_that_does_not_answer_is_not_found_out() -> None:
    """A daemon that is down during the questions leaves them to be asked again."""
    down = Output.of(stderr="LSF is down. Please wait ...\n", exit_code=255)
    with pytest.raises(SchedulerUnavailableError):
        IBM.probed([LAVA_VERSION, down, NO_FILE])


def test_lsf_that_a_site_has_set_is_not_asked() -> None:
    """A backend with arguments stays as it is."""
    assert OPENLAVA.probe_commands() == ()
    assert OPENLAVA.probed(()) is OPENLAVA
    assert len(IBM.probe_commands()) == 3


def test_lsf_questions_are_not_bent() -> None:
    """Variables that change what bjobs prints do not reach it."""
    command = IBM.query_command(["1"])
    seen = command.environment({"LSB_BJOBS_FORMAT": "user", "LSB_DISPLAY_YEAR": "y", "A": "b"})
    assert seen == {"A": "b", "LC_ALL": "C"}


# -- LSF: understanding, as documented by IBM -----------------------------------------------------


def rows(text: str, stderr: str = "", exit_code: int = 0) -> list[JobInfo]:
    """Return what is read of the answer of an IBM bjobs."""
    return IBM.parse_query(Output.of(text, stderr, exit_code), ())


@pytest.mark.parametrize(
    ("row", "status", "reason", "code"),
    [
        ("1|0|PEND|-|-|-", Status.PENDING, Reason.NONE, None),
        ("1|0|PSUSP|-|-|-", Status.PENDING, Reason.HELD, None),
        ("1|0|RUN|-|-|h", Status.RUNNING, Reason.NONE, None),
        ("1|0|USUSP|-|-|h", Status.PENDING, Reason.SUSPENDED, None),
        ("1|0|SSUSP|-|-|h", Status.PENDING, Reason.SUSPENDED, None),
        ("1|0|UNKWN|-|-|h", Status.RUNNING, Reason.NONE, None),
        ("1|0|ZOMBI|-|-|h", Status.RUNNING, Reason.NONE, None),
        ("1|0|WAIT|-|-|-", Status.PENDING, Reason.NONE, None),
        ("1|0|DONE|-|-|h", Status.COMPLETED, Reason.NONE, 0),
        ("1|0|DONE||-|h", Status.COMPLETED, Reason.NONE, 0),
        ("1|0|EXIT|3|-|h", Status.FAILED, Reason.NONZERO_EXIT, 3),
        ("1|0|EXIT|-|-|h", Status.FAILED, Reason.NONE, None),
        ("1|0|EXIT|130|TERM_OWNER: job killed by owner|h", Status.CANCELLED, Reason.NONE, 130),
        ("1|0|EXIT||TERM_OWNER: job killed by owner|-", Status.CANCELLED, Reason.NONE, None),
        ("1|0|EXIT|143|TERM_ADMIN: job killed by root|h", Status.CANCELLED, Reason.NONE, 143),
        (
            "1|0|EXIT|140|TERM_RUNLIMIT: job killed after reaching LSF run time limit|h",
            Status.FAILED,
            Reason.TIMEOUT,
            140,
        ),
        ("1|0|EXIT|137|TERM_MEMLIMIT: job killed|h", Status.FAILED, Reason.OUT_OF_MEMORY, 137),
        ("1|0|EXIT|-|TERM_PREEMPT: job killed|h", Status.FAILED, Reason.PREEMPTED, None),
        ("1|0|EXIT|-|TERM_ORPHAN_SYSTEM: orphan|-", Status.CANCELLED, Reason.DEPENDENCY, None),
        ("1|0|EXIT|9|TERM_UNHEARD_OF: what|h", Status.FAILED, Reason.NONZERO_EXIT, 9),
    ],
)
def test_lsf_states(row: str, status: Status, reason: Reason, code: int | None) -> None:
    """Each documented state and termination reason has its meaning."""
    (info,) = rows(f"{row}\n")
    assert (info.status, info.reason, info.exit_code) == (status, reason, code)
    assert info.native == row.split("|")[2]


def test_lsf_rows_have_tasks_and_hosts() -> None:
    """A row of a task has its index; a host is named once, however many slots it gives."""
    a, b = rows("7|0|RUN|-|-|h1:h1:h2\n7|12|RUN|-|-|4*h1:2*h2\n")
    assert (a.task, a.nodes) == (None, ("h1", "h2"))
    assert (b.task, b.nodes) == (12, ("h1", "h2"))


def test_lsf_notes_are_no_rows() -> None:
    """While bjobs waits it says so, before the rows; unknown jobs are named beside them."""
    note = "LSF is processing your request. Please wait ...\n"
    (info,) = rows(note + "1|0|RUN|-|-|h\n", "Job <2> is not found\n", 255)
    assert info.job_id == "1"
    assert rows("", "Job <1> is not found\nJob <2[3]> is not found\n", 255) == []
    assert rows("", "No unfinished job found\n") == []


@pytest.mark.parametrize(
    "text",
    [
        "Cannot connect to LSF. Please wait ...",
        "LSF is down. Please wait ...",
        "LSF daemon (LIM) not responding ... still trying",
        "batch system daemon not responding ... still trying",
        "Failed in an LSF library call: LIM is down; try later",
    ],
)
def test_lsf_that_is_down_is_not_an_end(text: str) -> None:
    """Nothing but notes that it waits is no answer, on either stream, of any command."""
    for output in (Output.of(text + "\n"), Output.of("", text + "\n", 255)):
        with pytest.raises(SchedulerUnavailableError):
            IBM.parse_query(output, ["1"])
        with pytest.raises(SchedulerUnavailableError):
            IBM.parse_ended(output, ["1"])
        with pytest.raises(SchedulerUnavailableError):
            IBM.parse_cancel(output, ["1"])
    with pytest.raises(SchedulerUnavailableError):
        IBM.parse_submit(Output.of("", text + "\n", 255))


@pytest.mark.parametrize("text", ["1|0|RUN|-|-", "x|0|RUN|-|-|h", "1|0|run|-|-|h", "bjobs: what"])
def test_lsf_rows_that_no_rule_matches(text: str) -> None:
    """A row that is not as expected is an error with its text."""
    with pytest.raises(ParseError, match="not understood"):
        rows(text + "\n")
    with pytest.raises(ParseError):
        rows("", "", 1)


def test_lsf_states_that_are_not_known(caplog: pytest.LogCaptureFixture) -> None:
    """A new word for a state is kept, is no end, and is logged once."""
    infos = rows("1|0|DREAMING|-|-|h\n2|0|DREAMING|-|-|h\n3|0|SUPEND|-|-|h\n")
    assert [info.status for info in infos] == [Status.RUNNING, Status.RUNNING, Status.PENDING]
    assert infos[0].native == "DREAMING"
    assert caplog.text.count("DREAMING") == 1


def test_plain_rows_of_names_with_blanks() -> None:
    """Names may hold blanks and digits; the year may be shown; the index is at the name's end."""
    text = (
        "JOBID   USER    STAT  QUEUE      FROM_HOST   EXEC_HOST   JOB_NAME   SUBMIT_TIME\n"
        "12      hpc     RUN   normal     vm          vm:vm2      my 3 job Jan 1 [7] Nov  1 01:34\n"
        "13      hpc     PEND  normal     vm             -        two words[8] Nov 21 01:34 2026\n"
    )
    a, b = OPENLAVA.parse_query(Output.of(text), ())
    assert (a.job_id, a.status, b.job_id, b.task) == ("12", Status.RUNNING, "13", 8)


HISTORY = """
Job <21>, Job Name <j>, User <u>, Project <default>, Command <echo Exited with
                      exit code 3>
Thu Mar 13 17:30:00: Submitted from host <h>, to Queue <normal>, CWD </home/u>;

 RUNLIMIT
 1.0 min of h
Thu Mar 13 17:30:05: Dispatched 1 Task(s) on Host(s) <h>;
Thu Mar 13 17:30:05: Starting (Pid 7);
{end}

MEMORY USAGE:
MAX MEM: 2 Mbytes;  AVG MEM: 2 Mbytes

Summary of time in seconds spent in various states by  Thu Mar 13 17:32:06
  PEND     PSUSP    RUN      USUSP    SSUSP    UNKWN    TOTAL
  5        0        {run}        0        0        0        65
------------------------------------------------------------------------------
"""


def history(end: str, run: int = 10) -> JobInfo:
    """Return what is read of a history with these lines at its end."""
    text = HISTORY.format(end=end, run=run)
    (info,) = IBM.parse_ended(Output.of(text), ["21"])
    assert info.job_id == "21"
    return info


@pytest.mark.parametrize(
    ("end", "run", "status", "reason"),
    [
        ("Exited by signal 2. The CPU time used is 0.1 seconds;", 10, 2, Reason.SIGNALED),
        ("Exited by signal 9. The CPU time used is 0.1 seconds;", 61, 2, Reason.TIMEOUT),
        ("Exited with exit code 140. The CPU time used;", 60, 2, Reason.TIMEOUT),
        ("Exited with exit code 140. The CPU time used;", 59, 2, Reason.NONZERO_EXIT),
        ("Exited with exit code 3. The CPU time used;", 61, 2, Reason.NONZERO_EXIT),
        ("Exited by LSF signal URG. The CPU time used;", 10, 2, Reason.NONE),
        ("Exited; TERM_OWNER: job killed by owner;", 10, 1, Reason.NONE),
        ("Exited with exit code 137; TERM_MEMLIMIT: x;", 10, 2, Reason.OUT_OF_MEMORY),
        ("Done successfully. The CPU time used is 0.1 seconds;", 61, 0, Reason.NONE),
        ("Running with execution home </home/u>;", 10, -1, Reason.NONE),
    ],
)
def test_lsf_histories(end: str, run: int, status: int, reason: Reason) -> None:
    """A history tells how a job ended: by LSF's word, a code, a signal, at the run limit."""
    info = history(f"Thu Mar 13 17:32:05: {end}", run)
    assert (int(info.status), info.reason) == (status, reason)


def test_lsf_histories_with_more_than_one_end() -> None:
    """A kill request makes an end a cancel; a job that began again has not ended."""
    stamp = "Thu Mar 13 17:32:05: "
    killed = f"{stamp}Signal <KILL> requested by user or administrator <u>;\n"
    assert history(f"{killed}{stamp}Exited by signal 2;").status is Status.CANCELLED
    assert history(f"{killed}{stamp}Done successfully;").status is Status.COMPLETED
    again = f"{stamp}Exited with exit code 1;\n{stamp}Requeue the job for the next run;"
    assert history(again).status is Status.PENDING
    assert history(f"{again}\n{stamp}Starting (Pid 8);").status is Status.RUNNING
    reason = f"{stamp}Exited with exit code 130;\n{stamp}Completed <exit>; TERM_RUNLIMIT: job ...;"
    assert history(reason).reason is Reason.TIMEOUT


@pytest.mark.parametrize("line", ["Exited with exit code 3.", "something else", "TueMar: Exited"])
def test_lsf_histories_that_no_rule_matches(line: str) -> None:
    """A line that has no place in a history is an error."""
    with pytest.raises(ParseError):
        history(line)


def test_lsf_cancels_many_with_one_command() -> None:
    """Jobs that have ended are no error beside those that end now; a refusal is."""
    assert IBM.cancel_command(["1", IBM.task_id("2", 3)]).argv == ("bkill", "1", "2[3]")
    done = "Job <1>: Job has already finished\n"
    IBM.parse_cancel(Output.of("Job <2> is being terminated\n", done, 255), ["1", "2"])
    with pytest.raises(SchedulerError, match="denied"):
        IBM.parse_cancel(Output.of("", done + "Job <3>: User permission denied\n", 255), [])
    with pytest.raises(SchedulerError):
        IBM.parse_cancel(Output.of("", "", 1), [])


def test_lsf_ids_are_found_among_other_text() -> None:
    """What a site's esub prints before the line with the id does not matter."""
    text = "Cannot connect to LSF. Please wait ...\nhello\nJob <77> is submitted to queue <q>.\n"
    assert IBM.parse_submit(Output.of(text)) == "77"
    with pytest.raises(SubmitError, match="No such queue"):
        IBM.parse_submit(Output.of("", "x: No such queue. Job not submitted.\n", 255))
    with pytest.raises(ParseError, match="may have submitted"):
        IBM.parse_submit(Output.of(""))


def test_lsf_starts_processes(tmp_path: Path) -> None:
    """On several hosts blaunch starts the processes of each but the first, with their ranks."""
    blaunch = tmp_path / "blaunch"
    blaunch.write_text('#!/bin/bash\ncd / && echo "via $1" && exec env -i "${@:2}"\n')
    blaunch.chmod(0o755)
    shown = 'echo "$CLUSTERJOB_RANK $CLUSTERJOB_NODE_RANK $MINE $PWD"; exit $CLUSTERJOB_RANK'
    text = IBM.launcher(Resources.of({"nodes": 2, "ppn": 2}), shown)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LSB_HOSTS": "h1 h1 h2 h2", "MINE": "x"}
    env["HOME"] = str(tmp_path)
    done = subprocess.run(
        ["/bin/sh", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    lines = [f"{rank} {rank // 2} x {tmp_path}" for rank in range(4)]
    assert sorted(done.stdout.splitlines()) == sorted([*lines, "via h2"])
    assert done.returncode == 3
    with pytest.raises(ResourcesNotSupportedError, match="nodes"):
        OPENLAVA.launcher(Resources.of({"nodes": 2}), "true")
    assert OPENLAVA.launcher(Resources.of({"ppn": 2}), "true")


# -- OAR: writing -----------------------------------------------------------------------------


def test_oar_writes_the_table_of_the_design() -> None:
    """Nodes, cores and walltime are one -l; memory is a filter where a property is known."""
    asked = {key: value for key, value in DESIGN.items() if key != "mem"}
    assert headers(OAR, **asked) == ["-l /nodes=2/core=8,walltime=1:30:0"]
    assert headers(OarBackend(memory="memnode"), **DESIGN) == [
        "-p memnode >= 8000",
        "-l /nodes=2/core=8,walltime=1:30:0",
    ]


@pytest.mark.parametrize(
    ("asked", "written"),
    [
        ({"time": "30"}, "/nodes=1/core=1,walltime=0:30:0"),
        ({"nodes": 3}, "/nodes=3/core=1"),
        ({"ppn": 2, "threads": 3}, "/nodes=1/core=6"),
        ({"exclusive": True, "nodes": 2, "ppn": 4}, "/nodes=2"),
        ({"l": "/nodes=1/gpu=2", "time": "1-0"}, "/nodes=1/gpu=2,walltime=24:0:0"),
    ],
)
def test_oar_resource_lists(asked: dict[str, Any], written: str) -> None:
    """All that oarsub's -l says is in one of them: several would be alternatives."""
    assert headers(OAR, **asked) == [f"-l {written}"]


def test_oar_filters_are_joined() -> None:
    """The filter for memory and one of the user's both hold."""
    backend = OarBackend(memory="memnode")
    assert headers(backend, mem=10, p="gpu = 'NO' OR x=1") == [
        "-p memnode >= 10 AND (gpu = 'NO' OR x=1)"
    ]
    assert headers(backend, p="x=1") == ["-p x=1"]


def test_oar_values_are_not_quoted() -> None:
    """Oarsub takes the rest of a line as it is."""
    lines = headers(OAR, jobname="two words", stdout="my o.%jobid%", hold=True, checkpoint=20)
    assert lines == ["--checkpoint 20", "--hold", "-n two words", "-O my o.%jobid%"]


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        ({"mem": 1}, "memnode"),
        ({"gpus": 1}, "/gpu=2"),
        ({"depends": "1"}, "a='ID'"),
        ({"array": "1-3%2"}, "array='1-3'"),
        ({"array": "2-4"}, "array='1-3'"),
        ({"array": "1,3"}, "array='1-2'"),
        ({"jobname": "it's"}, "leave them out"),
        ({"jobname": "a/b"}, "leave them out"),
        ({"r": "2026-01-01 00:00:00"}, "no option"),
        ({"reservation": "x"}, "no option"),
        ({"l": "/nodes=1", "nodes": 1}, "either"),
        ({"l": "/nodes=1,walltime=1", "time": "1"}, "walltime"),
    ],
)
def test_oar_refuses_what_it_cannot_do(asked: dict[str, Any], text: str) -> None:
    """What OAR would misread, or would only seem to do, is refused with what to do instead."""
    message = refused(OAR, **asked)
    assert text in message
    assert any(key in message for key in asked)


def test_oar_core_variables() -> None:
    """The core variables become OAR's own; it has none for the host of the submission."""
    body = "$CLUSTERJOB_ID ${CLUSTERJOB_WORKDIR} $CLUSTERJOB_NAME ${CLUSTERJOB_ARRAY_INDEX}x"
    assert OAR.replace_body_vars(body) == (
        "$OAR_JOB_ID ${OAR_WORKING_DIRECTORY} $OAR_JOB_NAME ${OAR_ARRAY_INDEX}x"
    )
    text = OAR.replace_body_vars('echo "[$CLUSTERJOB_SUBMIT_HOST] "$CLUSTERJOB_NODELIST')
    done = subprocess.run(
        ["/bin/sh", "-c", 'f=$(mktemp); printf "a\\na\\nb\\n" >$f; OAR_NODEFILE=$f; ' + text],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "[] a b\n"


def test_oar_log_paths() -> None:
    """OAR names files after name and id; the tasks of an array are jobs with ids in a row."""
    named = Resources.of({"jobname": "j"})
    assert OAR.log_path(named, "stdout", "12", None) == "OAR.j.12.stdout"
    assert OAR.log_path(named, "stderr", "12", 3) == "OAR.j.14.stderr"
    assert OAR.log_path(Resources.of({"stdout": "o.%jobid%"}), "stdout", "12", 1) == "o.12"
    assert OAR.log_path(Resources(), "stderr", "12", None) == "OAR.12.stderr"


def test_oar_submits_a_file_by_a_path() -> None:
    """A name without a folder would be looked up as a program; odd names would be split."""
    assert OAR.submit_command(Resources(), "j.oar").argv == ("oarsub", "-S", "./j.oar")
    assert OAR.submit_command(Resources(), "/x/j.oar").argv[2] == "/x/j.oar"
    with pytest.raises(ResourcesNotSupportedError, match="filename"):
        OAR.submit_command(Resources(), "my job.oar")


# -- OAR: understanding -----------------------------------------------------------------------


def test_oar_asks_for_jobs_arrays_and_tasks_at_once() -> None:
    """Any number of ids is one condition; text that is no id never reaches the database."""
    assert OAR.query_command(["1", "22"]).argv[-1] == "array_id IN (1, 22)"
    assert OAR.cancel_command([OAR.task_id("7", 3), "9"]).argv == (
        "oardel",
        "--sql",
        "array_id IN (9) OR (array_id = 7 AND array_index = 3)",
    )
    for ids in (["-5"], ["1) OR (1=1"], [""], []):
        with pytest.raises(ValueError, match="id"):
            OAR.query_command(ids)


def test_oar_refused_jobs_have_ids_below_0() -> None:
    """An id is believed only if oarsub succeeded; a negative one never."""
    with pytest.raises(SubmitError, match="not enough"):
        OAR.parse_submit(Output.of("OAR_JOB_ID=-5\n", "There are not enough resources\n", 8))
    with pytest.raises(ParseError):
        OAR.parse_submit(Output.of("OAR_JOB_ID=-5\n"))
    assert OAR.parse_submit(Output.of("[ADMISSION RULE] x\nOAR_JOB_ID=5\n")) == "5"


@pytest.mark.parametrize(
    "text",
    [
        "DBI connect('database=oar') failed: could not connect to server: Connection refused",
        "DB connection error, exiting.",
    ],
)
def test_oar_that_is_down_is_not_an_end(text: str) -> None:
    """A database that does not answer says nothing about any job, of any command."""
    output = Output.of("", text + "\n", 255)
    calls: list[Any] = [OAR.parse_query, OAR.parse_cancel, lambda o, _: OAR.parse_submit(o)]
    for call in calls:
        with pytest.raises(SchedulerUnavailableError):
            call(output, ["1"])


@pytest.mark.parametrize("text", ["[]", "7", '{"1": {}}', '{"1": []}', "{", "null x"])
def test_oar_answers_that_no_rule_matches(text: str) -> None:
    """An answer that is not the jobs asked for is an error."""
    with pytest.raises(ClusterjobError):
        OAR.parse_query(Output.of(text + "\n"), ["1"])


def test_oar_cancel_answers() -> None:
    """A job that is being killed is no error; one of somebody else's is."""
    OAR.parse_cancel(Output.of("Deleting the job = 1 ...REGISTERED.\n"), ["1"])
    OAR.parse_cancel(Output.of("", "Cannot frag 1 ; This job was already killed.\n", 6), ["1"])
    OAR.parse_cancel(Output.of(), ["1"])
    with pytest.raises(SchedulerError, match="right user"):
        OAR.parse_cancel(Output.of("", "Cannot frag 1 ; You are not the right user.\n", 1), ["1"])
    with pytest.raises(SchedulerError):
        OAR.parse_cancel(Output.of("", "", 3), ["1"])


def test_oar_starts_processes(tmp_path: Path) -> None:
    """On several nodes oarsh starts the processes of each but the first, with their ranks."""
    oarsh = tmp_path / "oarsh"
    oarsh.write_text(
        '#!/bin/bash\ncd / && echo "via $1" && exec env -i PATH=$PATH sh -c "${*:2}"\n'
    )
    oarsh.chmod(0o755)
    (tmp_path / "nodes").write_text("n1\nn1\nn2\nn2\n")
    shown = 'echo "$CLUSTERJOB_RANK $CLUSTERJOB_NODE_RANK $MINE $PWD"; exit $CLUSTERJOB_RANK'
    text = OAR.launcher(Resources.of({"nodes": 2, "ppn": 2}), shown)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path), "MINE": "x"}
    env["OAR_NODEFILE"] = str(tmp_path / "nodes")
    done = subprocess.run(
        ["/bin/sh", "-c", text], cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    lines = [f"{rank} {rank // 2} x {tmp_path}" for rank in range(4)]
    assert sorted(done.stdout.splitlines()) == sorted([*lines, "via n2"])
    assert done.returncode == 3
