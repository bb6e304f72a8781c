"""The package with backends of its own that a site could have, installed and used."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from cjdask.backends import BatchBackend, get_backend
from cjdask.backends.lsf import LsfBackend
from cjdask.backends.pbspro import PbsProBackend
from cjdask.backends.sge import SgeBackend
from cjdask.command import Output

EXAMPLE = Path(__file__).parent.parent / "examples" / "site_backend"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the package, which is installed in its folder ``lib``."""
    folder = tmp_path_factory.mktemp("site") / "site_backend"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    run(
        *("-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"),
        *("--disable-pip-version-check", "--root-user-action=ignore"),
        *("--target", str(folder / "lib"), str(folder)),
        cwd=folder,
    )
    return folder


def run(*args: str, cwd: Path) -> str:
    """Run Python where the package is installed, and return what it printed."""
    env = {**os.environ, "PYTHONPATH": str(cwd / "lib")}
    done = subprocess.run(
        [sys.executable, *args], cwd=cwd, env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_backends_are_listed(site: Path) -> None:
    """The backends of an installed package are known by their names."""
    code = "from cjdask.backends import backend_names; print(*backend_names())"
    assert {"example", "example_sge", "slurm"} <= set(run("-c", code, cwd=site).split())


def test_a_job_script_is_rendered(site: Path) -> None:
    """A job script names the backend as any other; what its site demands is in it."""
    code = (
        "from cjdask import JobScript; "
        "print(JobScript('echo $CLUSTERJOB_ID', 'j', backend='example', account='p7', nodes=2))"
    )
    assert run("-c", code, cwd=site).splitlines() == [
        "#!/bin/bash",
        "#SBATCH --account=p7",
        "#SBATCH --job-name=j",
        "#SBATCH --nodes=2",
        "#SBATCH --no-requeue",
        "echo $SLURM_JOB_ID",
    ]


@pytest.mark.long
def test_its_own_tests_pass(site: Path) -> None:
    """The tests of the site's package pass, those of each of its transcripts among them."""
    text = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "tests", cwd=site)
    count = len(list((EXAMPLE / "tests" / "transcripts").glob("*.txt")))
    assert f"{4 * count + 1 + 3} passed" in text


def answers(backend: BatchBackend) -> Sequence[Output]:
    """Return what a scheduler answers to the probes of a backend."""
    if isinstance(backend, PbsProBackend):
        return [
            Output.of('{"pbs_version": "23", "Server": {"pbs": {"job_history_enable": "True"}}}')
        ]
    if isinstance(backend, LsfBackend):
        return [Output.of("IBM Spectrum LSF Standard 10.1.0.9"), Output.of(), Output.of()]
    return [Output.of("smp\n"), Output.of("")]


@pytest.mark.parametrize("base", [SgeBackend, PbsProBackend, LsfBackend])
def test_a_backend_of_a_site_stays_what_it_is(base: Any) -> None:
    """Fitted to its scheduler, a derived backend has still its class, name and attributes."""
    own = type("Own", (base,), {"name": "own"})()
    own.colour = "blue"
    fitted = own.probed(answers(own))
    assert type(fitted) is type(own)
    assert (fitted.name, fitted.colour) == ("own", "blue")
    assert fitted is not own


def test_every_backend_with_probes_is_among_them() -> None:
    """No backend with probes is left out of the test above."""
    names = ("slurm", "local", "lpbs", "pbs", "pbspro", "lsf", "oar", "sge", "htcondor")
    backends = [get_backend(name) for name in names]
    probing = {b.name for b in backends if isinstance(b, BatchBackend) and b.probe_commands()}
    assert probing == {"sge", "pbspro", "lsf"}
