"""The journal on a disk that is really full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask import JobScript, JournalError, ProtocolError, Status
from cjdask.backends.local import PROGRAM
from cjdask.monitor import _monitors

PAGE = 4096


def mount(*options: str) -> None:
    """Call mount."""
    done = subprocess.run(["mount", *options], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return the folder of a disk with room for one small file."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount("-t", "tmpfs", "-o", f"size={PAGE}", "cjdask-test", str(folder))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(tmp_path / "state"))
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def jobs() -> list[str]:
    """Return the ids of all jobs that the embedded scheduler ever had."""
    argv = [sys.executable, str(PROGRAM), "query", "--all"]
    text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
    return [json.loads(line)["id"] for line in text.splitlines()]


def job(rootdir: str = "jobs") -> JobScript:
    """Return a job whose epilogue tells that it ran."""
    return JobScript("exit 3", "j", backend="local", rootdir=rootdir, epilogue="echo >>told")


def test_no_room_for_the_intent(disk: Path) -> None:
    """Where the intent does not fit nothing is submitted, and nothing but the lock is there."""
    (disk / "other").write_bytes(b"x" * PAGE)
    with pytest.raises(JournalError, match=r"clusterjob\.a\.json cannot be written: No space left"):
        job().submit(cache_id="a", cache_folder=disk)
    assert jobs() == []
    assert sorted(os.listdir(disk)) == ["clusterjob.a.json.lock", "other"]
    (disk / "other").unlink()
    mount("-o", f"remount,size={PAGE * 64}", str(disk))
    assert job().submit(cache_id="a", cache_folder=disk).get(timeout=60) is Status.FAILED


def test_no_room_for_the_id(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where only the intent fits the job is known, and is found again when there is room."""
    run = job().submit(cache_id="a", cache_folder=disk)
    assert f"job {run.job_id} was submitted, but its id is not recorded" in caplog.text
    assert "No space left" in caplog.text
    data = json.loads((disk / "clusterjob.a.json").read_text())
    assert (data["job_id"], data["ended"]) == (None, [])
    _monitors.clear()
    mount("-o", f"remount,size={PAGE * 64}", str(disk))
    again = job().submit(cache_id="a", cache_folder=disk, retry=False)
    assert (again.job_id, again.get(timeout=60)) == (run.job_id, Status.FAILED)
    assert jobs() == [run.job_id]
    assert Path("told").read_text() == "\n"


def test_no_room_for_the_end(disk: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where the end does not fit it is told all the same, and the job's own record stays."""
    mount("-o", f"remount,size={PAGE * 64}", str(disk))
    run = job().submit(cache_id="a", cache_folder=disk)
    run.epilogue = ""
    mount("-o", f"remount,size={PAGE}", str(disk))
    assert run.get(timeout=60) is Status.FAILED
    assert f"the end of job {run.job_id} is not recorded" in caplog.text
    assert json.loads((disk / "clusterjob.a.json").read_text())["ended"] == []
    assert len(list(Path("jobs/.cjdask").glob("*.end"))) == 1
    _monitors.clear()
    mount("-o", f"remount,size={PAGE * 64}", str(disk))
    assert JobScript.cached_run("a", cache_folder=disk).exit_code == 3


def test_no_room_for_the_script(disk: Path) -> None:
    """Where the script does not fit the error names it, and nothing is submitted or recorded."""
    (disk / "other").write_bytes(b"x" * PAGE)
    with pytest.raises(ProtocolError, match=r"cannot write .*disk/j\.sh .*No space left"):
        job(str(disk)).submit(cache_id="a", cache_folder="cache")
    assert jobs() == []
    assert not list(Path("cache").glob("*.json"))


def test_no_room_for_the_epilogue(disk: Path) -> None:
    """An epilogue that cannot be started is an error; it is run later, and once."""
    mount("-o", f"remount,size={PAGE * 64}", str(disk))
    run = job().submit(cache_id="a", cache_folder=disk)
    (disk / "other").write_bytes(b"x" * (PAGE * 63))
    with pytest.raises(ProtocolError, match=r"the epilogue cannot be run.*No space left"):
        run.get(timeout=60)
    assert run.get() is Status.FAILED
    assert not Path("told").exists()
    (disk / "other").unlink()
    run.run_epilogue()
    _monitors.clear()
    assert JobScript.cached_run("a", cache_folder=disk).get(timeout=60) is Status.FAILED
    assert Path("told").read_text() == "\n"
