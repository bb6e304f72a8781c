"""Answers of the PBS family that no transcript can hold."""

from __future__ import annotations

import json
import logging
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends import BatchBackend
from cjdask.backends.lpbs import LpbsBackend
from cjdask.backends.pbs import TorqueBackend
from cjdask.backends.pbspro import PbsProBackend
from cjdask.command import Command, Output
from cjdask.errors import ParseError, SchedulerError, SchedulerUnavailableError
from cjdask.protocols.local import LocalProtocol
from cjdask.scheduler import Scheduler
from cjdask.status import JobInfo, Reason, Status

PRO, TORQUE, LPBS = PbsProBackend(), TorqueBackend(), LpbsBackend()


def jobs(**records: dict[str, Any]) -> str:
    """Make an answer of PBS Pro; the server's name is added to the ids."""
    named = {f"{name.lstrip('_')}.server": record for name, record in records.items()}
    return json.dumps({"pbs_version": "23.06.06", "Jobs": named}, indent=1)


def one(backend: BatchBackend, text: str) -> JobInfo:
    """Read an answer of one job."""
    (info,) = backend.parse_query(Output.of(text), ())
    return info


# -- PBS Pro -------------------------------------------------------------------------------------

SERVER = {"job_history_enable": "True", "max_array_size": 500}


@pytest.mark.parametrize(
    ("server", "command", "size"),
    [
        (SERVER, "qstat -E -x -t -f -F json 7.server", 500),
        ({"job_history_enable": "False"}, "qstat -E -t -f -F json 7.server", 10000),
        ({}, "qstat -E -t -f -F json 7.server", 10000),
    ],
)
def test_history_is_found_out_once(server: dict[str, Any], command: str, size: int) -> None:
    """Without history ``-x`` has no answer, not even on a running job; so it is not asked."""
    answer = json.dumps({"pbs_version": "1", "Server": {"server": server}})

    class Protocol(LocalProtocol):
        def which(self, program: str) -> str | None:
            return program

        def run(self, command: Command, timeout: float | None = None) -> Output:
            assert command.argv == ("qstat", "-B", "-f", "-F", "json")
            return Output.of(answer)

    scheduler = Scheduler(PRO, Protocol())
    fitted = scheduler.backend
    assert isinstance(fitted, PbsProBackend)
    assert str(fitted.query_command(["7.server"])) == command
    assert fitted.max_array_size == size
    assert scheduler.backend is fitted
    assert scheduler.commands["probe"] == 1


def test_a_server_that_is_down_is_no_finding() -> None:
    """Where the server does not answer at the first use the error says so."""
    down = Output.of('{"pbs_version": "1"}', "qstat: cannot connect to server x (errno=1)", 255)
    with pytest.raises(SchedulerUnavailableError):
        PRO.probed([down])
    with pytest.raises(ParseError):
        PRO.probed([Output.of('{"pbs_version": "1"}')])


def test_without_history_an_ended_job_is_not_listed() -> None:
    """Neither an unknown id nor one of a job that has ended is an error or an end."""
    plain = PbsProBackend(history=False)
    header = '{"pbs_version": "1"}'
    for code, word in ((153, "Unknown Job Id 7.s"), (35, "7.s Job has finished, use -x or -H")):
        assert plain.parse_query(Output.of(header, f"qstat: {word}", code), ["7.s"]) == []


def test_times_do_not_depend_on_the_zone_of_the_client() -> None:
    """PBS prints times in the zone of the environment, so the command sets it."""
    assert PRO.query_command(["7.s"]).environment({"TZ": "Asia/Tokyo"})["TZ"] == "UTC"
    info = one(PRO, jobs(_7={"job_state": "R", "stime": "Sat Nov 21 01:02:50 2026"}))
    assert info.start_time == 1795222970


@pytest.mark.parametrize(
    "line",
    ['"FOO":005,', '"FOO":.5,', '"FOO":-00,', '"FOO":1.,', r'"FOO":"a\,b\'c",', '"FOO":\t7,'],
)
def test_json_that_is_none_is_read(line: str) -> None:
    """Values that older versions print as no JSON knows them do not hide the job."""
    text = f"""{{
    "timestamp":1,
    "pbs_version":"19.1.3",
    "Jobs":{{
        "7.server":{{
            "job_state":"F",
            "Variable_List":{{
                {line}
                "BAR":"x"
            }},
            "Exit_status":3
        }}
    }}
}}"""
    assert one(PRO, text).exit_code == 3
    with pytest.raises(ParseError):
        PRO.parse_query(Output.of(text[:-4]), ())


