"""What the embedded scheduler promises to those who submit, query and cancel."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask.testing import until
from tests.embedded_host import EmbeddedHost, runs


@pytest.fixture
def host(tmp_path: Path) -> Iterator[EmbeddedHost]:
    """Give a host of two slots, and end what is left on it."""
    made = EmbeddedHost(tmp_path)
    yield made
    made.close()


def test_job_runs_with_its_arguments_and_environment(host: EmbeddedHost) -> None:
    """A job gets its arguments, the environment of the submitter and what describes the job."""
    body = 'echo "$1|$2|$FRUIT|$CJ_JOB_ID|$CJ_JOB_NAME|$CJ_NODELIST|$CJ_NODES$CJ_PPN$CJ_THREADS"'
    path = host.script(body + '\necho "$CJ_SUBMIT_DIR|$CJ_COMMENT|$CJ_ARRAY_INDEX|$PWD"')
    options = ["--jobname=tea pot", "--threads=2", "--comment=tag 7", "--stdout=out.txt"]
    env = {"FRUIT": "fig\ntwo", "CJ_ARRAY_INDEX": "an outer job's"}
    number = host.run("submit", *options, path, "a b", "$HOME", env=env)[0]["id"]
    assert host.end(number) == ("COMPLETED", "")
    name = os.uname().nodename
    assert host.text("out.txt").split("|") == [
        *["a b", "$HOME", "fig\ntwo", "1", "tea pot", name, f"112\n{host.work}"],
        *["tag 7", "", f"{host.work}\n"],
    ]


def test_query_tells_the_whole_story_of_a_job(host: EmbeddedHost) -> None:
    """A query names times in order, log files, nodes, work directory and comment."""
    number = host.submit("exit 3", "--comment=x y", "--jobname=tea")
    assert host.end(number) == ("FAILED", "NONZERO_EXIT")
    line = host.job(number)
    assert line["submit_time"] <= line["start_time"] <= line["end_time"] <= time.time()
    assert line["stdout"] == line["stderr"] == f"{host.work}/tea-1.out"
    assert (line["exit_code"], line["signal"]) == (3, None)
    assert (line["workdir"], line["comment"]) == (str(host.work), "x y")
    assert line["nodes"] == [os.uname().nodename]
    assert (line["id"], line["array_id"], line["array_index"]) == ("1", None, None)


def test_query_of_unknown_ids_says_so(host: EmbeddedHost) -> None:
    """Ids that were never given get a line with state UNKNOWN each."""
    number = host.submit("true")
    lines = host.query("99", number + "_1", "what")
    assert lines == [{"id": text, "state": "UNKNOWN"} for text in ("99", "1_1", "what")]


def test_query_without_ids_lists_what_has_not_ended(host: EmbeddedHost) -> None:
    """Ended jobs are listed only where all are asked for."""
    done = host.submit("true")
    host.wait(done)
    running = host.submit("sleep 60")
    assert [line["id"] for line in host.query()] == [running]
    assert [line["id"] for line in host.query("--all")] == [done, running]


def test_header_lines_are_read_and_the_command_line_wins(host: EmbeddedHost) -> None:
    """Options stand in the leading comments; those behind the first command are not read."""
    body = '#CJ --jobname="from header" --stdout=h.txt\n\n# note\n#CJ --comment=c\n'
    number = host.submit(body + "echo $CJ_JOB_NAME\n#CJ --nodes=77", "--stdout=line.txt")
    host.wait(number)
    assert host.text("line.txt") == "from header\n"
    assert host.job(number)["comment"] == "c"


def test_script_is_copied_at_submission(host: EmbeddedHost) -> None:
    """An edit of the script after its submission changes nothing."""
    blocker = host.submit("sleep 0.3", "--exclusive")
    number = host.submit("echo before", "--stdout=o.txt")
    host.script("echo after")
    host.wait(blocker, number)
    assert host.text("o.txt") == "before\n"


def test_script_may_come_from_standard_input_and_name_any_interpreter(host: EmbeddedHost) -> None:
    """A script given as '-' runs under the interpreter that its first line names."""
    text = f"#!{host.python} -S\nimport os, sys; print(sys.argv[1:], os.environ['CJ_JOB_NAME'])\n"
    words = host.command("submit", "--stdout=o.txt", "-", "x")
    subprocess.run(words, input=text, env=host.env, cwd=host.work, text=True, check=True)
    assert host.end("1") == ("COMPLETED", "")
    assert host.text("o.txt") == "['x'] stdin\n"


def test_log_patterns_are_filled_in(host: EmbeddedHost) -> None:
    """Patterns give id, array id, index and name; stdout and stderr part where both are named."""
    options = ["--jobname=a/b", "--stdout=%x-%j.o", "--stderr=e%A.%a%%"]
    number = host.submit("echo out; echo err >&2", *options, "--array=4")
    host.wait(number)
    assert host.text("a_b-1_4.o") == "out\n"
    assert host.text("e1.4%") == "err\n"
    assert (host.job("1_4")["stdout"], host.job("1_4")["stderr"]) == (
        f"{host.work}/a_b-1_4.o",
        f"{host.work}/e1.4%",
    )


def test_log_files_get_the_umask_of_the_submitter(host: EmbeddedHost) -> None:
    """Log files have the permissions that the user's umask says, the state is private."""
    words = " ".join(host.command("submit", host.script("umask")))
    subprocess.run(["sh", "-c", "umask 027; " + words], env=host.env, cwd=host.work, check=True)
    host.wait("1")
    log = host.work / "job.sh-1.out"
    assert (log.stat().st_mode & 0o777, log.read_text()) == (0o640, "0027\n")
    assert host.state.stat().st_mode & 0o777 == 0o700
    for path in host.state.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path


