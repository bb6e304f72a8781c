"""Who may speak to a cluster."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import dask.config
import pytest
from distributed import Client, Security

from cjdask import ClusterjobCluster, ResourcesNotSupportedError
from cjdask.cluster_security import certificate, security_for
from cjdask.scheduler import Scheduler
from tests.cluster_fakes import QUIET, protocol_of, register_fake, with_cluster


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scheduler:
    """Register a fake scheduler as the backend ``fake``."""
    return register_fake(monkeypatch, tmp_path)


def test_certificates_are_private(fake: Scheduler, tmp_path: Path) -> None:
    """They are files that only the user can read, named in the script, gone with the cluster."""

    async def test(cluster: ClusterjobCluster) -> None:
        await cluster.scale(jobs=1)
        (script,) = protocol_of(fake).submitted
        (private,) = tmp_path.glob(".dask-worker-*")
        assert private.stat().st_mode & 0o777 == 0o700
        for name in ("ca_file", "cert", "key"):
            path = private / f"{name}.pem"
            assert path.stat().st_mode & 0o777 == 0o600
            assert f"--tls-{name.replace('_', '-')} {path}" in script
        assert "tls://127.0.0.1" in script

    with_cluster(test, security=None)
    assert not list(tmp_path.rglob("*.pem"))


def test_a_client_without_the_certificate_is_refused(fake: Scheduler) -> None:
    """Client(cluster) connects; plain TCP, no certificate and another one do not."""

    async def connect(address: str, security: Security | None = None) -> None:
        client = Client(address, security=security, asynchronous=True, timeout=1)
        try:
            await client
        finally:
            await client.close()

    async def test(cluster: ClusterjobCluster) -> None:
        async with Client(cluster, asynchronous=True) as client:
            assert await client.scheduler.identity()
        address = cluster.scheduler_address
        assert address.startswith("tls://")
        with pytest.raises(OSError, match=r"reset|closed|Timed out|certificate"):
            await connect(address.replace("tls://", "tcp://"))
        with pytest.raises(TypeError, match="ssl_context"):
            await connect(address)
        with pytest.raises(OSError, match=r"reset|closed|Timed out|certificate"):
            await connect(address, security_for(None, None))
        await connect(address, cluster.security)

    with_cluster(test, security=None)


def test_anonymous_bytes_are_not_unpickled(fake: Scheduler) -> None:
    """Who has the address and nothing else does not get past the handshake."""

    async def test(cluster: ClusterjobCluster) -> None:
        host, port = cluster.scheduler_address.removeprefix("tls://").split(":")
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        reader, writer = await asyncio.open_connection(host, int(port), ssl=context)
        with pytest.raises(ssl.SSLError, match="certificate required"):
            await reader.read()
        writer.close()

    with_cluster(test, security=None)


def test_the_ways_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """False is none at all, a Security is taken, and so are certificates of the configuration."""
    own = Security()
    assert security_for(own, "tcp://") is own
    assert security_for(False, None) is None
    files = {"distributed.comm.tls.ca-file": "a", "distributed.comm.tls.scheduler.cert": "b"}
    with dask.config.set(files):
        found = security_for(None, None)
        assert found is not None
        assert found.tls_scheduler_cert == "b"
    assert certificate() != certificate()


def test_plain_text_must_be_meant(fake: Scheduler) -> None:
    """A protocol without encryption is refused unless security=False says that it is meant."""
    for options in ({"protocol": "tcp://"}, {"scheduler_options": {"protocol": "tcp"}}):
        with pytest.raises(ResourcesNotSupportedError, match="security=False"):
            ClusterjobCluster("fake", **QUIET, **options)
