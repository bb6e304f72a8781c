"""Time many calls on Slurm by this package, clusterfutures, submitit and a bare array job.

pip install '.[bench]'
python benchmarks/executor_calls.py
"""

from __future__ import annotations

import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

MEM = 100
POOL: dict[str, Any] = {"ppn": os.cpu_count(), "maximum_jobs": 1, "time": "5", "mem": 1000}
"""As many processes as this machine, which plays all nodes, has cores."""
LONGEST = 120.0
"""Seconds for clusterfutures."""
PROGRAMS = ("sbatch", "srun", "squeue", "sacct", "scancel", "scontrol")


def square(n: int) -> int:
    """Return the square of a number."""
    return n * n


@contextmanager
def counted_commands(folder: Path) -> Iterator[Callable[[], Counter[str]]]:
    """Count the commands of Slurm that are run, also inside of jobs."""
    log = folder / "commands"
    shims = folder / "bin"
    shims.mkdir()
    for program in PROGRAMS:
        real = shutil.which(program)
        if real:
            shim = shims / program
            shim.write_text(f'#!/bin/sh\necho {program} >>{log}\nexec {real} "$@"\n')
            shim.chmod(0o755)
    path = os.environ["PATH"]
    os.environ["PATH"] = f"{shims}:{path}"

    def take() -> Counter[str]:
        found = Counter(log.read_text().split()) if log.exists() else Counter()
        log.unlink(missing_ok=True)
        return found

    try:
        yield take
    finally:
        os.environ["PATH"] = path


def bare_array(calls: int) -> float:
    """Run an array whose tasks only start Python and import cloudpickle."""
    script = Path("bare.sh")
    options = f"--time=5 --mem={MEM} --array=1-{calls} --output=bare-%a.out"
    script.write_text(f"#!/bin/bash\n#SBATCH {options}\n{sys.executable} -c 'import cloudpickle'\n")
    began = time.monotonic()
    done = subprocess.run(["sbatch", "--parsable", script], capture_output=True, check=True)
    job = done.stdout.decode().strip()
    while subprocess.run(["squeue", "--noheader", "-j", job], capture_output=True).stdout.strip():
        time.sleep(0.2)
    return time.monotonic() - began


def in_array(calls: int) -> float:
    """Make the calls in array mode."""
    from cjdask import SlurmExecutor

    began = time.monotonic()
    with SlurmExecutor(time="5", mem=MEM) as executor:
        check(executor.map(square, range(calls)), calls)
        return time.monotonic() - began


def in_pool(calls: int) -> float:
    """Make the calls in a pool, with the start of its job."""
    from cjdask import SlurmExecutor

    began = time.monotonic()
    with SlurmExecutor(mode="pool", **POOL) as executor:
        check(executor.map(square, range(calls)), calls)
        return time.monotonic() - began


def in_warm_pool(calls: int) -> float:
    """Make the calls in a pool whose jobs are there."""
    from cjdask import SlurmExecutor

    with SlurmExecutor(mode="pool", **POOL) as executor:
        check(executor.map(square, range(200)), 200)
        began = time.monotonic()
        check(executor.map(square, range(calls)), calls)
        return time.monotonic() - began


def by_clusterfutures(calls: int) -> float:
    """Make the calls by clusterfutures; return when that failed, if it does.

    It takes jobs that run when it looks, each 30 s, for dead, and may then wait for ever: it is
    given a process of its own, and two minutes.
    """
    began = time.monotonic()
    process = multiprocessing.get_context("spawn").Process(target=_clusterfutures, args=(calls,))
    process.start()
    process.join(LONGEST)
    if process.exitcode != 0:
        print(f"clusterfutures has not made all {calls} calls", file=sys.stderr)
        process.kill()
    process.join()
    return time.monotonic() - began


def _clusterfutures(calls: int) -> None:
    import cfut

    lines = ["#SBATCH --time=5", f"#SBATCH --mem={MEM}"]
    with cfut.SlurmExecutor(additional_setup_lines=lines) as executor:
        check(executor.map(square, range(calls)), calls)


def by_submitit(calls: int) -> float:
    """Make the calls by submitit, as one array."""
    import submitit

    began = time.monotonic()
    executor = submitit.AutoExecutor(folder="submitit")
    executor.update_parameters(timeout_min=5, mem_gb=MEM / 1000, slurm_array_parallelism=calls)
    check((job.result() for job in executor.map_array(square, range(calls))), calls)
    return time.monotonic() - began


def check(results: Iterator[int], calls: int) -> None:
    """Fail unless the results are right."""
    if list(results) != [square(n) for n in range(calls)]:
        raise SystemExit("wrong results")


@click.command()
@click.option("--calls", default=200, show_default=True, help="How many calls of each kind.")
@click.option("--many", default=5000, show_default=True, help="How many in a warm pool.")
def main(calls: int, many: int) -> None:
    """Print a table of times and of the commands that Slurm had to serve."""
    rows: list[tuple[str, int, float, Counter[str]]] = []
    with tempfile.TemporaryDirectory(dir=".", prefix="bench-") as name:
        os.chdir(name)
        with counted_commands(Path.cwd()) as take:
            for what, kind, count in (
                ("bare array", bare_array, calls),
                ("cjdask, array", in_array, calls),
                ("cjdask, pool", in_pool, calls),
                ("cjdask, warm pool", in_warm_pool, many),
                ("submitit, array", by_submitit, calls),
                ("clusterfutures", by_clusterfutures, calls),
            ):
                seconds = kind(count)
                rows.append((what, count, seconds, take()))
                print(f"{what}: {seconds:.1f} s", file=sys.stderr)
        os.chdir("..")
    times = {what: seconds for what, _, seconds, _ in rows}
    print("| | calls | seconds | calls a second | commands |\n|---|---|---|---|---|")
    for what, count, seconds, commands in rows:
        told = ", ".join(f"{commands[each]} {each}" for each in PROGRAMS if commands[each])
        print(f"| {what} | {count} | {seconds:.1f} | {count / seconds:.0f} | {told} |")
    fastest = min(times["submitit, array"], times["clusterfutures"])
    print(f"array / bare array: {times['cjdask, array'] / times['bare array']:.2f}")
    print(f"clusterfutures / array: {times['clusterfutures'] / times['cjdask, array']:.1f}")
    print(f"fastest of the two / pool: {fastest / times['cjdask, pool']:.1f}")


if __name__ == "__main__":
    main()
