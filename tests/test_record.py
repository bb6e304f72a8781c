"""``cjdask record``, and that what it writes is what the checks of transcripts take."""

from __future__ import annotations

import getpass
import json
import re
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cjdask.backends import register_backend
from cjdask.backends.local import LocalBackend
from cjdask.cli import main
from cjdask.cli_recorder import anonymiser
from cjdask.command import Output
from cjdask.errors import ParseError
from cjdask.scheduler import scheduler_for
from cjdask.status import JobInfo
from cjdask.testing.dialogues import Step, missing, read

CHECKS = """
from pathlib import Path
from cjdask.testing import TranscriptChecks

class TestIt(TranscriptChecks):
    backend = {backend!r}
    folder = Path({folder!r})
"""


@pytest.fixture(autouse=True)
def _own_scheduler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


def record(*args: str) -> Result:
    """Run the command."""
    return CliRunner().invoke(main, ["record", "--output", "out", *args])


def check(backend: str, *options: str) -> dict[str, str]:
    """Run the checks on the folder ``out`` as a site does; return how each of them ended."""
    Path("test_it.py").write_text(CHECKS.format(backend=backend, folder=str(Path.cwd() / "out")))
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options]
    done = subprocess.run(
        [*command, "test_it.py"], capture_output=True, text=True, timeout=100, check=False
    )
    results = re.findall(r"^(PASSED|FAILED) \S+::(test_\S+)", done.stdout, re.MULTILINE)
    return {name: result for result, name in results}


def steps(name: str) -> list[Step]:
    """Return the steps of a transcript that was recorded."""
    return read(Path("out", f"{name}.txt"))[1]


def ends(names: Sequence[str]) -> set[str]:
    """Return the statuses in some transcripts."""
    text = " ".join(line for name in names for step in steps(name) for line in step.expected)
    return set(re.findall(r'"status": "([A-Z]+)"', text))


@pytest.fixture
def recorded() -> Path:
    """Record the embedded scheduler."""
    done = record(
        *("--backend", "local", "--refused", "nodes=3", "--scheduler", "embedded 1", "--json")
    )
    assert done.exit_code == 0, done.output
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["transcript"] for each in told} == {str(p) for p in Path("out").glob("*.txt")}
    assert all(each["what"] for each in told)
    return Path("out")


def test_the_embedded_scheduler_is_recorded_and_passes(recorded: Path) -> None:
    """What is recorded covers a job's life, and passes the checks of transcripts."""
    names = {path.stem for path in recorded.glob("*.txt")}
    assert names == {
        *("submit-accepted", "submit-refused", "query-open", "query-ended", "unknown"),
        *("find", "cancel", "query-cancelled"),
    }
    assert ends(["query-open"]) >= {"PENDING", "RUNNING"}
    assert ends(["query-ended"]) == {"COMPLETED", "FAILED"}
    assert ends(["query-cancelled"]) == {"CANCELLED"}
    assert [len(step.value.split(",")) for step in steps("cancel")] == [2, 2, 1, 1]
    assert [step.expected for step in steps("find")] == [['-> "7"'], ["-> none"]]
    assert steps("submit-refused")[0].expected[0].startswith("!! SubmitError")
    assert read(recorded / "unknown.txt")[0][0] == "# scheduler: embedded 1"
    results = check("local")
    assert set(results.values()) == {"PASSED"}
    assert len(results) == 4 * len(names) + 1


def test_nothing_of_the_machine_is_recorded(recorded: Path, tmp_path: Path) -> None:
    """Paths of the machine, its name and the user's are in no transcript."""
    text = " ".join(path.read_text() for path in recorded.glob("*.txt"))
    for word in (str(tmp_path), sys.prefix, str(Path.home()), socket.gethostname()):
        assert word not in text
    assert not re.search(rf"\b{getpass.getuser()}\b", text.replace("/home/user", ""))
    assert "/home/user/work/good" in text


def test_the_jobs_are_gone_afterwards(recorded: Path) -> None:
    """A recording leaves neither jobs nor files of jobs behind."""
    everything = [str(number) for number in range(1, 20)]
    assert all(info.status.ended for info in scheduler_for("local").query(everything))
    assert not list(Path.cwd().glob("cjdask-record-*"))


@pytest.mark.long
def test_transcripts_are_not_replaced_unasked(recorded: Path) -> None:
    """A folder that has transcripts is refused; with --overwrite it is recorded anew."""
    done = record("--backend", "local")
    assert done.exit_code == 2
    assert "--overwrite" in done.output
    assert record("--backend", "local", "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--backend", "slrm"], "did you mean 'slurm'"),
        (["--backend", "local", "--held", "hold"], "'hold' is not KEY=VALUE"),
        (["--backend", "local", "--hide", "x"], "'x' is not TEXT=NAME"),
        (["--backend", "local", "-r", "time=soon"], "'soon' is not a time"),
        (["--backend", "local", "--refused", "nodes=1"], "was not refused"),
    ],
)
def test_errors_say_what_is_wrong(args: list[str], words: str) -> None:
    """What cannot be recorded ends with a message and no traceback."""
    done = record(*args)
    assert done.exit_code in (1, 2)
    assert words in done.output
    assert isinstance(done.exception, SystemExit)