@pytest.mark.parametrize(
    ("body", "end", "code", "number"),
    [
        ("exit 0", ("COMPLETED", ""), 0, None),
        ("exit 255", ("FAILED", "NONZERO_EXIT"), 255, None),
        ("kill -9 $$", ("FAILED", "SIGNALED"), None, 9),
        ("kill -SEGV $$", ("FAILED", "SIGNALED"), None, 11),
        ("bash -c 'kill -9 $$'; exit $?", ("FAILED", "NONZERO_EXIT"), 137, None),
    ],
)
def test_exit_codes_and_signals_are_told(
    host: EmbeddedHost, body: str, end: tuple[str, str], code: int | None, number: int | None
) -> None:
    """The end of a job says with which exit code or by which signal."""
    job = host.submit(body)
    assert host.end(job) == end
    assert (host.job(job)["exit_code"], host.job(job)["signal"]) == (code, number)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        (["--stdout=/nonexistent/dir/log"], "/nonexistent/dir/log"),
        (["--chdir=/nonexistent"], "/nonexistent"),
    ],
)
def test_job_that_cannot_be_started_fails_with_the_cause(
    host: EmbeddedHost, options: list[str], fragment: str
) -> None:
    """What keeps a job from its start is a LAUNCH_FAILURE whose message names the file."""
    number = host.submit("true", *options)
    assert host.end(number) == ("FAILED", "LAUNCH_FAILURE")
    assert fragment in host.job(number)["message"]


def test_missing_interpreter_is_a_launch_failure(host: EmbeddedHost) -> None:
    """A script whose interpreter does not exist fails with its name."""
    path = host.work / "odd.sh"
    path.write_text("#!/no/such/shell -x\ntrue\n")
    number = host.run("submit", str(path))[0]["id"]
    assert host.end(number) == ("FAILED", "LAUNCH_FAILURE")
    assert "/no/such/shell" in host.job(number)["message"]


def test_jobs_wait_for_slots_and_start_in_order(host: EmbeddedHost) -> None:
    """A big job at the head of the queue is not overtaken by a small one that would fit."""
    first = host.submit("echo first >> order; until [ -e go ]; do sleep 0.05; done")
    host.wait_running(first)
    big = host.submit("echo big >> order", "--ppn=2")
    small = host.submit("echo small >> order")
    time.sleep(0.3)
    assert [line["state"] for line in host.query(first, big, small)] == [
        *["RUNNING", "PENDING", "PENDING"]
    ]
    assert host.job(big)["reason"] == "RESOURCES"
    info = host.run("info")[0]
    assert (info["slots_total"], info["slots_used"]) == (2, 1)
    assert (info["running"], info["pending"]) == (1, 2)
    (host.work / "go").touch()
    host.wait(first, big, small)
    assert host.text("order").split() == ["first", "big", "small"]


def test_exclusive_job_has_the_host_for_itself(host: EmbeddedHost) -> None:
    """An exclusive job takes all slots."""
    number = host.submit("sleep 60", "--exclusive")
    assert host.wait_running(number)["slots"] == 2


