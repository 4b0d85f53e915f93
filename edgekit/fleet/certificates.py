"""The fleet's own certificate authority: it signs servers and boards, and is followed by the next one in good time.

Keys are EC P-256, certificates X.509 as RFC 5280 has them. An authority lives ten years; when a third of that is left,
the next one is made beside it. From then on boards are signed by the new one and told of both, while servers stay with
the old one until its last sixth: by then every board that was ever connected has renewed its certificate and knows the
new one. Knows neither boards nor sockets.
"""

from __future__ import annotations

import contextlib
import ipaddress
import re
import stat
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic

# X.509 wants 64 characters at most in a common name, and OpenSSL does not mind: `fleet/device` may have 129.
warnings.filterwarnings("ignore", message="Attribute's length must be", category=UserWarning)
AUTHORITY_LIFE = timedelta(days=3650)
SERVER_LIFE = timedelta(days=90)
BOARD_LIFE = timedelta(days=180)
RENEW_AT = 2 / 3  # of a life
_SERVERS_MOVE_AT = 5 / 6  # of an authority's life
_BACKDATED = timedelta(hours=1)  # the clocks of two machines differ
_CRL_BACKDATED = timedelta(days=1)
_MAX_REQUEST = 8192
_FILE = re.compile(r"ca-([1-9]\d{0,5})\.pem")


@dataclass(frozen=True)
class Authority:
    """One certificate that others are checked against, and the key to sign with. number: the first is 1."""

    number: int
    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey = field(repr=False)

    def spent(self, now: datetime) -> float:
        """How much of its life is over, as a share."""
        return spent(self.certificate, now)


@dataclass(frozen=True)
class Issued:
    """A board's certificate as it is handed out. serial: hexadecimal. expires: Unix seconds."""

    pem: str
    serial: str
    expires: float


def spent(certificate: x509.Certificate, now: datetime) -> float:
    """How much of a certificate's life is over: 0 at its begin, 1 at its end."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return (now - begin) / (end - begin)


# --- authorities ---


def read_authorities(folder: Path) -> list[Authority]:
    """All authorities in `folder`, oldest first. Raises BadInput (damaged, or others may read it), WorldFailed."""
    try:
        found = [
            _read_authority(path, int(match[1]))
            for path in folder.iterdir()
            if (match := _FILE.fullmatch(path.name))
        ]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise WorldFailed(f"{folder}: could not be read: {err.strerror or err}") from err
    return sorted(found, key=lambda authority: authority.number)


def keep_authorities(folder: Path, fleet: str, now: datetime) -> list[Authority]:
    """Those in force, oldest first; the first, or the next, is made where it is time. Raises BadInput, WorldFailed."""
    every = read_authorities(folder)
    if not every or every[-1].spent(now) >= RENEW_AT:
        number = every[-1].number + 1 if every else 1
        every.append(_make_authority(folder / f"ca-{number}.pem", fleet, number, now))
    return in_force(every, now)


def in_force(authorities: Sequence[Authority], now: datetime) -> list[Authority]:
    """Those that have not ended."""
    return [authority for authority in authorities if authority.spent(now) < 1]


def for_boards(authorities: Sequence[Authority], now: datetime) -> Authority:
    """The one that signs boards: the newest that has begun (a clock that was ahead may have made one too early)."""
    return next((one for one in reversed(authorities) if one.spent(now) >= 0), authorities[-1])


def for_servers(authorities: Sequence[Authority], now: datetime) -> Authority:
    """The one that signs servers: the oldest that boards have known for long, and that is not about to end."""
    begun = (one for one in authorities if 0 <= one.spent(now) < _SERVERS_MOVE_AT)
    return next(begun, for_boards(authorities, now))


def trusted_pem(authorities: Iterable[Authority]) -> bytes:
    """What everybody checks the fleet's certificates against: public, PEM, one after the other."""
    return b"".join(authority.certificate.public_bytes(Encoding.PEM) for authority in authorities)


def _read_authority(path: Path, number: int) -> Authority:
    key, certificate = read_pair(path)
    return Authority(number, certificate, key)


