"""Ed25519 keys as PEM files with mode 0600. Refuses files that anybody else may read."""

from __future__ import annotations

import stat
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import write_atomic

PrivateKey = Ed25519PrivateKey  # for those who handle keys without the library


def make_key(path: Path) -> Ed25519PrivateKey:
    """Draw a key and keep it in `path`. Raises WorldFailed."""
    key = Ed25519PrivateKey.generate()
    write_atomic(path, key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), 0o600)
    return key


def read_key(path: Path) -> Ed25519PrivateKey:
    """The private key in `path`. Raises BadInput (no such file, not a key, readable by others), WorldFailed."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as err:
        raise BadInput(f"{path}: must be a private key file (PEM, ed25519); there is none") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    if stat.S_IMODE(mode) & 0o077:
        raise BadInput(f"{path}: others may read this private key; run: chmod 600 {path}")
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as err:
        raise BadInput(f"{path}: must be a private key without password (PEM, ed25519)") from err
    if not isinstance(key, Ed25519PrivateKey):
        raise BadInput(f"{path}: must be an ed25519 key, got {type(key).__name__}")
    return key


def read_or_make_key(path: Path) -> Ed25519PrivateKey:
    """The key in `path`, drawn now if there is none."""
    return read_key(path) if path.exists() else make_key(path)


def public_pem(key: Ed25519PrivateKey) -> str:
    """The public half as PEM text."""
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def signer(key: Ed25519PrivateKey) -> CryptoSigner:
    """The key as python-tuf wants it; its key id follows from the public half alone."""
    return CryptoSigner(key)
