"""Job scripts: what is rendered, written and submitted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cjdask import AsyncResult, JobScript, Status, UnknownBackendError
from cjdask import backends as backends_module
from cjdask import jobscript as jobscript_module
from cjdask.backends import ClusterjobBackend, backend_names, get_backend, register_backend
from cjdask.errors import ResourcesNotSupportedError, SubmitError
from cjdask.scheduler import Scheduler
from tests.fakes import FakeBackend, FakeProtocol


@pytest.fixture(autouse=True)
def pristine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what a test does to the defaults of all jobs and to the known backends."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(backends_module, "_registered", {})
    register_backend(FakeBackend)
    monkeypatch.setattr(JobScript, "backend", "fake")
    monkeypatch.setattr(JobScript, "resources", {})
    monkeypatch.setattr(JobScript, "rootdir", ".")
    monkeypatch.setattr(JobScript, "workdir", ".")


@pytest.fixture
def protocol(monkeypatch: pytest.MonkeyPatch) -> FakeProtocol:
    """Put a fake machine behind the fake backend."""
    protocol = FakeProtocol()
    scheduler = Scheduler(get_backend("fake"), protocol)
    monkeypatch.setattr(jobscript_module, "scheduler_for", lambda _: scheduler)
    return protocol


def body_of(job: JobScript) -> str:
    """Return the rendered text below the headers."""
    return "\n".join(line for line in str(job).splitlines() if not line.startswith(("#!", "#FAKE")))


def test_the_documented_example(capsys: pytest.CaptureFixture[str]) -> None:
    """The example that clusterjob's users know prints this, with no line more or less."""
    body = (
        '\necho "Job id: $CLUSTERJOB_ID"\necho "Job name: $CLUSTERJOB_WORKDIR"\nsleep 90\nexit 0\n'
    )
    job = JobScript(
        body,
        backend="slurm",
        jobname="printenv",
        queue="test",
        time="00:05:00",
        nodes=1,
        threads=1,
        mem=100,
        stdout="printenv.out",
        stderr="printenv.err",
    )
    print(job)
    assert (
        capsys.readouterr().out
        == """\
#!/bin/bash
#SBATCH --job-name=printenv
#SBATCH --mem=100
#SBATCH --nodes=1
#SBATCH --partition=test
#SBATCH --error=printenv.err
#SBATCH --output=printenv.out
#SBATCH --cpus-per-task=1
#SBATCH --time=00:05:00

echo "Job id: $SLURM_JOB_ID"
echo "Job name: $SLURM_SUBMIT_DIR"
sleep 90
exit 0
"""
    )


SHELL_TEXTS = [
    "echo ${f%.txt} ${a[0]} ${#a[@]} ${x:-y} ${x}",
    "awk '{print $1}' file",
    "for i in {1..5}; do echo {} {a,b}; done",
    "f() { :; }; f",
    "find . -exec cat {} \\;",
    "json='{\"a\": 1}'",
    "echo $((1 + 2)) $(date) `date` \\{ \\}",
    "if true; then { echo a; } fi",
]


@pytest.mark.parametrize("text", SHELL_TEXTS)
def test_shell_text_stays(text: str) -> None:
    """Braces of the shell, awk and find are left alone."""
    assert body_of(JobScript(text, "j")) == text


def test_placeholders_in_their_order() -> None:
    """A resource comes before an attribute of the instance, that before one of the class."""
    job = JobScript("{queue} {myvar} {shell} {ppn:03d} {{queue}} ${queue} {filename}", "j", ppn=4)
    job.myvar = "mine"
    job.queue = "attribute"
    assert body_of(job).startswith("attribute mine /bin/bash 004 {queue} ${queue} j.fake")
    job.resources["queue"] = "resource"
    assert body_of(job).startswith("resource mine")


def test_an_unknown_placeholder_is_named() -> None:
    """A placeholder without a value is a KeyError that names it and the way to write it."""
    with pytest.raises(KeyError, match=r"\{nope\}.*write \{\{nope\}\}"):
        str(JobScript("echo {nope}", "j"))


@pytest.mark.parametrize(
    ("text", "rendered"),
    [
        ("$CLUSTERJOB_ID", "$FAKE_ID"),
        ("${CLUSTERJOB_ID}", "${FAKE_ID}"),
        ("${CLUSTERJOB_ID:-none}", "${FAKE_ID:-none}"),
        ("$CLUSTERJOB_IDX", "$CLUSTERJOB_IDX"),
        ("$CLUSTERJOB_NODELIST.", "$(cat $FAKE_NODES)."),
        ("${CLUSTERJOB_NODELIST}x", "$(cat $FAKE_NODES)x"),
    ],
)
def test_core_variables_in_both_spellings(text: str, rendered: str) -> None:
    """``$X`` and ``${X}`` become the scheduler's own, longer names stay."""
    assert body_of(JobScript(text, "j")) == rendered


def test_headers_follow_the_body_s_own_first_line() -> None:
    """A body with its own ``#!`` keeps it as the first line of the script."""
    job = JobScript("#!/usr/bin/env python3\nprint()\n", "j", queue="q")
    assert str(job).splitlines()[:3] == ["#!/usr/bin/env python3", "#FAKE jobname", "#FAKE queue"]


def test_keywords_are_attributes_or_resources() -> None:
    """A keyword that names an attribute sets it on the instance, all others are resources."""
    job = JobScript("", "j", shell="/bin/zsh", workdir="w/", rootdir="/", queue="q", A="x")
    assert (job.shell, job.workdir, job.rootdir) == ("/bin/zsh", "w", "/")
    assert job.folder == "/w"
    assert job.resources == {"jobname": "j", "queue": "q", "A": "x"}