def _make_authority(path: Path, fleet: str, number: int, now: datetime) -> Authority:
    key = ec.generate_private_key(ec.SECP256R1())
    own_name = _name(f"edgekit fleet {fleet}, authority {number}")
    usage = _key_usage(digital_signature=True, key_cert_sign=True, crl_sign=True)
    certificate = (
        _builder(own_name, own_name, key.public_key(), now, now + AUTHORITY_LIFE)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    write_pair(path, key, certificate)
    return Authority(number, certificate, key)


# --- servers ---


def keep_server(
    path: Path, names: Sequence[str], authorities: Sequence[Authority], now: datetime, *, client: str = ""
) -> bool:
    """Keep a certificate for the server itself, with its key, in one file; whether a new one was made.

    names: host names and addresses it is reached by. client: instead, it is a client of that name. A new one is made
    where there is none, where two thirds of its life are over, and where its names or its authority are others now.
    Raises WorldFailed.
    """
    authority = for_servers(authorities, now)
    wanted = _alternatives(names)
    with contextlib.suppress(BadInput):
        _, old = read_pair(path)
        same = _names_of(old) == wanted and old.issuer == authority.certificate.subject
        if same and _is_from(old, [authority]) and 0 <= spent(old, now) < RENEW_AT:
            return False
    key = ec.generate_private_key(ec.SECP256R1())
    usage = ExtendedKeyUsageOID.CLIENT_AUTH if client else ExtendedKeyUsageOID.SERVER_AUTH
    write_pair(
        path, key, _sign(authority, key.public_key(), client or names[0], now, SERVER_LIFE, usage, wanted)
    )
    return True


def _alternatives(names: Sequence[str]) -> list[x509.GeneralName]:
    found: list[x509.GeneralName] = []
    for name in dict.fromkeys(names):
        try:
            found.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            found.append(x509.DNSName(name.encode("idna").decode("ascii")))
    return found


def _names_of(certificate: x509.Certificate) -> list[x509.GeneralName]:
    try:
        return list(certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    except x509.ExtensionNotFound:
        return []


# --- boards ---


def issue(authorities: Sequence[Authority], request: str, board: str, now: datetime) -> Issued:
    """Sign a board's request (CSR, PEM). board: `fleet/device`, which must be the request's common name.

    Nothing else of the request is taken but its public key. Raises BadInput.
    """
    key = _requested_key(request, board)
    usage = ExtendedKeyUsageOID.CLIENT_AUTH
    certificate = _sign(for_boards(authorities, now), key, board, now, BOARD_LIFE, usage, [])
    pem = certificate.public_bytes(Encoding.PEM).decode("ascii")
    expires = certificate.not_valid_after_utc.timestamp()
    return Issued(pem, f"{certificate.serial_number:x}", expires)


def serial_if_ours(
    authorities: Sequence[Authority], pem: str, board: str
) -> tuple[str, ec.EllipticCurvePublicKey]:
    """The serial number and key of a board's certificate, of whatever age, that one of ours signed. Raises BadInput."""
    try:
        certificate = x509.load_pem_x509_certificate(pem[:_MAX_REQUEST].encode())
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm) as err:
        raise BadInput("certificate must be a certificate in PEM") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or not _is_from(certificate, authorities):
        raise BadInput("certificate must be one that this fleet's authority signed")
    if _common_name(certificate.subject) != board:
        raise BadInput(f"certificate must be {board}'s, got {_common_name(certificate.subject)!r}")
    return f"{certificate.serial_number:x}", key


def check_signature(key: ec.EllipticCurvePublicKey, signature: bytes, data: bytes) -> None:
    """Raise BadInput unless `key`'s owner signed `data` (ECDSA, SHA-256)."""
    try:
        key.verify(signature, data, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature as err:
        raise BadInput("signature must be made with the key of the certificate in force") from err


def _requested_key(request: str, board: str) -> ec.EllipticCurvePublicKey:
    if len(request) > _MAX_REQUEST:
        raise BadInput(f"csr must be at most {_MAX_REQUEST} bytes")
    try:
        parsed = x509.load_pem_x509_csr(request.encode())
        key, signed = parsed.public_key(), parsed.is_signature_valid
    except (ValueError, UnsupportedAlgorithm) as err:
        raise BadInput("csr must be a certificate signing request in PEM") from err
    if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
        raise BadInput("csr must ask for an EC key on the curve P-256")
    if not signed:
        raise BadInput("csr must be signed with the key it is for")
    if _common_name(parsed.subject) != board:
        raise BadInput(f"csr must be for {board}, got {_common_name(parsed.subject)!r}")
    return key


def _is_from(certificate: x509.Certificate, authorities: Iterable[Authority]) -> bool:
    for authority in authorities:
        with contextlib.suppress(ValueError, TypeError, InvalidSignature):
            certificate.verify_directly_issued_by(authority.certificate)
            return True
    return False


def _sign(
    authority: Authority,
    key: ec.EllipticCurvePublicKey,
    common_name: str,
    now: datetime,
    life: timedelta,
    usage: x509.ObjectIdentifier,
    names: Sequence[x509.GeneralName],
) -> x509.Certificate:
    issuer = authority.certificate
    end = min(now + life, issuer.not_valid_after_utc)
    own_id = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    builder = (
        _builder(_name(common_name), issuer.subject, key, now, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(digital_signature=True), critical=True)
        .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own_id), critical=False)
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(authority.key, hashes.SHA256())


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder(issuer, subject, key, x509.random_serial_number())
    return builder.not_valid_before(begin - _BACKDATED).not_valid_after(end)


def _key_usage(**given: bool) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{name: given.get(name, False) for name in every})


