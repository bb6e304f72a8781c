"""Make calls whose results are kept, and note each that is made.

    python executor_driver.py BACKEND FOLDER CALLS SECONDS [OPTION=VALUE ...]

It prints the sum of the results. The tests kill it, and run it again.
"""

from __future__ import annotations

import functools
import json
import os
import sys

from cjdask import ClusterExecutor


def work(n: int, folder: str, seconds: float) -> int:
    """Take a while, note that, return a square."""
    import time

    time.sleep(seconds)
    with open(os.path.join(folder, "log"), "a") as file:
        file.write(f"{n}\n")
    return n * n


def main(backend: str, folder: str, calls: int, seconds: float, *options: str) -> None:
    """Map over so many calls, and print the sum."""
    own = {key: json.loads(value) for key, value in (word.split("=", 1) for word in options)}
    call = functools.partial(work, folder=folder, seconds=seconds)
    with ClusterExecutor(backend, time="5", jobname="kept", **own) as executor:
        results = executor.map(call, range(calls), cache_id="a map", cache_folder=f"{folder}/kept")
        print(sum(results))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), *sys.argv[5:])