def test_array_runs_all_tasks_and_keeps_its_limit(host: EmbeddedHost) -> None:
    """No more tasks than the limit run at a time, and one that fails harms no other."""
    host.run("config", "--slots=4")
    body = "echo + >> log; sleep 0.1; echo - >> log; [ $CJ_ARRAY_INDEX != 3 ]"
    number = host.submit(body, "--array=0-5,9%2")
    behind = host.submit("true")
    lines = host.wait(number)
    assert [line["id"] for line in lines] == [f"1_{index}" for index in (0, 1, 2, 3, 4, 5, 9)]
    bad = {line["array_index"] for line in lines if line["state"] != "COMPLETED"}
    assert bad == {3}
    assert host.job("1_3")["exit_code"] == 1
    level = top = 0
    for mark in host.text("log").split():
        level += 1 if mark == "+" else -1
        top = max(top, level)
    assert top == 2
    assert host.job(behind)["start_time"] < lines[-1]["start_time"]


def test_array_with_steps_names_its_tasks(host: EmbeddedHost) -> None:
    """Tasks of '0-6:3' are 0, 3 and 6, each with its own id, index and log."""
    number = host.submit("echo $CJ_JOB_ID $CJ_ARRAY_JOB_ID $CJ_ARRAY_INDEX", "--array=0-6:3")
    assert {line["state"] for line in host.wait(number)} == {"COMPLETED"}
    for index in (0, 3, 6):
        text = (host.work / f"job.sh-1_{index}.out").read_text()
        assert text == f"1_{index} 1 {index}\n"


def test_dependent_job_starts_after_a_good_end(host: EmbeddedHost) -> None:
    """A job waits with reason DEPENDENCY, without blocking others, until all it needs is done."""
    first = host.submit("until [ -e go ]; do sleep 0.05; done; echo 1 >> order", "--array=0-1")
    second = host.submit("echo 2 >> order", f"--depends={first}")
    assert host.job(second)["reason"] == "DEPENDENCY"
    (host.work / "go").touch()
    assert host.end(second) == ("COMPLETED", "")
    assert host.text("order").split() == ["1", "1", "2"]


def test_dependents_of_a_bad_end_are_cancelled(host: EmbeddedHost) -> None:
    """A job whose dependency failed is CANCELLED, and so is what depends on that."""
    first = host.submit("sleep 0.2; exit 1")
    second = host.submit("true", f"--depends={first}")
    third = host.submit("true", f"--depends={second}")
    assert host.end(third) == ("CANCELLED", "DEPENDENCY")
    line = host.job(second)
    assert (line["state"], line["reason"], line["start_time"]) == ("CANCELLED", "DEPENDENCY", None)
    assert first in line["message"]
    late = host.submit("true", f"--depends={first}")
    assert host.end(late) == ("CANCELLED", "DEPENDENCY")


def test_cancel_ends_pending_jobs_at_once(host: EmbeddedHost) -> None:
    """A pending job is CANCELLED when the command returns, and never starts."""
    host.submit("sleep 60", "--exclusive")
    number = host.submit("touch started")
    assert host.run("cancel", number) == [{"id": number, "cancelled": True}]
    line = host.job(number)
    assert (line["state"], line["start_time"]) == ("CANCELLED", None)
    assert not (host.work / "started").exists()


def test_cancel_ends_running_jobs_with_their_tree(host: EmbeddedHost) -> None:
    """A running job gets TERM and time to tidy up; then it is CANCELLED, and its slots are free."""
    body = "trap 'echo tidy > t; exit 0' TERM; sleep 60 & echo $! > child; wait"
    number = host.submit(body, "--exclusive")
    child = int(host.wait_file("child"))
    assert host.run("cancel", number) == [{"id": number, "cancelled": True}]
    assert host.end(number) == ("CANCELLED", "")
    assert host.text("t") == "tidy\n"
    assert not runs(child)
    assert host.end(host.submit("true", "--exclusive")) == ("COMPLETED", "")


def test_cancel_of_ended_and_unknown_jobs_says_why(host: EmbeddedHost) -> None:
    """A job that has ended keeps its end."""
    number = host.submit("true")
    host.wait(number)
    assert host.run("cancel", number, "77") == [
        {"id": number, "cancelled": False, "why": "already ended"},
        {"id": "77", "cancelled": False, "why": "unknown"},
    ]
    assert host.job(number)["state"] == "COMPLETED"


