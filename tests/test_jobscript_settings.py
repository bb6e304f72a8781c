"""INI files: what they set, and what is said of those that are wrong."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cjdask import JobScript, SettingsError

GOOD = """\
# a machine
[Attributes]
backend = slurm
rootdir = ~/work/
shell = /bin/bash -l
cache_folder = runs
max_sleep_interval = 30
exit_record = False
version = 7
greeting = "Hello", 100%
prologue =
    #!/bin/bash
    # not part of it
    for f in a b; do
        echo $f

    done

[Resources]
queue = 1234
time = 30
ppn = 32
nodes = 2
mem = 4GiB
exclusive = true
-A = proj%d
--gres = gpu:1
contiguous = True
constraint = [a|b]
"""


@pytest.fixture(autouse=True)
def pristine() -> Iterator[None]:
    """Undo what a test does to the defaults of all jobs."""
    yield
    JobScript.read_defaults()


def ini(folder: Path, text: str) -> Path:
    """Write a file."""
    path = folder / "settings.ini"
    path.write_text(text)
    return path


def test_defaults_of_all_jobs(tmp_path: Path) -> None:
    """A file sets class attributes and default resources, with their types."""
    JobScript.read_defaults(ini(tmp_path, GOOD))
    job = JobScript("echo {greeting} {version}", "j", nodes=3)
    assert (job.backend, job.rootdir, job.shell) == ("slurm", "~/work", "/bin/bash -l")
    assert (job.max_sleep_interval, job.exit_record, JobScript.cache_folder) == (
        30.0,
        False,
        "runs",
    )
    assert job.prologue == "#!/bin/bash\nfor f in a b; do\n    echo $f\n\ndone"
    assert job.resources == {
        **{"jobname": "j", "queue": "1234", "time": "30", "ppn": 32, "nodes": 3, "mem": "4GiB"},
        **{"exclusive": True, "-A": "proj%d", "--gres": "gpu:1", "contiguous": True},
        "constraint": "[a|b]",
    }
    assert str(job).endswith('echo "Hello", 100% 7')
    assert "--time=00:30:00" in str(job)


def test_no_file_is_back_to_the_beginning(tmp_path: Path) -> None:
    """Without a file all defaults are what they were, and variables of the file are gone."""
    before = {name: getattr(JobScript, name) for name in ("backend", "prologue", "rootdir")}
    JobScript.resources["partition"] = "x"
    JobScript.read_defaults(ini(tmp_path, GOOD))
    JobScript.read_defaults()
    assert before == {name: getattr(JobScript, name) for name in before}
    assert (JobScript.resources, JobScript.cache_folder) == ({}, None)
    assert not hasattr(JobScript, "greeting")


def test_files_add_up(tmp_path: Path) -> None:
    """What a second file does not name stays as the first one set it."""
    JobScript.read_defaults(ini(tmp_path, "[Resources]\nqueue = a\nppn = 2\n"))
    JobScript.read_defaults(ini(tmp_path, "[Resources]\nqueue = b\n"))
    assert JobScript.resources == {"queue": "b", "ppn": 2}


def test_settings_of_one_job(tmp_path: Path) -> None:
    """A file for one job sets its attributes and resources, and nothing of other jobs."""
    job = JobScript("", "j", queue="a")
    text = "[Attributes]\nfilename = run.sh\nworkdir = 2024/\n[Resources]\nqueue = b\nppn = 32\n"
    job.read_settings(ini(tmp_path, text))
    assert (job.filename, job.workdir) == ("run.sh", "2024")
    assert job.resources == {"jobname": "j", "queue": "b", "ppn": 32}
    assert JobScript("", "k").resources == {"jobname": "k"}
    assert JobScript.workdir == "."


OF_A_CLUSTERJOB_USER = """

[Attributes]

remote = login.cluster.edu
backend = pbs
shell = /bin/sh
cache_folder = ./data/cache
prologue =
    ssh {remote} 'mkdir -p {rootdir}/{workdir}'
    rsync -av {workdir}/ {remote}:{rootdir}/{workdir}
epilogue = rsync -av {remote}:{rootdir}/{workdir}/ {workdir}
rootdir = ~/jobs/
workdir = run001
max_sleep_interval = 60
# a variable of the body
module_load =
    module load intel
    module load mpi

[Resources]

