"""Count the scheduler commands that many jobs cost from submission to their end."""

from __future__ import annotations

import tempfile
import time

import click

from cjdask import JobScript
from cjdask.scheduler import scheduler_for
from cjdask.status import Status


@click.command()
@click.option("--backend", default="local", show_default=True)
@click.option("--jobs", default=200, show_default=True, help="How many jobs are submitted.")
@click.option("--seconds", default=60, show_default=True, help="How long each job sleeps.")
def main(backend: str, jobs: int, seconds: int) -> None:
    """Submit many jobs, look at the status of each all the time, and count the commands."""
    commands = scheduler_for(backend).commands
    with tempfile.TemporaryDirectory(dir=".") as folder:
        job = JobScript(f"sleep {seconds}", "sleeper", backend=backend, rootdir=folder, time="10")
        began = time.monotonic()
        runs = [job.submit() for _ in range(jobs)]
        submitted = time.monotonic() - began
        looks = most_running = 0
        while True:
            statuses = [run.status for run in runs]
            looks += len(runs)
            most_running = max(most_running, statuses.count(Status.RUNNING))
            if all(status.ended for status in statuses):
                break
            time.sleep(0.2)
        elapsed = time.monotonic() - began
        ended = {status.name: statuses.count(status) for status in set(statuses)}
    print(f"{jobs} jobs on {backend}: submitted in {submitted:.1f} s, ended after {elapsed:.1f} s")
    print(f"ends: {ended}; at most {most_running} ran at a time")
    print(f"status was looked at {looks} times")
    for verb in ("submit", "query", "ended", "cancel"):
        print(f"{verb:8} {commands[verb]:6} commands")
    print(f"queries per minute: {commands['query'] / (elapsed - submitted) * 60:.1f}")


if __name__ == "__main__":
    main()
