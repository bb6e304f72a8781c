"""``cjdask render`` and ``cjdask submit``: what they make of a script and of options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cjdask.scheduler import scheduler_for
from tests.cli import cjdask, rows, start
from tests.cli_fixtures import FakeSite


@pytest.fixture
def script(own_folder: Path) -> str:
    """Write a script and return its name."""
    Path("relax.sh").write_text("#!/bin/bash\necho {threads} threads of ${CLUSTERJOB_NAME}\n")
    return "relax.sh"


def test_render_writes_each_option_as_a_header(script: str) -> None:
    """Options are resources, -o is an option of the scheduler; the body's names are filled in."""
    done = cjdask(
        *("render", script, "--backend", "slurm", "--nodes", "2", "--ppn", "4", "--threads", "3"),
        *("--time", "1:00:00", "--mem", "4GiB", "--gpus", "1", "--queue", "long", "--exclusive"),
        *("--account", "p", "--array", "10", "--stdout", "o", "--stderr", "e", "--depends", "17"),
        *("-o", "qos=high", "-o", "--contiguous=true"),
    )
    assert done.exit_code == 0, done.output
    head, body = done.stdout.split("echo ")
    assert set(head.split()) >= {
        *("--job-name=relax", "--nodes=2", "--tasks-per-node=4", "--cpus-per-task=3"),
        *("--time=01:00:00", "--mem=4096", "--gres=gpu:1", "--partition=long", "--exclusive"),
        *("--account=p", "--array=0-9", "--output=o", "--error=e", "--qos=high", "--contiguous"),
        "--dependency=afterok:17",
    }
    assert body == "3 threads of ${SLURM_JOB_NAME}\n"
    assert list(Path().iterdir()) == [Path(script)], "something was written"


def test_render_shows_all_files_that_submitting_needs(script: str) -> None:
    """HTCondor takes its options in a file beside the script, which is shown as well."""
    command = ("render", script, "--backend", "htcondor", "--threads", "3")
    texts = cjdask(*command).stdout
    assert texts.startswith("==> relax.sh <==\n#!/bin/bash\necho 3 threads")
    assert "==> relax.sh.sub <==\n" in texts
    assert "request_cpus = 3" in texts
    (row,) = rows(cjdask(*command, "--json"))
    assert row["script"] == "relax.sh"
    assert set(row["files"]) == {"relax.sh", "relax.sh.sub"}


def test_a_script_comes_from_standard_input(own_folder: Path) -> None:
    """``-`` is standard input; the job is called so unless it has a name."""
    done = cjdask("render", "-", "--backend", "slurm", input="hostname\n")
    assert done.stdout == "#!/bin/bash\n#SBATCH --job-name=job\nhostname\n"
    named = cjdask("render", "-", "--backend", "slurm", "--jobname", "x", input="hostname\n")
    assert "--job-name=x" in named.stdout


def test_what_is_nearer_wins(script: str, own_folder: Path) -> None:
    """The user's settings come first, then the files that are named, then options."""
    Path("user.ini").write_text(
        "[Attributes]\nbackend = slurm\n[Resources]\nqueue = a\naccount = u\ntime = 10\n"
    )
    Path("one.ini").write_text("[Resources]\nqueue = b\ntime = 20\n")
    done = cjdask("render", script, "--settings", "one.ini", "--time", "30", "--threads", "1")
    for header in ("--partition=b", "--account=u", "--time=00:30:00"):
        assert f"#SBATCH {header}\n" in done.stdout


def test_values_for_names_in_the_script(own_folder: Path) -> None:
    """``--set`` gives a value to ``{name}``, and sets attributes of the job."""
    Path("case.sh").write_text("./model {case}\n")
    command = ("render", "case.sh", "--backend", "slurm")
    missing = cjdask(*command)
    assert missing.exit_code == 2
    assert "{case} in the script" in missing.stderr
    assert "--set NAME=VALUE" in missing.stderr
    given = cjdask(*command, "--set", "case=7", "--set", "shell=/bin/sh")
    assert given.stdout == "#!/bin/sh\n#SBATCH --job-name=case\n./model 7\n"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--backend", "slrm"], "did you mean 'slurm'"),
        (["--nodes", "two"], "--nodes: nodes='two': give a whole number"),
        (["--time", "soon"], "--time: time='soon'"),
        (["--mem", "much"], "--mem: mem='much' is no amount of memory"),
        (["--array", "3-1"], "--array: array='3-1'"),
        (["-o", "qos"], "-o: 'qos' is not KEY=VALUE"),
        (["-o", "nodes=-1"], "-o nodes=-1: nodes=-1"),
        (["--set", "case"], "--set: 'case' is not NAME=VALUE"),
        (["--set", "write=1"], "--set write=1: 'write' cannot be set"),
        (["--set", "exit_record=maybe"], "write True or False"),
        (["-o", "nosuchoption=1"], "nosuchoption"),
        (["--settings", "wrong.ini"], "wrong.ini, line 1: 'queue' is in no section"),
        (["--settings", "nosuch.ini"], "nosuch.ini"),
    ],
)
def test_wrong_options_are_told(script: str, options: list[str], words: str) -> None:
    """A wrong value is an error of usage that names the option, what is allowed, what to do."""
    Path("wrong.ini").write_text("queue = a\n")
    done = cjdask("submit", script, "--backend", "slurm", *options)
    assert done.exit_code == 2, done.output
    assert words in done.stderr
    assert done.stdout == ""
    assert not Path(".cjdask").exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty: give a script"),
        (b"\x7fELF\xff\xfe\0", "is no text: give a script"),
        (b"#!/bin/bash\r\ntrue\r\n", "has line ends of DOS"),
        (b"#!/bin/bash\n#SBATCH --nodes=2\ntrue\n", "line 2: #SBATCH --nodes=2\nis a directive"),
    ],
)
def test_files_that_are_no_script_are_refused(own_folder: Path, content: bytes, words: str) -> None:
    """What no scheduler would run as it is meant is refused before it is submitted."""
    Path("job.sh").write_bytes(content)
    done = cjdask("render", "job.sh", "--backend", "slurm")
    assert done.exit_code == 2
    assert words in done.stderr