def _name(common_name: str) -> x509.Name:
    attribute = x509.NameAttribute(NameOID.COMMON_NAME, common_name, _validate=len(common_name) <= 64)
    return x509.Name([attribute])


def _common_name(name: x509.Name) -> str | None:
    found = name.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if len(found) == 1 else None


# --- who is revoked ---


def revoked_pem(
    authorities: Iterable[Authority], revoked: Iterable[tuple[str, float]], now: datetime, old: bytes = b""
) -> bytes:
    """One list (CRL) per authority of what counts no more: (serial number, Unix seconds) each. old: the lists before.

    A list ends with its authority, for a server that was off for weeks must not lock its boards out. OpenSSL keeps
    what it has read, and takes the later of two lists by their begin in whole seconds: so each begins later.
    """
    begin = now.replace(microsecond=0) - _CRL_BACKDATED
    if old:
        with contextlib.suppress(ValueError):
            begin = min(now, max(begin, _begin_of(old) + timedelta(seconds=1)))
    entries = [
        x509.RevokedCertificateBuilder(int(serial, 16), datetime.fromtimestamp(at, timezone.utc)).build()
        for serial, at in sorted(revoked)
    ]
    pem = b""
    for authority in authorities:
        issuer = authority.certificate
        builder = x509.CertificateRevocationListBuilder(
            issuer.subject, begin, issuer.not_valid_after_utc, revoked_certificates=entries
        )
        pem += builder.sign(authority.key, hashes.SHA256()).public_bytes(Encoding.PEM)
    return pem


def revoked_in(pem: bytes) -> set[tuple[bytes, int]]:
    """(issuer, serial number) of all in some lists, and (issuer, 0) for each list. Raises ValueError."""
    found = set()
    for part in _lists(pem):
        issuer = part.issuer.public_bytes()
        found |= {(issuer, 0)} | {(issuer, entry.serial_number) for entry in part}
    return found


def _begin_of(pem: bytes) -> datetime:
    return max(part.last_update_utc for part in _lists(pem))


def _lists(pem: bytes) -> list[x509.CertificateRevocationList]:
    ends = b"-----END X509 CRL-----\n"
    return [x509.load_pem_x509_crl(part + ends) for part in pem.split(ends) if part.strip()]


# --- files ---


def read_pair(path: Path) -> tuple[ec.EllipticCurvePrivateKey, x509.Certificate]:
    """A key and its certificate in one PEM file. Raises BadInput (none, damaged, others may read it), WorldFailed."""
    try:
        mode, data = path.stat().st_mode, path.read_bytes()
    except FileNotFoundError as err:
        raise BadInput(f"{path}: must hold a key and its certificate; there is none") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    if stat.S_IMODE(mode) & 0o077:
        raise BadInput(f"{path}: others may read this private key; run: chmod 600 {path}")
    try:
        key, certificate = load_pem_private_key(data, None), x509.load_pem_x509_certificate(data)
        fits = certificate.public_key() == key.public_key()
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise BadInput(f"{path}: must hold a key and its certificate (PEM), and is damaged") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not fits:
        raise BadInput(f"{path}: must hold an EC key and its own certificate (PEM)")
    return key, certificate


def write_pair(path: Path, key: ec.EllipticCurvePrivateKey, certificate: x509.Certificate) -> None:
    """Keep both in one file, for the server's user alone: whoever reads it finds two that fit. Raises WorldFailed."""
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_atomic(path, private + certificate.public_bytes(Encoding.PEM), 0o600)
