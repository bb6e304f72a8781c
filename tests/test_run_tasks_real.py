"""Arrays whose tasks partly failed, tried again on real schedulers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cjdask import JobScript, Status
from cjdask.run_files import flush_all
from tests.as_user import as_user

WHOLE = {"oar"}
"""Schedulers that have no arrays with gaps."""

BODY = """
echo $CLUSTERJOB_ARRAY_INDEX >>ran
case $CLUSTERJOB_ARRAY_INDEX in
    2 | 5) [ -e fixed ] || exit $CLUSTERJOB_ARRAY_INDEX ;;
esac
"""


@pytest.fixture(
    params=[
        "local",
        pytest.param("slurm", marks=pytest.mark.slurm),
        pytest.param("sge", marks=pytest.mark.sge),
        pytest.param("htcondor", marks=pytest.mark.htcondor),
        pytest.param("oar", marks=pytest.mark.oar),
    ]
)
def backend(
    request: pytest.FixtureRequest, open_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Return the name of a scheduler that answers."""
    name: str = request.param
    if name != "local":
        request.getfixturevalue(name)
    monkeypatch.setenv("CJDASK_EMBEDDED_DIR", str(open_folder / "state"))
    if name == "oar":
        with as_user(name):
            yield name
    else:
        yield name


@pytest.mark.timeout(150)
def test_only_the_failed_tasks_run_again(backend: str, open_folder: Path) -> None:
    """The second submission runs two of five tasks; the run then has five that ended well."""
    folder, cache = open_folder / backend, open_folder / f"cache-{backend}"

    def script() -> JobScript:
        return JobScript(BODY, "tasks", backend=backend, rootdir=str(folder), array="1-5", time="5")

    first = script().submit(cache_id="a", cache_folder=cache)
    assert first.get(timeout=100) is Status.FAILED
    codes = {task: info.exit_code for task, info in first.tasks.items()}
    assert codes == {1: 0, 2: 2, 3: 0, 4: 0, 5: 5}
    (folder / "fixed").touch()
    again = script().submit(cache_id="a", cache_folder=cache)
    assert again.job_id != first.job_id
    assert again.get(timeout=100) is Status.COMPLETED
    assert {task: info.exit_code for task, info in again.tasks.items()} == dict.fromkeys(codes, 0)
    ran = sorted((folder / "ran").read_text().split())
    assert ran == sorted("12345" * 2 if backend in WHOLE else "1234525")
    for task in (2, 3):
        assert Path(again.log_path("stdout", task)).exists()
    flush_all()
    assert [path.name for path in (folder / ".cjdask").iterdir()] == ["README"]
