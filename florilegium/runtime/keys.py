"""Certificates and keys of a federation: made once, checked before Flower reads them.

    DIR/authority/   ca.crt, ca.key          the federation's own authority; its key stays with the operator
    DIR/server/      ca.crt, server.crt, server.key, superexec.secret
    DIR/sites/NAME/  ca.crt, node.key, node.pub     one folder for each site, and nothing else goes there

Keys are NIST P-384, which is what Flower's SuperNode authentication takes.
"""

from __future__ import annotations

import ipaddress
import os
import re
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from florilegium.runs import files

CURVES = (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
LOOPBACK = "127.0.0.1"  # the SuperLink's own SuperExec connects here, so its certificate must name it
SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")
AUTHORITY_DAYS = 3650
PEM, OPENSSH = serialization.Encoding.PEM, serialization.Encoding.OpenSSH


class KeyFileError(ValueError):
    """A key or certificate is missing or unusable; the one-line message names the file."""


# -- making ------------------------------------------------------------------------------------------------------------


def make(place: Path, sites: Iterable[str], names: Iterable[str] = (), days: int = 365) -> list[Path]:
    """Make what is not there yet: authority, server certificate for `names`, a key for each site; the new files.

    A server certificate for other names, or one that has run out, is replaced; nothing else ever is. KeyFileError.
    """
    wanted = sorted({"localhost", LOOPBACK, *names})
    for site in (sites := list(sites)):
        if not SITE.fullmatch(site):
            raise KeyFileError(f"site {site!r}: a name is letters, digits, '-' and '_'")
    made: list[Path] = []
    authority = place / "authority"
    if not (authority / "ca.key").exists():
        made += _make_authority(authority)
    if not _serves(place / "server", wanted):
        made += _make_server(place / "server", authority, wanted, days)
    for site in sites:
        made += _make_node(place / "sites" / site, authority)
    return made


def _make_authority(folder: Path) -> list[Path]:
    key, name = ec.generate_private_key(ec.SECP384R1()), _name("florilegium authority")
    use = x509.KeyUsage(
        key_cert_sign=True,
        crl_sign=True,
        digital_signature=False,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        _certificate(name, name, key.public_key(), AUTHORITY_DAYS)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(use, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    certificate = builder.sign(key, hashes.SHA384())
    return [_write(folder / "ca.key", _pem(key), 0o600), _write(folder / "ca.crt", certificate.public_bytes(PEM))]


def _make_server(folder: Path, authority: Path, names: list[str], days: int) -> list[Path]:
    signer, signed_by = private_key(authority / "ca.key"), certificate(authority / "ca.crt")
    key = ec.generate_private_key(ec.SECP384R1())
    builder = (
        _certificate(_name(next(n for n in names if n != LOOPBACK)), signed_by.subject, key.public_key(), days)
        .add_extension(x509.SubjectAlternativeName([_alternative(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    issued = builder.sign(signer, hashes.SHA384())
    made = [
        _write(folder / "server.key", _pem(key), 0o600),
        _write(folder / "server.crt", issued.public_bytes(PEM)),
        _write(folder / "ca.crt", (authority / "ca.crt").read_bytes()),
    ]
    if not (folder / "superexec.secret").exists():
        made.append(_write(folder / "superexec.secret", secrets.token_hex(32).encode(), 0o600))
    return made


def _make_node(folder: Path, authority: Path) -> list[Path]:
    made = []
    if not (folder / "node.key").exists():
        key = ec.generate_private_key(ec.SECP384R1())
        text = key.private_bytes(PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption())
        public = key.public_key().public_bytes(OPENSSH, serialization.PublicFormat.OpenSSH)
        made = [_write(folder / "node.key", text, 0o600), _write(folder / "node.pub", public + b"\n")]
    if not (folder / "ca.crt").exists():
        made.append(_write(folder / "ca.crt", (authority / "ca.crt").read_bytes()))
    return made


def _certificate(subject: x509.Name, issuer: x509.Name, public: ec.EllipticCurvePublicKey, days: int):
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text[:64])])


def _alternative(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, data: bytes, mode: int = 0o644) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    before = os.umask(0o777 & ~mode)
    try:
        files.write_bytes(path, data)
    finally:
        os.umask(before)
    return path


# -- checking ----------------------------------------------------------------------------------------------------------


def check_server(folder: Path) -> None:
    """Certificate, key and authority belong together, are in date and name the loopback address. KeyFileError."""
    shown, authority = certificate(folder / "server.crt"), certificate(folder / "ca.crt")
    if private_key(folder / "server.key").public_key() != shown.public_key():
        raise KeyFileError(f"{folder / 'server.key'} is not the key of server.crt")
    try:
        shown.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError):
        raise KeyFileError(f"{folder / 'server.crt'} was not signed by the authority of ca.crt") from None
    _in_date(folder / "server.crt", shown)
    _in_date(folder / "ca.crt", authority)
    if LOOPBACK not in alternatives(shown):
        raise KeyFileError(
            f"{folder / 'server.crt'} does not name {LOOPBACK}, where the SuperLink's own processes "
            f"connect; it names {', '.join(alternatives(shown)) or 'nothing'}"
        )


def check_site(folder: Path) -> None:
    """A site's key can sign and its authority is in date. KeyFileError."""
    key = private_key(folder / "node.key")
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, CURVES):
        raise KeyFileError(f"{folder / 'node.key'} is not a key on a NIST curve (P-256, P-384, P-521)")
    _in_date(folder / "ca.crt", certificate(folder / "ca.crt"))


def alternatives(shown: x509.Certificate) -> list[str]:
    """The host names and addresses a certificate is for."""
    try:
        names = shown.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def certificate(path: Path) -> x509.Certificate:
    """A PEM certificate. KeyFileError."""
    data = _read(path)
    try:
        return x509.load_pem_x509_certificate(data)
    except ValueError:
        raise KeyFileError(f"{path} is not a PEM certificate") from None


def private_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A private key without password, PEM or OpenSSH. KeyFileError."""
    data = _read(path)
    load = serialization.load_ssh_private_key if b"OPENSSH" in data[:64] else serialization.load_pem_private_key
    try:
        found: ec.EllipticCurvePrivateKey = load(data, None)  # type: ignore[assignment]
        return found
    except (ValueError, TypeError):
        raise KeyFileError(f"{path} is not a private key without password") from None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise KeyFileError(f"{path} cannot be read: {error.strerror}") from None


def _in_date(path: Path, shown: x509.Certificate) -> None:
    now = datetime.now(UTC)
    if now > shown.not_valid_after_utc:
        raise KeyFileError(f"{path} ran out on {shown.not_valid_after_utc:%Y-%m-%d}")
    if now < shown.not_valid_before_utc:
        raise KeyFileError(
            f"{path} is valid only from {shown.not_valid_before_utc:%Y-%m-%d %H:%M} UTC; is this machine's clock right?"
        )


def _serves(folder: Path, names: list[str]) -> bool:
    try:
        check_server(folder)
    except KeyFileError:
        return False
    return set(names) <= set(alternatives(certificate(folder / "server.crt")))