def test_cancel_of_one_task_leaves_the_others(host: EmbeddedHost) -> None:
    """One task of an array can be cancelled, running or pending, and then all the rest."""
    number = host.submit("sleep 60", "--array=0-4")
    host.wait_running("1_1")
    host.run("cancel", "1_0", "1_4")
    assert host.end("1_0") == ("CANCELLED", "")
    assert host.job("1_4")["state"] == "CANCELLED"
    host.wait_running("1_2")
    assert host.job("1_3")["state"] == "PENDING"
    host.run("cancel", number)
    assert {line["state"] for line in host.wait(number)} == {"CANCELLED"}


def test_simulated_nodes_have_names(host: EmbeddedHost) -> None:
    """Where it is asked for, several nodes are simulated on this one."""
    number = host.submit("echo $CJ_NODELIST", "--nodes=2", "--simulate-nodes", "--stdout=o")
    host.wait(number)
    name = os.uname().nodename
    assert host.text("o") == f"{name}-0,{name}-1\n"
    assert host.job(number)["nodes"] == [f"{name}-0", f"{name}-1"]


def test_launch_starts_ranked_copies(host: EmbeddedHost) -> None:
    """The launcher starts nodes*ppn processes that know their rank and node."""
    host.run("config", "--slots=4")
    shown = "$CLUSTERJOB_RANK $CLUSTERJOB_LOCAL_RANK $CLUSTERJOB_NODE_RANK $CLUSTERJOB_NTASKS"
    body = f'"$CJ_PYTHON" "$CJ_EMBEDDED" launch -- sh -c "echo {shown} $CLUSTERJOB_NODE >> ranks"'
    body = body.replace("$CLUSTER", "\\$CLUSTER")
    number = host.submit(body, "--nodes=2", "--ppn=2", "--simulate-nodes")
    assert host.end(number) == ("COMPLETED", "")
    name = os.uname().nodename
    assert sorted(host.text("ranks").splitlines()) == [
        *[f"0 0 0 4 {name}-0", f"1 1 0 4 {name}-0"],
        *[f"2 0 1 4 {name}-1", f"3 1 1 4 {name}-1"],
    ]


@pytest.mark.parametrize(("bad", "code"), [("exit 7", 7), ("kill -9 \\$\\$", 137)])
def test_launch_returns_the_first_failure(host: EmbeddedHost, bad: str, code: int) -> None:
    """When a copy fails the others go on, and its code is that of the launcher."""
    test = f"[ \\$CLUSTERJOB_RANK = 0 ] && {bad}; sleep 0.2; touch finished"
    number = host.submit(f'"$CJ_PYTHON" "$CJ_EMBEDDED" launch -- sh -c "{test}"', "--ppn=2")
    assert host.end(number) == ("FAILED", "NONZERO_EXIT")
    assert host.job(number)["exit_code"] == code
    assert (host.work / "finished").exists()


def test_launch_passes_signals_on(host: EmbeddedHost) -> None:
    """TERM to the launcher reaches all copies."""
    copy = "trap 'echo got >> terms; exit 0' TERM; echo up >> ups; sleep 60 & wait"
    body = f'"$CJ_PYTHON" "$CJ_EMBEDDED" launch -- bash -c "{copy}" &\necho $! > pid; wait $!'
    host.submit(body, "--ppn=2")
    until(lambda: host.text("ups") == "up\nup\n")
    os.kill(int(host.wait_file("pid")), 15)
    assert host.end("1") == ("COMPLETED", "")
    assert host.text("terms") == "got\ngot\n"


def test_launch_works_only_in_a_job(host: EmbeddedHost) -> None:
    """Outside of a job the launcher does not know what to start."""
    assert "inside a job" in host.refuse("launch", "--", "true")


def test_gpus_are_allotted_and_shared(host: EmbeddedHost) -> None:
    """Jobs at the same time get different devices, and each copy its share of them."""
    host.run("config", "--gpus=3", "--slots=4")
    copy = "echo \\$CUDA_VISIBLE_DEVICES >> copies"
    body = 'echo $CUDA_VISIBLE_DEVICES > dev-$CJ_JOB_ID\n"$CJ_PYTHON" "$CJ_EMBEDDED" launch -- '
    body += f'sh -c "{copy}"; sleep 60'
    host.submit(body, "--gpus=2", "--ppn=2")
    assert host.wait_file("dev-1") == "0,1"
    until(lambda: sorted(host.text("copies").split()) == ["0", "1"])
    host.submit("echo $CUDA_VISIBLE_DEVICES > dev-2; sleep 60", "--gpus=1")
    assert host.wait_file("dev-2") == "2"
    third = host.submit("true", "--gpus=1")
    assert host.job(third)["state"] == "PENDING"
    assert "4" in host.refuse("submit", "--gpus=4", host.script("true"))


