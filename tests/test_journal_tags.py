"""Tags: how a job is found again on each scheduler."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cjdask import AsyncResult, JobScript, Status
from cjdask.backends import BatchBackend, get_backend
from cjdask.backends.lsf import LsfBackend
from cjdask.command import Output
from cjdask.errors import ParseError, SchedulerError, SchedulerUnavailableError
from cjdask.journal import journal_file
from cjdask.monitor import _monitors
from cjdask.protocols.local import LocalProtocol
from cjdask.resources import Resources
from cjdask.run_record import begun_as, read_end, record_lines
from tests.as_user import as_user

TAG = "cjdask-0123456789ab"


def backend(name: str) -> BatchBackend:
    """Return a backend of this package."""
    found = get_backend(name)
    assert isinstance(found, BatchBackend)
    return found


@pytest.mark.parametrize(
    ("name", "own", "key", "value"),
    [
        ("slurm", {}, "comment", TAG),
        ("slurm", {"comment": "a b"}, "comment", f"a b {TAG}"),
        ("slurm", {"--comment": "a"}, "--comment", f"a {TAG}"),
        ("local", {"comment": "a"}, "comment", f"a {TAG}"),
        ("sge", {"ac": "a=1"}, "ac", f"a=1,cjdask={TAG}"),
        ("sge", {}, "ac", f"cjdask={TAG}"),
        ("htcondor", {}, "+CjdaskTag", f'"{TAG}"'),
        ("pbspro", {}, "v", f"CJDASK_TAG={TAG}"),
        ("pbspro", {"v": "A=two words"}, "v", f"A=two words,CJDASK_TAG={TAG}"),
        ("pbs", {"-v": "A,B", "V": True}, "-v", f"A,B,CJDASK_TAG={TAG}"),
        ("lpbs", {}, "jobname", f"j.{TAG}"),
        ("lsf", {}, "Jd", TAG),
        ("lsf", {"Jd": "own words"}, "Jd", f"own words {TAG}"),
        ("oar", {}, "jobname", "j"),  # its script's name has the tag
    ],
)
def test_a_tag_joins_what_is_there(name: str, own: dict[str, Any], key: str, value: str) -> None:
    """The tag is added to the user's own text, in a field that the backend knows."""
    tagged = backend(name).tagged({"jobname": "j", **own}, TAG)
    assert tagged == {"jobname": "j", **own, key: value}
    backend(name).headers(Resources.of(tagged))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("slurm", f"12|x|\n13|own words {TAG}|\n"),
        ("slurm", f"12|\n13_2|{TAG}\n"),
        ("slurm", f"13_[4-9]|{TAG}\n"),
        ("sge", f"12 a=1\n13 cjdask={TAG}\n"),
        ("htcondor", f"13 {TAG}\n"),
    ],
)
def test_the_job_with_the_tag_is_found(name: str, text: str) -> None:
    """Among all jobs the one with the tag is told by its id, of an array the whole one."""
    assert backend(name).parse_find(Output.of(text), TAG) == "13"
    assert backend(name).parse_find(Output.of(text), "cjdask-other") is None
    assert backend(name).parse_find(Output.of(""), TAG) is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("slurm", "slurm_load_jobs error: Unable to contact slurm controller (connect failure)"),
        ("sge", "error: commlib error: got select error (Connection refused)"),
        ("htcondor", "-- Failed to fetch ads from: <1.2.3.4:1>"),
        ("local", "cjdask-embedded: error: no folder"),
        ("oar", "DBI connect failed: could not connect to server: Connection refused"),
        ("lsf", "LSF is down. Please wait ..."),
    ],
)
def test_no_answer_is_no_absence(name: str, words: str) -> None:
    """A scheduler that does not answer has not said that there is no such job."""
    with pytest.raises(SchedulerUnavailableError):
        backend(name).parse_find(Output.of(stderr=words, exit_code=1), TAG)


def test_no_job_in_grid_engine() -> None:
    """What qstat prints where there is no job at all is no error; other words are one."""
    words = "Following jobs do not exist: \n*\n"
    assert backend("sge").parse_find(Output.of(stderr=words), TAG) is None
    with pytest.raises(SchedulerError, match="cannot show"):
        backend("sge").parse_find(Output.of(stderr="critical error: odd"), TAG)


