"""Submit a step of the pipeline, or wait for one that another process has submitted.

    steps.py submit sample     submits it, or finds it submitted; its run is in build/sample.run
    steps.py wait sample       waits for that run; build/sample.done is there at the end

Each call is a process of its own, which make and doit start when it is due (see the Makefile and
dodo.py). Any of them may be killed and started again: a step is submitted once, and of an array
whose tasks failed only those are submitted again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cjdask import AsyncResult, JobError, JobScript, Status
from cjdask.backends import detect_backend

BUILD = Path("build")
NEEDS: dict[str, list[str]] = {"sample": [], "mean": ["sample"]}
"""The steps, and the steps that must have ended well before."""

JobScript.backend = os.environ.get("BACKEND") or detect_backend()
JobScript.cache_folder = BUILD / "runs"


def job(step: str) -> JobScript:
    """Return the job of a step."""
    command = f"{sys.executable} pi.py {step}"
    runs = [AsyncResult.load(BUILD / f"{need}.run") for need in NEEDS[step]]
    if step == "sample":
        body = f"{command} $CLUSTERJOB_ARRAY_INDEX >build/hits.$CLUSTERJOB_ARRAY_INDEX"
        return JobScript(body, step, array="1-8", time="5")
    return JobScript(f"{command} build/hits.* >build/pi.txt", step, time="5", depends=runs)


def submit(step: str) -> None:
    """Submit a step unless it was before."""
    BUILD.mkdir(exist_ok=True)
    run = job(step).submit()
    run.dump(BUILD / f"{step}.run")
    print(f"{step}: job {run.job_id} on {run.backend}")


def wait(step: str) -> None:
    """Wait for the end of a step. After a bad one it can be submitted again."""
    path = BUILD / f"{step}.run"
    run = AsyncResult.load(path)
    if run.get() is Status.COMPLETED:
        (BUILD / f"{step}.done").touch()
        return
    bad = {task: info for task, info in run.tasks.items() if info.status is not Status.COMPLETED}
    for task, info in bad.items() or [(None, run.info)]:
        print(f"{step}, job {run.job_id}, task {task}: {info.describe()}", file=sys.stderr)
    path.unlink()
    sys.exit(1)


if __name__ == "__main__":
    verb, step = sys.argv[1:]
    try:
        {"submit": submit, "wait": wait}[verb](step)
    except JobError as error:
        sys.exit(f"{step}: {error}")