@pytest.fixture(scope="module")
def idle_host(tmp_path_factory: pytest.TempPathFactory) -> EmbeddedHost:
    """Give a host on which nothing ever runs."""
    return EmbeddedHost(tmp_path_factory.mktemp("idle"))


@pytest.mark.parametrize(
    ("options", "fragments"),
    [
        (["--ppn=3"], ["ppn=3", "2", "CJDASK_EMBEDDED_SLOTS"]),
        (["--nodes=2"], ["nodes=2", "--simulate-nodes"]),
        (["--gpus=1"], ["gpus=1", "CJDASK_EMBEDDED_GPUS"]),
        (["--mem=999999999"], ["mem=999999999"]),
        (["--threads=0"], ["threads", "'0'"]),
        (["--time=1:75:00"], ["time", "H:M:S", "'1:75:00'"]),
        (["--time=0"], ["time", "'0'"]),
        (["--time=30min"], ["time", "'30min'"]),
        (["--array=5-1"], ["array", "'5-1'"]),
        (["--array=1,,2"], ["array", "'1,,2'"]),
        (["--array=0-3%0"], ["array", "'0-3%0'"]),
        (["--array=0-9999999"], ["array", "100000"]),
        (["--depends=44"], ["'44'", "query --all"]),
        (["--depends=x"], ["'x'"]),
        (["--jobname=a\nb"], ["jobname", "control characters"]),
        (["--comment=a\x1bb"], ["comment", "control characters"]),
        (["--jobname="], ["jobname", "empty"]),
        (["--stdout=%q"], ["stdout", "%q", "%j"]),
    ],
)
def test_refused_requests_say_why(
    idle_host: EmbeddedHost, options: list[str], fragments: list[str]
) -> None:
    """A refusal names the value and what is allowed, and leaves no job."""
    message = idle_host.refuse("submit", *options, idle_host.script("true"))
    for fragment in fragments:
        assert fragment in message
    assert idle_host.query("--all") == []


@pytest.mark.parametrize(
    ("words", "fragment"),
    [
        ([], "submit, query, cancel"),
        (["frobnicate"], "'frobnicate'"),
        (["submit"], "SCRIPT"),
        (["submit", "--queu=x", "f"], "--queue"),
        (["submit", "--exclusive=yes", "f"], "no value"),
        (["cancel"], "ID"),
        (["info", "x"], "'x'"),
    ],
)
def test_wrong_usage_is_told(idle_host: EmbeddedHost, words: list[str], fragment: str) -> None:
    """A command line that is not understood ends with 2 and says what is known."""
    assert fragment in idle_host.refuse(*words, code=2)


def test_scripts_that_cannot_run_are_refused(host: EmbeddedHost) -> None:
    """A missing file, a binary program and DOS line ends are refused at submission."""
    assert "No such file" in host.refuse("submit", "missing.sh")
    assert "binary" in host.refuse("submit", "/bin/ls")
    (host.work / "dos.sh").write_bytes(b"#!/bin/sh\r\ntrue\r\n")
    assert "DOS" in host.refuse("submit", "dos.sh")


def test_unusable_state_directories_are_refused(host: EmbeddedHost, tmp_path: Path) -> None:
    """A file, a folder with other things and one with jobs of another host are left alone."""
    (tmp_path / "file").write_text("x")
    assert "file" in host.refuse("--state", str(tmp_path / "file"), "info", code=3)
    assert "holds other files" in host.refuse("--state", str(tmp_path), "info", code=3)
    host.submit("sleep 60")
    own = (host.state / "host.json").read_text()
    (host.state / "host.json").write_text('{"host": "elsewhere"}')
    assert "'elsewhere'" in host.refuse("info", code=3)
    (host.state / "host.json").write_text(own)