def test_a_site_without_accounting() -> None:
    """Where Slurm keeps no accounts there is no record of the job."""
    words = "Slurm accounting storage is disabled\n"
    assert backend("slurm").parse_find(Output.of(stderr=words, exit_code=1), TAG) is None


def test_openlava_has_the_tag_in_the_name() -> None:
    """Where LSF's bsub has no descriptions, the job's name has the tag behind it."""
    tagged = LsfBackend(ibm=False, unit="").tagged({"jobname": "j", "array": 3}, TAG)
    assert tagged == {"jobname": f"j.{TAG}", "array": 3}


def test_a_line_without_an_id_is_an_error() -> None:
    """A line that has the tag but no id is no answer that there is no job."""
    with pytest.raises(ParseError, match="no id before the tag"):
        backend("slurm").parse_find(Output.of(f"(null)|{TAG}|\n"), TAG)


@pytest.mark.parametrize(("name", "job_id", "own"), [
    ("pbspro", "58[].srv", "58[7].srv"),
    ("pbspro", "58.srv", "58.srv"),
    ("pbs", "5[].a-b.c", "5[10].a-b.c"),
    ("slurm", "10", "12"),
    ("oar", "10", "12"),
])  # fmt: skip
def test_a_task_knows_the_id_of_its_array(tmp_path: Path, name: str, job_id: str, own: str) -> None:
    """The record of a task has the id that the submission gave, also where tasks have others."""
    found = backend(name)
    resources = Resources.of({"array": "7-8"})
    lines = record_lines("#!/bin/sh\n", found, resources, str(tmp_path / "tag"))
    env = {"PBS_JOBID": own, "SLURM_JOB_ID": own, "OAR_JOB_ID": own, "OAR_ARRAY_ID": job_id}
    env |= {"SLURM_ARRAY_JOB_ID": job_id, found.job_vars["CLUSTERJOB_ARRAY_INDEX"]: "7"}
    subprocess.run(["sh", "-c", "\n".join([*lines, "exit 3"])], env={**os.environ, **env})
    end = read_end(LocalProtocol(), str(tmp_path / "tag"), job_id, 7)
    assert end is not None
    assert end.exit_code == 3
    assert begun_as(LocalProtocol(), str(tmp_path / "tag")) == job_id


def forget_id(folder: Path) -> None:
    """Put the journal back to where it was just before the id came."""
    file = journal_file(folder, "clusterjob", "a")
    entry = file.read()
    assert entry is not None
    file.write(replace(entry, job_id=None, ended=[]))
    _monitors.clear()


@pytest.fixture
def oar_as_user() -> Iterator[None]:
    """Speak to OAR as a user, of whom it takes jobs."""
    with as_user("oar"):
        yield


@pytest.mark.parametrize(
    "name",
    [
        "local",
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("sge", marks=pytest.mark.sge),
        pytest.param("htcondor", marks=pytest.mark.htcondor),
        pytest.param("oar", marks=pytest.mark.oar),
    ],
)
@pytest.mark.parametrize("array", [None, "1-3"])
def test_an_intent_is_settled(
    open_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
    name: str,
    array: str | None,
) -> None:
    """A job whose id was not recorded is found pending, running and ended, and runs once."""
    if name != "local":
        request.getfixturevalue(name)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(open_folder / "state"))
    monkeypatch.setenv("CJDASK_EMBEDDED_SLOTS", "4")
    cache = open_folder / f"cache-{name}-{array}"

    def script() -> JobScript:
        folder = str(open_folder / f"{name}-{array}")
        body = "while [ ! -e go ]; do sleep 0.1; done; echo >>ran; exit 0"
        return JobScript(body, "tagged", backend=name, rootdir=folder, time="5", array=array)

    if name == "oar":
        request.getfixturevalue("oar_as_user")
    run = script().submit(cache_id="a", cache_folder=cache)
    try:
        forget_id(cache)
        again = script().submit(cache_id="a", cache_folder=cache)
        assert again.job_id == run.job_id
        (open_folder / f"{name}-{array}" / "go").touch()
        other = AsyncResult.attach(run.job_id, name, script().folder, array=array)
        assert other.get(timeout=100) is Status.COMPLETED
        forget_id(cache)
        last = script().submit(cache_id="a", cache_folder=cache)
        assert (last.job_id, last.get(timeout=100)) == (run.job_id, Status.COMPLETED)
    finally:
        run.cancel()
    ran = open_folder / f"{name}-{array}" / "ran"
    assert ran.read_text() == "\n" * (3 if array else 1)
