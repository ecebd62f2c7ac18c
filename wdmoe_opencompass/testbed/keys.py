"""Keys of a testbed: an authority, and certificates of the base station and each device; both sides show theirs."""

import datetime
import os
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ..channel.profile import BASE_STATION
from ..errors import TestbedError

AUTHORITY = "ca"
CLOCK_SLACK = datetime.timedelta(hours=1)  # a board without a battery may start with a clock that is behind


def make_keys(folder: Path, devices: list[str], days: float = 365.0) -> list[Path]:
    """Write `ca`, `base_station` and every device's key (`.key`, readable by the owner) and certificate (`.pem`).

    An authority in the folder is kept: certificates of further devices, or new ones, work with the old ones.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name in devices:
        if name in (AUTHORITY, BASE_STATION) or devices.count(name) > 1 or not name or "/" in name:
            raise TestbedError(f"devices: {name!r} is not a device name, or is listed twice")
    if (folder / f"{AUTHORITY}.key").exists():
        authority_key, authority = _read(folder, AUTHORITY)
    else:
        authority_key = ec.generate_private_key(ec.SECP256R1())
        authority = _certificate("wdmoe testbed authority", authority_key, authority_key, None, days, None)
        _write(folder, AUTHORITY, authority_key, authority)
    written = [folder / f"{AUTHORITY}.pem"]
    for name in (BASE_STATION, *devices):
        key = ec.generate_private_key(ec.SECP256R1())
        usage = ExtendedKeyUsageOID.CLIENT_AUTH if name == BASE_STATION else ExtendedKeyUsageOID.SERVER_AUTH
        _write(folder, name, key, _certificate(name, key, authority_key, authority, days, usage))
        written.append(folder / f"{name}.pem")
    return written


def server_credentials(folder: Path, name: str) -> Any:
    """-> the certificate that a device shows, and the authority that its callers need."""
    key, certificate, authority = _load(folder, name)
    return grpc.ssl_server_credentials([(key, certificate)], root_certificates=authority, require_client_auth=True)


def channel_credentials(folder: Path) -> Any:
    """-> the certificate that the base station shows, and the authority that the devices need."""
    key, certificate, authority = _load(folder, BASE_STATION)
    return grpc.ssl_channel_credentials(root_certificates=authority, private_key=key, certificate_chain=certificate)


def only_device(folder: Path) -> str:
    """Name the only device with a key in a folder, as on a board; TestbedError if it is not the only one."""
    names = sorted(path.stem for path in folder.glob("*.key") if path.stem not in (AUTHORITY, BASE_STATION))
    if len(names) != 1:
        raise TestbedError(f"{folder}: holds keys of {len(names)} devices; say with --name which one this is")
    return names[0]


def _load(folder: Path, name: str) -> tuple[bytes, bytes, bytes]:
    try:
        key, certificate = (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
        authority = (folder / f"{AUTHORITY}.pem").read_bytes()
        known = x509.load_pem_x509_certificate(certificate)
        serialization.load_pem_private_key(key, None)
    except OSError as error:
        raise TestbedError(
            f"{error.filename}: cannot be read: {error.strerror}; make it with `wdmoe testbed keys`"
        ) from None
    except ValueError:
        raise TestbedError(f"{folder}: {name}.pem or {name}.key is no certificate or key in PEM") from None
    now = datetime.datetime.now(datetime.UTC)
    if not known.not_valid_before_utc <= now <= known.not_valid_after_utc:
        raise TestbedError(
            f"{folder / name}.pem: valid from {known.not_valid_before_utc:%Y-%m-%d %H:%M} to "
            f"{known.not_valid_after_utc:%Y-%m-%d %H:%M} UTC, now it is {now:%Y-%m-%d %H:%M}; "
            "make new ones with `wdmoe testbed keys`"
        )
    return key, certificate, authority


def _certificate(name: str, key: Any, signing: Any, issuer: Any, days: float, usage: Any) -> x509.Certificate:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject if issuer is None else issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now - CLOCK_SLACK, now + datetime.timedelta(days=days) - CLOCK_SLACK))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=0 if issuer is None else None), True)
    )
    if usage is not None:
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), False)
        builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), False)
    return builder.sign(signing, hashes.SHA256())


def _write(folder: Path, name: str, key: Any, certificate: x509.Certificate) -> None:
    content = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / f"{name}.key"
    path.unlink(missing_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    (folder / f"{name}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def _read(folder: Path, name: str) -> tuple[Any, x509.Certificate]:
    try:
        key = serialization.load_pem_private_key((folder / f"{name}.key").read_bytes(), None)
        return key, x509.load_pem_x509_certificate((folder / f"{name}.pem").read_bytes())
    except (OSError, ValueError):
        raise TestbedError(f"{folder}: {name}.key or {name}.pem cannot be read; take a new folder") from None