def test_bytes_that_are_no_text_are_read() -> None:
    """PBS passes bytes of variables on as they are."""
    raw = jobs(_7={"job_state": "R", "X": "<>"}).replace("<>", "?").encode()
    output = Output((), "h", 0, raw.replace(b"?", b"\xff\x1b"))
    assert PRO.parse_query(output, ["7.server"])[0].status is Status.RUNNING


@pytest.mark.parametrize(
    ("record", "status", "reason", "code", "signal"),
    [
        ({"Exit_status": -1, "stime": "x"}, Status.FAILED, Reason.LAUNCH_FAILURE, None, None),
        ({"Exit_status": -2}, Status.FAILED, Reason.LAUNCH_FAILURE, None, None),
        ({"Exit_status": -27}, Status.FAILED, Reason.OUT_OF_MEMORY, None, None),
        ({"Exit_status": -28}, Status.FAILED, Reason.TIMEOUT, None, None),
        ({"Exit_status": -29}, Status.FAILED, Reason.TIMEOUT, None, None),
        ({"Exit_status": 271}, Status.CANCELLED, Reason.NONE, None, 15),
        ({"Exit_status": 271, "substate": 93}, Status.FAILED, Reason.SIGNALED, None, 15),
        ({"Exit_status": 0, "substate": 91}, Status.CANCELLED, Reason.NONE, None, None),
        ({"stime": "Sat Nov 21 01:02:50 2026"}, Status.FAILED, Reason.LAUNCH_FAILURE, None, None),
    ],
)
def test_exit_statuses(
    record: dict[str, Any], status: Status, reason: Reason, code: int | None, signal: int | None
) -> None:
    """Each number that PBS Pro's manual and header name has its meaning."""
    record = {key: value for key, value in record.items() if value != "x"}
    info = one(PRO, jobs(_7={"job_state": "F", **record}))
    assert (info.status, info.reason, info.exit_code, info.signal) == (status, reason, code, signal)


def test_an_unknown_state_is_not_final(caplog: pytest.LogCaptureFixture) -> None:
    """A state that nobody knows is kept as running, and logged once."""
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            info = one(PRO, jobs(_7={"job_state": "?!"}))
    assert (info.status, info.native) == (Status.RUNNING, "?!")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        "null",
        jobs(_7={}),
        jobs(nojob={"job_state": "R"}),
        jobs(_7={"job_state": "F", "Exit_status": "soon"}),
        jobs(_7={"job_state": "R", "stime": "soon"}),
        '{"pbs_version": "1", "Jobs": []}',
        '{"pbs_version": "1", "Jobs": {"7.s": 1}}',
    ],
)
def test_other_answers_are_errors(text: str) -> None:
    """An answer of another form is an error, not an empty list of jobs."""
    with pytest.raises(ParseError):
        PRO.parse_query(Output.of(text), ())


@pytest.mark.parametrize("backend", [PRO, TORQUE], ids=lambda b: b.name)
def test_only_what_was_asked_for_is_told(backend: BatchBackend) -> None:
    """Records of other jobs are left out; a task may be asked for by its own id."""
    if backend is PRO:
        state = {"job_state": "R"}
        text = jobs(**{"_7": state, "_8": state, "_9[]": state, "_9[1]": state, "_9[2]": state})
    else:
        names = ("7", "8", "9[1]", "9[2]")
        rows = "".join(
            f"<Job><Job_Id>{name}.server</Job_Id><job_state>R</job_state></Job>" for name in names
        )
        text = f'<?xml version="1.0"?>\n<Data>{rows}</Data>\n'
    output = Output.of(text)

    def keys(*ids: str) -> set[tuple[str, int | None]]:
        found = {(info.job_id, info.task) for info in backend.parse_query(output, ids)}
        return found - {("9[].server", None)}

    assert keys("7.server") == {("7.server", None)}
    assert keys("9[].server") == {("9[].server", 1), ("9[].server", 2)}
    assert keys("9[2].server", "8.server") == {("9[].server", 2), ("8.server", None)}
    assert len(keys()) == 4


# -- TORQUE --------------------------------------------------------------------------------------


def test_lines_in_values_are_no_lines_of_the_answer() -> None:
    """A value with line breaks, such as submit_args, cannot pretend to be another job."""
    text = """<?xml version="1.0"?>
<Data><Job><Job_Id>76.server</Job_Id><job_state>H</job_state><Hold_Types>u</Hold_Types>
<submit_args>-h -v X=x
    job_state = C
    exit_status = 0
Job Id: 999.fake,Y=&lt;b&gt;&amp;amp;</submit_args></Job></Data>
"""
    info = one(TORQUE, text)
    assert (info.job_id, info.status, info.reason) == ("76.server", Status.PENDING, Reason.HELD)


