"""A certificate for this machine, signed by a certificate authority of the home's own: TLS where no other certificate is at hand.

The authority's key is thrown away once it has signed: nobody can sign another certificate with it. Both last ten years.
"""

from __future__ import annotations

import ipaddress
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from kmscore.clock import wall_seconds
from kmscore.disk import make_directory, write_file
from kmscore.errors import SetupError

LIFETIME = timedelta(days=3650)


def local_certificate(directory: Path, host: str) -> tuple[Path, Path, Path]:
    """The paths of authority, certificate and key in `directory`, made where they are missing.

    For `host`, this machine's name and loopback. All or nothing: the authority's certificate is written last, and what is there without it
    is made anew.
    """
    paths = directory / "ca.pem", directory / "server.pem", directory / "server.key"
    if not all(path.exists() for path in paths):
        make_directory(directory)
        authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
        issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"kmscore local CA {socket.gethostname()}"[:64])])
        authority = _sign(issuer, issuer, authority_key, authority_key, _authority_extensions(authority_key))
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "kmscore")])
        certificate = _sign(subject, issuer, key, authority_key, _server_extensions(host, key, authority_key))
        write_file(paths[2], key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()))
        write_file(paths[1], certificate.public_bytes(serialization.Encoding.PEM))
        write_file(paths[0], authority.public_bytes(serialization.Encoding.PEM))
    _require_name(paths[1], host)
    return paths


def _require_name(path: Path, host: str) -> None:
    """Raises SetupError when the certificate is not for `host`, unless that is every address of this machine."""
    names = x509.load_pem_x509_certificate(path.read_bytes()).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    borne = {str(name.value) for name in names}
    if host not in borne and not _is_any(host):
        raise SetupError(
            f"{path} is not for {host}, but for {', '.join(sorted(borne))}: remove {path.parent} to have it made anew; "
            "clients then need the new ca.pem"
        )


def _is_any(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


Extensions = list[tuple[x509.ExtensionType, bool]]


def _sign(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePrivateKey,
    by: ec.EllipticCurvePrivateKey,
    extensions: Extensions,
) -> x509.Certificate:
    now = datetime.fromtimestamp(wall_seconds(), UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + LIFETIME)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
    )
    for extension, critical in extensions:
        builder = builder.add_extension(extension, critical)
    return builder.sign(by, hashes.SHA256())


def _authority_extensions(key: ec.EllipticCurvePrivateKey) -> Extensions:
    return [
        (x509.BasicConstraints(ca=True, path_length=0), True),
        (_usage(signs_certificates=True), True),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]


def _server_extensions(host: str, key: ec.EllipticCurvePrivateKey, authority: ec.EllipticCurvePrivateKey) -> Extensions:
    names: list[x509.GeneralName] = []
    for name in dict.fromkeys((host, "localhost", "127.0.0.1", "::1", socket.gethostname())):
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            if name.isascii() and name:
                names.append(x509.DNSName(name))
    return [
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False),
        (x509.SubjectAlternativeName(names), False),
        (x509.SubjectKeyIdentifier.from_public_key(key.public_key()), False),
    ]


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