def test_directives_of_another_scheduler_are_told(own_folder: Path) -> None:
    """A script with lines for another scheduler is taken, with a warning."""
    Path("job.sh").write_text("#PBS -l walltime=1:00\ntrue\n")
    done = cjdask("render", "job.sh", "--backend", "slurm")
    assert done.exit_code == 0
    assert "line 1: #PBS -l walltime=1:00\nis for " in done.stderr


def test_submit_prints_the_id_and_leaves_the_script_alone(script: str) -> None:
    """Standard output is the job's id and nothing else; the user's file is as it was."""
    before = Path(script).read_text()
    done = cjdask("submit", script, "--backend", "local", "--threads", "1")
    assert done.exit_code == 0, done.output
    assert done.stdout == "1\n"
    assert done.stderr == ""
    assert Path(script).read_text() == before
    (row,) = rows(cjdask("submit", script, "--backend", "local", "--threads", "1", "--json"))
    assert (row["job_id"], row["submitted"], row["jobname"]) == ("2", True, "relax")
    assert row["stdout"] == str(Path.cwd() / "relax-2.out")
    assert cjdask("wait").exit_code == 0
    assert Path("relax-1.out").read_text() == "1 threads of relax\n"


def test_each_submission_is_a_new_job_unless_it_has_a_cache_id(fake: FakeSite) -> None:
    """With a cache id the job that is recorded is the answer, with --force a new one."""
    assert [fake.submit(), fake.submit()] == ["1", "2"]
    assert [fake.submit("--cache-id", "a"), fake.submit("--cache-id", "a")] == ["3", "3"]
    (row,) = rows(cjdask("submit", "job.sh", *fake.options, "--cache-id", "a", "--json"))
    assert (row["job_id"], row["submitted"]) == ("3", False)
    assert fake.submit("--cache-id", "a", "--force") == "4"


def test_a_failed_run_is_submitted_again_unless_it_is_to_stay(fake: FakeSite) -> None:
    """--no-retry takes a run that FAILED for the answer."""
    fake.submit("--cache-id", "a")
    fake.end("1", "FAILED", 3)
    assert fake.submit("--cache-id", "a", "--no-retry") == "1"
    assert fake.submit("--cache-id", "a") == "2"


def test_force_needs_a_cache_id(fake: FakeSite) -> None:
    """--force and --no-retry alone mean nothing, and say so."""
    for option in ("--force", "--no-retry"):
        done = cjdask("submit", "job.sh", *fake.options, option)
        assert done.exit_code == 2
        assert "need a --cache-id" in done.stderr


def test_a_job_after_another_one(fake: FakeSite) -> None:
    """--depends takes a run by its cache id or job id, and plain ids of other jobs."""
    fake.submit("--cache-id", "first")
    options = ("--depends", "first", "--depends", "17", "--json")
    cjdask("submit", "job.sh", *fake.options, *options, "--cache-id", "second")
    entry = json.loads(Path(".cjdask/runs/clusterjob.second.json").read_text())
    assert entry["resources"]["depends"] == ["1", "17"]
    other = cjdask("render", "job.sh", "--backend", "slurm", "--depends", "first")
    assert other.exit_code == 2
    assert "is a job of fake, which slurm does not know" in other.stderr


def test_a_refusal_has_the_scheduler_s_words(script: str) -> None:
    """A job that is refused is exit code 1, and leaves no run."""
    done = cjdask("submit", script, "--backend", "local", "--threads", "999")
    assert done.exit_code == 1
    assert "the embedded scheduler refused the job" in done.stderr
    assert "999" in done.stderr
    assert "Nothing was submitted." in done.stderr
    assert cjdask("list").stdout == ""


def test_a_scheduler_that_does_not_answer(fake: FakeSite) -> None:
    """It is exit code 6, and how to find out whether there is a job is told."""
    fake.protocol.broken = True
    done = cjdask("submit", "job.sh", *fake.options)
    assert done.exit_code == 6, done.output
    assert "Whether there is a job is not known" in done.stderr
    cache_id = done.stderr.partition("--cache-id ")[2].split()[0]
    assert cache_id.startswith("job-")
    assert "INTENT" in cjdask("list").stdout


def test_interrupting_a_submission(
    fake: FakeSite, monkeypatch: pytest.MonkeyPatch, own_folder: Path
) -> None:
    """Ctrl-C ends it with 130, and says whether there is a job, or how to find that out."""

    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scheduler_for("fake"), "submit", interrupted)
    done = cjdask("submit", "job.sh", *fake.options, "--cache-id", "a")
    assert done.exit_code == 130
    assert done.stdout == ""
    assert "Whether there is a job is not known: the same command with --cache-id a" in done.stderr
    Path("slow.ini").write_text("[Attributes]\nprologue = kill -INT $PPID; sleep 1\n")
    with start("submit", "job.sh", "--backend", "local", "--settings", "slow.ini") as process:
        _, told = process.communicate(timeout=60)
    assert process.returncode == 130
    assert told == "Interrupted.\nNothing was submitted.\n"


def test_backends_of_a_site_are_rendered(fake: FakeSite) -> None:
    """Any registered backend can be named."""
    assert cjdask("render", "job.sh", *fake.options).stdout.startswith("#!/bin/bash\n#FAKE jobname")
    assert scheduler_for("fake").commands.total() == 0
