"""The board's own key and certificate: made here, asked for with a request (CSR), kept as a pair. Talks to nobody.

What was enrolled stays as it is. What the server signs later lies in the state folder, in one file with key,
certificate and the authorities that are trusted from then on: a power cut leaves the file before or the whole new one.
The pair that was issued last counts, so a board that was enrolled again uses that.
"""

from __future__ import annotations

import base64
import logging
import threading
import warnings
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from edgekit.agent.config import Identity
from edgekit.core.errors import BadInput
from edgekit.core.files import write_atomic

# X.509 wants 64 characters at most in a common name, and OpenSSL does not mind: `fleet/device` may have 129.
warnings.filterwarnings("ignore", message="Attribute's length must be", category=UserWarning)
log = logging.getLogger(__name__)
FILE = "identity.pem"
_END = b"-----END CERTIFICATE-----\n"


@dataclass(frozen=True)
class Pair:
    """A key and its certificate. issued, expires: Unix seconds. authorities: that came with it, PEM."""

    certificate: Path
    key: Path
    issued: float
    expires: float
    serial: int
    pem: str
    authorities: str = ""

    def due(self, early: float = 0.0) -> float:
        """When to ask for the next one: two thirds of its life, by a share `early` (0 to 1) of a tenth of it sooner."""
        return self.issued + (self.expires - self.issued) * (2 / 3 - early / 10)

    @property
    def alarm(self) -> float:
        """When a third of its life is left: by then it should long have been renewed."""
        return self.expires - (self.expires - self.issued) / 3


class Identities:
    """The enrolled pair and the renewed one. Safe from several threads."""

    def __init__(self, enrolled: Identity, state_dir: Path) -> None:
        """Raises BadInput where the enrolled pair is none, and no renewed one is there instead."""
        self._enrolled = enrolled
        self._renewed = state_dir / FILE
        self._lock = threading.Lock()
        self._pair = self._newest()

    @property
    def current(self) -> Pair:
        """The pair in force."""
        with self._lock:
            return self._pair

    def replace(self, key: ec.EllipticCurvePrivateKey, certificate: str, authorities: str) -> Pair:
        """Keep a new pair and use it. Raises BadInput (they do not fit, or are older than the present), WorldFailed."""
        data = key_pem(key) + certificate.encode() + authorities.encode()
        pair = _parse(self._renewed, data)
        before = self.current
        if pair.issued < before.issued or pair.expires <= pair.issued:
            raise BadInput("the new certificate is older than the one it is for")
        if _common_name(pair.pem) != _common_name(before.pem):
            raise BadInput("the new certificate has another name than the one before")
        write_atomic(self._renewed, data, 0o600)
        with self._lock:
            self._pair = pair
        return pair

    def sign(self, data: bytes) -> str:
        """`data`, signed with the key in force (ECDSA, SHA-256): base64. Raises BadInput."""
        key = _load_key(self.current.key.read_bytes(), str(self.current.key))
        return base64.b64encode(key.sign(data, ec.ECDSA(hashes.SHA256()))).decode("ascii")

    def _newest(self) -> Pair:
        found: list[Pair] = []
        try:
            found.append(read_pair(self._enrolled))
        except BadInput as err:
            wrong = err
        if self._renewed.exists():
            try:
                found.append(_parse(self._renewed, self._renewed.read_bytes()))
            except (BadInput, OSError) as err:
                log.warning("%s: is damaged, the enrolled certificate is used: %s", self._renewed, err)
        if not found:
            raise wrong
        return max(found, key=lambda pair: pair.issued)


def read_pair(identity: Identity) -> Pair:
    """The pair that the config names. Raises BadInput."""
    try:
        certificate, key = identity.certificate.read_bytes(), identity.key.read_bytes()
    except OSError as err:
        raise BadInput(f"{err.filename}: must be the board's certificate or key: {err.strerror}") from err
    if identity.certificate == identity.key:
        return _parse(identity.certificate, certificate)
    pair = _parse(identity.certificate, key + b"\n" + certificate)
    return Pair(
        identity.certificate, identity.key, pair.issued, pair.expires, pair.serial, pair.pem, pair.authorities
    )


def new_key() -> ec.EllipticCurvePrivateKey:
    """A private key, which never leaves the machine it is drawn on: EC P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The private key as a file holds it (PKCS #8, PEM)."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def request(key: ec.EllipticCurvePrivateKey, address: str) -> str:
    """Ask for a certificate (CSR, PEM). address: `fleet/device`, the certificate's common name."""
    attribute = x509.NameAttribute(NameOID.COMMON_NAME, address, _validate=len(address) <= 64)
    builder = x509.CertificateSigningRequestBuilder(x509.Name([attribute]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode("ascii")


def jitter_of(pair: Pair) -> float:
    """A number from 0 to 1 that is another for each certificate: not all boards ask at once."""
    return (pair.serial % 65_536) / 65_535


def _parse(path: Path, data: bytes) -> Pair:
    key = _load_key(data, str(path))
    own, _, rest = data[data.find(b"-----BEGIN CERTIFICATE") :].partition(_END)
    try:
        certificate = x509.load_pem_x509_certificate(own + _END)
        fits = certificate.public_key() == key.public_key()
    except (ValueError, UnsupportedAlgorithm) as err:
        raise BadInput(f"{path}: must hold a certificate (PEM)") from err
    if not fits:
        raise BadInput(f"{path}: the certificate is not of the key beside it")
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    return Pair(
        path,
        path,
        begin.timestamp(),
        end.timestamp(),
        certificate.serial_number,
        (own + _END).decode("ascii"),
        rest.decode("ascii", "replace"),
    )


def _load_key(data: bytes, where: str) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise BadInput(f"{where}: must hold a private key without password (PEM)") from err
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise BadInput(f"{where}: must hold an EC key")
    return key


def _common_name(pem: str) -> str | None:
    subject = x509.load_pem_x509_certificate(pem.encode()).subject
    found = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(found[0].value) if found else None
