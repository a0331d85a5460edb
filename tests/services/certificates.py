"""A throw-away certificate authority, with a server's and a client's certificate signed by it."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.services.waiting import PATIENCE_SECONDS

_EC_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-noenc")


@dataclass(frozen=True, slots=True)
class Certificates:
    """PEM files in one folder; keys are PKCS#8 and have no password."""

    folder: Path

    @property
    def ca(self) -> Path:
        """The CA certificate for clients."""
        return self.folder / "ca.crt"

    def certificate(self, name: str) -> Path:
        """Return the certificate of "server" (127.0.0.1 and localhost) or "client"."""
        return self.folder / f"{name}.crt"

    def key(self, name: str) -> Path:
        """Return the private key of "server" or "client"."""
        return self.folder / f"{name}.key"

    def bundle(self, name: str) -> Path:
        """Return key and certificate in one file, the format of Java."""
        return self.folder / f"{name}.pem"


def make_certificates(folder: Path) -> Certificates:
    """Create an authority and two certificates in `folder`, valid for two days."""
    folder.mkdir(parents=True, exist_ok=True)
    certificates = Certificates(folder)
    usage = "keyUsage=critical,keyCertSign,cRLSign"
    _openssl(*_EC_KEY, "-subj", "/CN=karmalake tests", "-addext", usage, *_files(certificates, "ca"))
    for name in ("server", "client"):
        _openssl(
            *_EC_KEY,
            "-subj",
            f"/CN={name}",
            *_leaf_extensions(),
            *_signed_by(certificates),
            *_files(certificates, name),
        )
        certificates.bundle(name).write_text(
            certificates.key(name).read_text() + certificates.certificate(name).read_text()
        )
    return certificates


def _leaf_extensions() -> tuple[str, ...]:
    extensions = (
        "basicConstraints=critical,CA:false",
        "keyUsage=critical,digitalSignature",
        "extendedKeyUsage=serverAuth,clientAuth",
        "subjectAltName=IP:127.0.0.1,DNS:localhost",
    )
    return tuple(argument for extension in extensions for argument in ("-addext", extension))


def _signed_by(certificates: Certificates) -> tuple[str, ...]:
    return ("-CA", str(certificates.ca), "-CAkey", str(certificates.key("ca")))


def _files(certificates: Certificates, name: str) -> tuple[str, ...]:
    return ("-out", str(certificates.certificate(name)), "-keyout", str(certificates.key(name)))


def _openssl(*arguments: str) -> None:
    subprocess.run(
        ["openssl", "req", "-x509", "-days", "2", *arguments], check=True, capture_output=True, timeout=PATIENCE_SECONDS
    )
