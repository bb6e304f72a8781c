"""Backends of the example site: Slurm behind a wrapper, Grid Engine with one environment."""

from dataclasses import replace

from cjdask.backends.sge import SgeBackend
from cjdask.backends.slurm import SlurmBackend
from cjdask.command import Command
from cjdask.errors import ResourcesNotSupportedError
from cjdask.resources import Resources


class ExampleSlurm(SlurmBackend):
    """Slurm where jobs are submitted by ``site-sbatch``, have an account, and never start twice."""

    name = "example"
    programs = ("site-sbatch", "squeue", "scancel")

    def headers(self, resources: Resources) -> list[str]:
        """Refuse a job without an account, and add the header that the site demands."""
        if resources.account is None:
            raise ResourcesNotSupportedError(
                "account is missing: the example site charges every job; ask for account=..."
            )
        return [*super().headers(resources), f"{self.prefix} --no-requeue"]

    def submit_command(self, resources: Resources, script: str) -> Command:
        """Submit by the wrapper, which takes the options of sbatch."""
        command = super().submit_command(resources, script)
        return replace(command, argv=("site-sbatch", *command.argv[1:]))


class ExampleGridEngine(SgeBackend):
    """Grid Engine where parallel jobs always run in the environment ``mpi``."""

    name = "example_sge"

    def __init__(self) -> None:
        super().__init__(parallel_environment="mpi")