def test_a_missing_scheduler_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the scheduler's commands are not installed the message names them."""
    monkeypatch.setenv("PATH", "/nonexistent")
    done = record("--backend", "slurm")
    assert done.exit_code == 2
    assert "sbatch" in done.output


class Misreading(LocalBackend):
    name = "misreading"

    def parse_query(self, output: Output, ids: Sequence[str]) -> list[JobInfo]:
        raise ParseError("I do not read that", output)


def test_an_answer_that_is_not_understood_is_kept() -> None:
    """Where the parser fails, the answer is written for the author to look at; jobs are ended."""
    register_backend(Misreading)
    done = record("--backend", "misreading")
    assert done.exit_code == 1
    assert "I do not read that" in done.output
    (step,) = steps("query-open")
    assert step.stdout
    assert step.expected == ["!! ParseError: I do not read that"]
    assert all(info.status.ended for info in scheduler_for("local").query(["1", "2", "4", "5"]))


@pytest.mark.long
def test_a_changed_transcript_fails(recorded: Path) -> None:
    """The checks see a changed command, a changed status, an unread line, a missing end."""
    open_, ended = recorded / "query-open.txt", recorded / "query-ended.txt"
    open_.write_text(open_.read_text().replace("$ PYTHON -E", "$ PYTHON -X"))
    ended.write_text(ended.read_text().replace('-> {"job_id": "1"', '-> {"job_id": "8"'))
    (recorded / "query-cancelled.txt").unlink()
    results = check("local")
    assert {name for name, result in results.items() if result == "FAILED"} == {
        "test_commands[query-open]",
        "test_answers[query-ended]",
        "test_nothing_is_missing",
    }
    results = check("local", "-p", "cjdask.testing.plugin", "--update-transcripts")
    assert results["test_answers[query-ended]"] == "PASSED"
    assert steps("query-ended")[0].expected[0].startswith('-> {"job_id": "1"')


@pytest.mark.long
def test_a_parser_that_skips_lines_fails(recorded: Path) -> None:
    """The checks see a parser that leaves out what it does not understand."""
    assert check("local")["test_every_line_is_accounted_for[query-open]"] == "PASSED"
    Path("conftest.py").write_text(
        "import re\n"
        "from dataclasses import replace\n"
        "from cjdask.backends.local import LocalBackend\n"
        "read = LocalBackend.parse_query\n"
        "def sloppy(self, output, ids):\n"
        "    kept = re.sub(rb'(?m)^[^{].*', b'', output.raw_stdout).strip()\n"
        "    return read(self, replace(output, raw_stdout=kept), ids)\n"
        "LocalBackend.parse_query = sloppy\n"
    )
    results = check("local")
    assert results["test_every_line_is_accounted_for[query-open]"] == "FAILED"
    assert results["test_answers[query-open]"] == "PASSED"


@pytest.mark.slurm
@pytest.mark.usefixtures("slurm")
def test_slurm_is_recorded_and_passes() -> None:
    """A real Slurm is recorded, with held jobs, and passes the checks of transcripts."""
    done = record("--backend", "slurm", "--held", "hold=true", "--refused", "queue=nosuch")
    assert done.exit_code == 0, done.output
    assert missing([step for path in Path("out").glob("*.txt") for step in read(path)[1]]) == []
    assert "HELD" in Path("out/query-open.txt").read_text()
    assert set(check("slurm").values()) == {"PASSED"}


@pytest.mark.sge
@pytest.mark.usefixtures("sge")
def test_grid_engine_is_recorded_with_its_probes() -> None:
    """What a backend asks before anything else is recorded, and fits it when it is replayed."""
    done = record("--backend", "sge", "--held", "h=true", "--refused", "queue=nosuch")
    assert done.exit_code == 0, done.output
    assert [step.verb for step in steps("probe")] == ["probe", "probe"]
    assert read(Path("out/cancel.txt"))[0][2] == "# probed: probe.txt"
    assert set(check("sge").values()) == {"PASSED"}


def test_a_command_of_several_lines_is_read_back() -> None:
    """A command with line breaks is the same after it was written and read."""
    step = Step("sh -c 'a\nb'", ["> c"], [], 0, "query", "ids=1", ["-> none"])
    Path("x.txt").write_text(
        f"# scheduler: s\n# what: w\n\n{Step('x', [], [], 0, 'query', 'ids=1')}\n{step}"
    )
    assert read(Path("x.txt"))[1][1].command == step.command


def test_names_are_replaced_as_whole_words() -> None:
    """A user's name is replaced where it is one, also in the name of a server, not in words."""
    hide = anonymiser({"ann": "user", "pbs1": "host", "/home/ann": "/home/user"})
    assert (
        hide("7.pbs1 ann@pbs1:/home/ann/a annex xann") == "7.host user@host:/home/user/a annex xann"
    )