def test_tasks_are_asked_for_only_with_an_array() -> None:
    """An array's id without ``-t`` is answered with all jobs of the server."""
    assert str(TORQUE.query_command(["1.s", "2.s"])) == "qstat -x 1.s 2.s"
    assert str(TORQUE.query_command(["1.s", "2[].s"])) == "qstat -x -t 1.s '2[].s'"


def test_the_word_on_a_whole_array_is_not_believed() -> None:
    """TORQUE shows an array as ended while its tasks still run."""
    text = (
        "<Data><Job><Job_Id>78[].s</Job_Id><job_state>C</job_state></Job>"
        "<Job><Job_Id>79[].s</Job_Id><job_state>Q</job_state></Job></Data>"
    )
    info = one(TORQUE, f'<?xml version="1.0"?>\n{text}')
    assert (info.job_id, info.status) == ("79[].s", Status.PENDING)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (-10, Status.FAILED, Reason.OUT_OF_MEMORY),
        (-11, Status.FAILED, Reason.TIMEOUT),
        (-9, Status.FAILED, Reason.LAUNCH_FAILURE),
        (265, Status.FAILED, Reason.SIGNALED),
        (271, Status.CANCELLED, Reason.NONE),
    ],
)
def test_exit_statuses_of_torque(code: int, status: Status, reason: Reason) -> None:
    """TORQUE's own codes are others than those of PBS Pro."""
    job = f"<Job_Id>7.s</Job_Id><job_state>C</job_state><exit_status>{code}</exit_status>"
    info = one(TORQUE, f'<?xml version="1.0"?>\n<Data><Job>{job}</Job></Data>')
    assert (info.status, info.reason) == (status, reason)


@pytest.mark.parametrize(
    "text",
    [
        "7.s job R",
        '<?xml version="1.0"?>\n<Data><Job>',
        '<?xml version="1.0"?>\n<Error/>',
        '<?xml version="1.0"?>\n<Data><Node/></Data>',
        '<?xml version="1.0"?>\n<Data><Job><Job_Id>7.s</Job_Id></Job></Data>',
        '<?xml version="1.0"?>\n<Data><Job><job_state>R</job_state></Job></Data>',
    ],
)
def test_other_answers_of_torque_are_errors(text: str) -> None:
    """An answer of another form is an error with its text."""
    with pytest.raises(ParseError):
        TORQUE.parse_query(Output.of(text), ())


def test_no_jobs_of_torque_are_no_error() -> None:
    """An empty answer has no jobs, which says nothing about any."""
    assert TORQUE.parse_query(Output.of(""), ["7.s"]) == []


# -- LPBS ----------------------------------------------------------------------------------------


def test_the_log_is_searched_for_whole_ids(tmp_path: Path) -> None:
    """The search command finds the lines of a job in a real log, and not those of others."""
    log = (
        "11/21/2026 01:21:30 +0000: ##### New Job Submission ####\n"
        "11/21/2026 01:21:34 +0000: Finished job 2.localhost.local with status 3\n"
        "11/21/2026 01:21:35 +0000: Finished job 22.localhost.local with status 0\n"
    )
    (tmp_path / "lpbs.log").write_text(log)
    ids = ["2.localhost.local", "3.localhost.local"]
    command = LPBS.ended_command(ids)
    env = {"PATH": "/usr/bin:/bin", "LPBS_HOME": str(tmp_path)}
    done = subprocess.run(command.argv, env=env, capture_output=True, text=True, check=False)
    found = LPBS.parse_ended(Output.of(done.stdout, done.stderr, done.returncode), ids)
    assert [(info.job_id, info.exit_code) for info in found] == [("2.localhost.local", 3)]
    assert LPBS.parse_ended(Output.of(exit_code=1), ids) == []


@pytest.mark.parametrize("text", ["Job Id: 1.s\n    a = b", "    a = b", "what?", "Job Id: x\n"])
def test_other_answers_of_lpbs_are_errors(text: str) -> None:
    """A line of another form, or a job without its host, is an error."""
    with pytest.raises(ParseError):
        LPBS.parse_query(Output.of(text), ())


def test_an_error_of_lqdel_is_an_error() -> None:
    """Only the failure that lqdel shows for a job that is gone is taken as a success."""
    gone = "TypeError: int() argument must be a string or a number, not 'NoneType'"
    other = "AttributeError: 'Process' object has no attribute 'get_children'"
    LPBS.parse_cancel(Output.of(stderr=gone, exit_code=1), ["1.s"])
    for text in (other, f"{gone}\n{other}", "LPBS_HOME must be defined"):
        with pytest.raises(SchedulerError):
            LPBS.parse_cancel(Output.of(stderr=text, exit_code=1), ["1.s"])