def test_settings_come_from_the_environment_and_the_command(host: EmbeddedHost) -> None:
    """Slots set by a variable hold for all processes of the state directory from then on."""
    assert host.run("info", env={"CJDASK_EMBEDDED_SLOTS": "5"})[0]["slots_total"] == 5
    assert host.run("info")[0]["slots_total"] == 5
    cores = len(os.sched_getaffinity(0))
    assert host.run("config", "--slots=auto") == [{"slots": cores, "gpus": 0}]


def test_pending_job_that_cannot_fit_any_more_fails(host: EmbeddedHost) -> None:
    """When slots are taken away, a pending job that needs them ends, and blocks nobody."""
    host.submit("until [ -e go ]; do sleep 0.1; done", "--exclusive")
    number = host.submit("true", "--ppn=2")
    host.run("config", "--slots=1")
    (host.work / "go").touch()
    assert host.end(number) == ("FAILED", "LAUNCH_FAILURE")
    assert "needs 2 slots" in host.job(number)["message"]


def test_purge_removes_ended_jobs_only(host: EmbeddedHost) -> None:
    """Records go when they are old enough, and not while another job depends on them."""
    old, needed = host.submit("true"), host.submit("true")
    host.wait(old, needed)
    blocker = host.submit("sleep 60", "--exclusive")
    waiting = host.submit("true", f"--depends={needed}")
    assert host.run("purge", "--older-than=3600") == [{"purged": 0}]
    assert host.run("purge") == [{"purged": 1}]
    states = [line["state"] for line in host.query(old, needed, waiting)]
    assert states == ["UNKNOWN", "COMPLETED", "PENDING"]
    host.wait_running(blocker)
    assert host.submit("true") == "5"


def test_nothing_is_left_after_the_last_job(host: EmbeddedHost) -> None:
    """After its last job the manager goes, and what jobs left in the background went before."""
    body = "setsid sleep 60 & (setsid setsid sleep 61 &) ; env -i setsid sleep 62 & sleep 0.1"
    number = host.submit(body, "--array=0-2")
    assert {line["state"] for line in host.wait(number)} == {"COMPLETED"}
    host.wait_quiet()
    assert host.manager() is None
    assert os.listdir(host.state / "active") == []


def test_job_may_submit_another_that_outlives_it(host: EmbeddedHost) -> None:
    """A job that a job submitted is not killed with the first one."""
    inner = host.script("sleep 0.3; echo $CJ_JOB_ID > inner", "inner.sh")
    outer = host.submit(f'"$CJ_PYTHON" "$CJ_EMBEDDED" submit {inner}')
    assert host.end(outer) == ("COMPLETED", "")
    assert host.end("2") == ("COMPLETED", "")
    assert host.wait_file("inner") == "2"


@pytest.mark.long
def test_thousand_jobs_are_queried_quickly(host: EmbeddedHost) -> None:
    """One query of a thousand pending jobs costs a fraction of a second, and no processes."""
    host.wait_running(host.submit("sleep 60", "--exclusive"))
    model = host.state / "active" / host.submit("true")
    for number in range(3, 1002):  # whole at once, as a submission makes them
        copy = shutil.copytree(model, host.state.parent / "copy")
        copy.rename(model.parent / str(number))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    lines = host.query()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processes = len(host.processes())
    for number in range(2, 1002):
        shutil.rmtree(model.parent / str(number))
    assert [line["state"] for line in lines] == ["RUNNING"] + ["PENDING"] * 1000
    assert after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime < 0.7  # 0.1 idle
    assert processes == 4  # manager, supervisor, script, sleep


@pytest.mark.skipif(not shutil.which("python3.8"), reason="no python3.8 on the PATH")
def test_program_runs_under_python_38(tmp_path: Path) -> None:
    """The file copied alone works with the oldest Python that is promised."""
    python = shutil.which("python3.8") or ""
    if subprocess.run([python, "-c", ""], capture_output=True, check=False).returncode:
        pytest.skip("python3.8 is on the PATH and does not run")
    host = EmbeddedHost(tmp_path, python=python)
    try:
        number = host.submit("echo $CJ_ARRAY_INDEX", "--array=0-1", "--time=60")
        assert {line["state"] for line in host.wait(number)} == {"COMPLETED"}
        body = '"$CJ_PYTHON" "$CJ_EMBEDDED" launch -- sleep 60'
        running = host.submit(body)
        host.wait_running(running)
        host.run("cancel", running)
        assert host.end(running) == ("CANCELLED", "")
    finally:
        host.close()
