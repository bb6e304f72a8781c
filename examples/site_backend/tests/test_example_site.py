"""The backends of the example site."""

from pathlib import Path

import pytest

from cjdask import JobScript, ResourcesNotSupportedError
from cjdask.testing import TranscriptChecks


class TestTranscripts(TranscriptChecks):
    """What was recorded by ``cjdask record`` is built and read as it was."""

    backend = "example"
    folder = Path(__file__).parent / "transcripts"


def test_every_job_has_what_the_site_demands() -> None:
    """The site's header follows those of Slurm."""
    job = JobScript("true", "j", backend="example", account="p7", time="30")
    assert str(job).splitlines()[1:-1] == [
        "#SBATCH --account=p7",
        "#SBATCH --job-name=j",
        "#SBATCH --time=00:30:00",
        "#SBATCH --no-requeue",
    ]


def test_a_job_without_an_account_is_refused() -> None:
    """A job that nobody pays for is refused, with what to do."""
    with pytest.raises(ResourcesNotSupportedError, match="ask for account"):
        str(JobScript("true", "j", backend="example"))


def test_parallel_jobs_run_in_the_environment_of_the_site() -> None:
    """No job has to name the parallel environment."""
    job = JobScript("true", "j", backend="example_sge", nodes=2, ppn=4)
    assert "#$ -pe mpi 8" in str(job).splitlines()
