"""Who may speak to a cluster: only who has the certificate that was made for it."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from distributed.security import Security

from cjdask.errors import ResourcesNotSupportedError

__all__ = ["certificate", "security_for"]

SKEW = timedelta(days=1)
"""How far the clock of a node may be behind."""
VALID = timedelta(days=3650)
_ENCRYPTED = ("tls", "wss")


def security_for(asked: Security | bool | None, protocol: str | None) -> Security | None:
    """Return how a cluster is secured: as asked for, by default with a certificate of its own.

    ``False`` is not at all. Certificates that dask's configuration names are used.

    Raises:
        ResourcesNotSupportedError: the protocol cannot be encrypted and nobody said that it
            need not be.
    """
    if isinstance(asked, Security):
        return asked
    if asked is False:
        return None
    if protocol is not None and protocol.partition("://")[0] not in _ENCRYPTED:
        raise ResourcesNotSupportedError(
            f"protocol={protocol!r} is not encrypted, so that everybody on the network may send "
            "code to the workers; if that is meant, give security=False too"
        )
    configured = Security()
    files: Any = configured
    if files.tls_ca_file and files.tls_scheduler_cert:
        return configured
    cert, key = certificate()
    roles = ("client", "scheduler", "worker")
    return Security(
        require_encryption=True,
        tls_ca_file=cert,
        **{f"tls_{role}_cert": cert for role in roles},
        **{f"tls_{role}_key": key for role in roles},
    )


def certificate() -> tuple[str, str]:
    """Make a certificate that vouches for itself, and its private key, as PEM text."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "cjdask")])
    now = datetime.now(timezone.utc)
    usage = dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("encipher_only", "decipher_only", "crl_sign"),
        ),
        False,
    )
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - SKEW)
        .not_valid_after(now + VALID)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(digital_signature=True, key_cert_sign=True, **usage), critical=True
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return signed.public_bytes(serialization.Encoding.PEM).decode(), private.decode()