def test_class_attributes_are_defaults() -> None:
    """What is set on the class holds for all jobs, what is set on one job only for it."""
    JobScript.workdir = "work/"
    JobScript.resources["queue"] = "long"
    first = JobScript("", "a", queue="short")
    second = JobScript("", "b")
    assert first.resources["queue"] == "short"
    assert second.resources["queue"] == "long"
    assert second.workdir == "work"


def test_resources_of_an_instance_cannot_be_replaced() -> None:
    """An instance may change entries of its resources, not hide those of the class."""
    job = JobScript("", "j")
    with pytest.raises(AttributeError, match="resources"):
        job.resources = {}  # type: ignore[misc]


def test_the_file_name_follows_the_backend() -> None:
    """The default file name is made of the job's name and the extension of the backend in use."""
    job = JobScript("", "my job/1")
    assert job.filename == "my_job_1.fake"
    job.filename = "x.sh"
    assert job.filename == "x.sh"


def test_write_makes_an_executable_file(protocol: FakeProtocol, tmp_path: Path) -> None:
    """The script and its auxiliary scripts are written beside each other and can be run."""
    job = JobScript("echo hello", "j", {"aux.sh": "echo {queue}"}, rootdir="r", queue="q")
    job.write()
    assert (tmp_path / "r/j.fake").read_text() == f"{job}\n"
    done = subprocess.run([tmp_path / "r/aux.sh"], capture_output=True, text=True, check=True)
    assert done.stdout == "q\n"
    job.write(tmp_path / "named.sh")
    assert os.access(tmp_path / "named.sh", os.X_OK)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_submit_returns_a_run(protocol: FakeProtocol) -> None:
    """A submitted job is a run that is asked for, waited for and ends."""
    run = JobScript("true", "j").submit()
    assert isinstance(run, AsyncResult)
    assert (run.job_id, run.status, run.ready()) == ("1", Status.PENDING, False)
    with pytest.raises(ValueError, match="has not ended"):
        run.successful()
    with pytest.raises(TimeoutError, match=r"job 1 on fake is PENDING after 0\.05 s"):
        run.get(timeout=0.05)
    protocol.end("1", Status.COMPLETED, exit_code=0)
    assert run.get(timeout=60) is Status.COMPLETED
    assert run.successful()
    run.cancel()
    assert run.status is Status.COMPLETED
    assert ("fake-cancel", "1") not in protocol.calls


def test_a_refusal_raises_and_shows_the_scheduler_s_words(protocol: FakeProtocol) -> None:
    """A submission that fails is an error with command, exit code and answer, not a status."""
    protocol.down = True
    with pytest.raises(SubmitError) as caught:
        JobScript("true", "j").submit()
    assert "fake-submit j.fake" in str(caught.value)
    assert "no contact" in str(caught.value)
    assert caught.value.output is not None
    assert caught.value.output.exit_code == 1


def test_bad_resources_write_nothing(protocol: FakeProtocol, tmp_path: Path) -> None:
    """A job with a bad resource is refused before anything is written or submitted."""
    with pytest.raises(ResourcesNotSupportedError, match="nodes=-1"):
        JobScript("true", "j", nodes=-1).submit()
    assert list(tmp_path.iterdir()) == []
    assert protocol.calls == []


def test_an_unknown_backend_lists_the_known_ones() -> None:
    """A misspelt backend is an error with the close one and the list of all."""
    with pytest.raises(UnknownBackendError, match=r"'fak', did you mean 'fake'\? Known are .*fake"):
        str(JobScript("true", "j", backend="fak"))
    assert JobScript("", "j").backends == backend_names()


def test_what_is_no_backend_is_refused() -> None:
    """Only a ClusterjobBackend with a name and an extension can be registered."""
    with pytest.raises(TypeError, match="must inherit"):
        JobScript.register_backend(object())

    class Nameless(PerRun):
        extension = "x"

    with pytest.raises(AttributeError, match="'name'"):
        JobScript.register_backend(Nameless())


class PerRun(ClusterjobBackend):
    """A backend as a site writes it for clusterjob: one run at a time."""

    def cmd_submit(self, jobscript: Any) -> list[str]:
        return ["sh", "-c", f"sh {jobscript.filename} >out 2>&1; echo Submitted 77"]

    def get_job_id(self, response: str) -> str | None:
        return response.split()[-1] if response.startswith("Submitted") else None

    def cmd_status(self, run: Any, finished: bool = False) -> list[str]:
        return ["echo", f"job {run.job_id} {'done' if finished else 'gone'}"]

    def get_status(self, response: str, finished: bool = False) -> Status | None:
        return Status.COMPLETED if "done" in response else None

    def cmd_cancel(self, run: Any) -> list[str]:
        return ["echo", str(run.job_id)]

    def resource_headers(self, jobscript: Any) -> list[str]:
        return [f"#SITE {key}={value}" for key, value in jobscript.resources.items()]

    def replace_body_vars(self, body: str) -> str:
        return body.replace("$CLUSTERJOB_ID", "$SITE_ID")


class SiteBackend(PerRun):
    name = "site"
    extension = "sit"


def test_a_site_s_backend_for_one_run_works_unchanged(tmp_path: Path) -> None:
    """A class with just the methods that clusterjob documents runs a job to its end."""
    JobScript.register_backend(SiteBackend)
    run = JobScript("echo hello", "j", backend="site").submit()
    assert run.job_id == "77"
    run.wait(timeout=30)
    assert run.get(timeout=30) is Status.COMPLETED
    assert (tmp_path / "out").read_text() == "hello\n"
