"""Certificates of our own for brokers on loopback."""

from __future__ import annotations

import datetime
import subprocess
from pathlib import Path

from tests.broker import Broker, free_port


class Authority:
    """A certificate authority of our own, and what it signs for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.certificate = directory / "ca.pem"
        self._openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
                      "3650", "-subj", "/CN=ours", "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], check=True, capture_output=True, cwd=self.directory, timeout=120)

    def sign(self, name: str, start: int, end: int, host: str = "IP:127.0.0.1") -> None:
        """``name``.pem and .key, valid from ``start`` to ``end`` days from now."""
        import ipaddress

        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec

        now = datetime.datetime.now(datetime.UTC)
        authority = x509.load_pem_x509_certificate(self.certificate.read_bytes())
        signer = serialization.load_pem_private_key((self.directory / "ca.key").read_bytes(), None)
        key = ec.generate_private_key(ec.SECP256R1())
        kind, _, value = host.partition(":")
        address = x509.IPAddress(ipaddress.ip_address(value)) if kind == "IP" else x509.DNSName(value)
        made = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)]))
            .issuer_name(authority.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now + datetime.timedelta(days=start))
            .not_valid_after(now + datetime.timedelta(days=end))
            .add_extension(x509.SubjectAlternativeName([address]), False)
            .sign(signer, hashes.SHA256())  # type: ignore[arg-type]
        )
        (self.directory / f"{name}.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        (self.directory / f"{name}.key").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))


def tls_broker(directory: Path, authority: Authority, name: str, *more: str) -> Broker:
    port = free_port()
    files = authority.directory
    lines = (f"listener {port} 127.0.0.1", "allow_anonymous true", f"certfile {files}/{name}.pem",
             f"keyfile {files}/{name}.key", f"cafile {files}/ca.pem", *more)  # fmt: skip
    broker = Broker(directory, settings="\n".join(lines) + "\n")
    if broker.kind == "mosquitto":
        text = (directory / "mosquitto.conf").read_text()
        (directory / "mosquitto.conf").write_text(f"user root\n{text}")
    broker.start()
    broker.port = port
    return broker