queue = exec
nodes = 1
threads = 12
mem = 10000
time = 00:05:00
-A = XXXXXXXXXXXXX
-j = oe
"""


def test_a_file_of_clusterjob(tmp_path: Path) -> None:
    """A file as clusterjob documents it loads to the values that it documents."""
    JobScript.read_defaults(ini(tmp_path, OF_A_CLUSTERJOB_USER))
    job = JobScript("{module_load}\n./run", "j")
    assert {name: getattr(job, name) for name in ("remote", "backend", "shell", "workdir")} == {
        **{"remote": "login.cluster.edu", "backend": "pbs", "shell": "/bin/sh"},
        "workdir": "run001",
    }
    assert (job.rootdir, job.max_sleep_interval) == ("~/jobs", 60)
    assert job.prologue == (
        "ssh {remote} 'mkdir -p {rootdir}/{workdir}'\n"
        "rsync -av {workdir}/ {remote}:{rootdir}/{workdir}"
    )
    assert job.epilogue == "rsync -av {remote}:{rootdir}/{workdir}/ {workdir}"
    assert getattr(job, "module_load") == "module load intel\nmodule load mpi"  # noqa: B009
    assert JobScript.cache_folder == "./data/cache"
    assert job.resources == {
        **{"jobname": "j", "queue": "exec", "nodes": 1, "threads": 12, "mem": 10000},
        **{"time": "00:05:00", "-A": "XXXXXXXXXXXXX", "-j": "oe"},
    }
    JobScript.read_defaults()
    assert "queue" in job.resources  # those of a job are its own
    assert job.backend == "slurm"


WRONG = [
    ("[Attributes]\nkey with blanks = x\n", 2, "'key with blanks' is no name of an attribute"),
    ("[Attributes]\n_remote = x\n", 2, "'_remote' is no name of an attribute"),
    ("[Attributes]\nbackend = pbs\n[Schedulers]\nx = y\n", 3, "[Schedulers] is no section"),
    ("", 1, "there is no section; begin with [Attributes] or [Resources]"),
    ("# only this\n", 1, "there is no section"),
    ("queue = x\n", 1, "'queue' is in no section; write [Attributes] or [Resources] above it"),
    ("[attributes]\n", 1, "[attributes] is no section; there are [Attributes] and [Resources]"),
    ("[Resources]\n[Other]\n", 2, "[Other] is no section"),
    ("[Resources\n", 1, "[Resources is no section"),
    ("[Resources]\n\n[Resources]\n", 3, "is there from line 1 on; put all of it there"),
    ("[Attributes]\nresources = 1\n", 2, "write [Resources] for it"),
    ("[Attributes]\nbackends = 1\n", 2, "'backends' cannot be set"),
    ("[Attributes]\nsubmit = 1\n", 2, "'submit' cannot be set; choose another name"),
    ("[Attributes]\n-A = 1\n", 2, "a resource belongs into [Resources]"),
    ("[Attributes]\n1st = 1\n", 2, "'1st' is no name of an attribute: give letters, digits and _"),
    ("[Attributes]\n_x = 1\n", 2, "'_x' is no name of an attribute"),
    ("[Attributes]\nmax_sleep_interval = soon\n", 2, "write a number"),
    ("[Attributes]\nexit_record = maybe\n", 2, "write True or False"),
    ("[Attributes]\na = 1\nb = 2\na = 3\n", 4, "'a' was set in line 2 already; remove one"),
    ("[Resources]\nqueue\n", 2, "'queue' is not 'key = value'; indent it if"),
    ("[Resources]\n= x\n", 2, "is not 'key = value'"),
    ("  [Resources]\n", 1, "remove the blanks before '[Resources]'"),
    ("[Resources]\nnodes = two\n", 2, "give a whole number of at least 1"),
    ("[Resources]\nnodes = 0\n", 2, "give a whole number of at least 1"),
    ("[Resources]\ntime = soon\n", 2, "is not a time; write it as M, M:S"),
    ("[Resources]\nqueue = a\n  b\n", 2, "control character"),
    ("[Resources]\na b = 1\n", 2, "'a b' is no name of a resource"),
]


@pytest.mark.parametrize(("text", "line", "words"), WRONG)
def test_wrong_files(tmp_path: Path, text: str, line: int, words: str) -> None:
    """What is wrong is told with file, line and remedy, and nothing is set."""
    path = ini(tmp_path, text)
    job = JobScript("", "j")
    before: list[Any] = [dict(vars(JobScript)), dict(job.resources)]
    for read in (JobScript.read_defaults, job.read_settings):
        with pytest.raises(SettingsError) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}, line {line}: ")
        assert words in str(caught.value)
    assert before == [dict(vars(JobScript)), job.resources]


def test_what_belongs_to_one_or_to_all(tmp_path: Path) -> None:
    """A file name is of one job, the cache folder of all; the other way is told."""
    with pytest.raises(SettingsError, match="line 2: 'cache_folder' is a setting of all jobs"):
        JobScript("", "j").read_settings(ini(tmp_path, "[Attributes]\ncache_folder = x\n"))
    with pytest.raises(SettingsError, match="line 2: all jobs would have one file"):
        JobScript.read_defaults(ini(tmp_path, "[Attributes]\nfilename = x\n"))


def test_files_that_are_none(tmp_path: Path) -> None:
    """A missing file is a FileNotFoundError, one that is no UTF-8 has its line told."""
    with pytest.raises(FileNotFoundError, match=r"none\.ini"):
        JobScript.read_defaults(tmp_path / "none.ini")
    path = tmp_path / "latin.ini"
    path.write_bytes("[Attributes]\nname = Jörg\n".encode("latin-1"))
    with pytest.raises(SettingsError, match="line 2: it is not UTF-8"):
        JobScript.read_defaults(path)
