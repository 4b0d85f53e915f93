"""Keep passwords as scrypt hashes, and compare them. Stores nothing.

A hash says its own costs, so that they can be raised: a password is hashed anew when its owner next logs in.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
import threading
import unicodedata

from edgekit.core.errors import BadInput

LOG2_N, R, P = (
    15,
    8,
    3,
)  # 32 MiB and about 0.2 s on a server's core (RFC 7914; OWASP's second choice of costs)
MIN_CHARACTERS, MAX_BYTES = 10, 1024
_SALT_BYTES, _HASH_BYTES = 16, 32
_MAX_LOG2_N, _MAX_R, _MAX_P = 20, 32, 16  # of a hash that is read back
_one_at_a_time = threading.Lock()  # so that a crowd at the door costs 32 MiB and one core, not all there is


def check_new(password: str, name: str) -> str:
    """A password somebody may have. Raises BadInput, which never holds the password."""
    if len(password) < MIN_CHARACTERS:
        raise BadInput(f"the password must have at least {MIN_CHARACTERS} characters, got {len(password)}")
    if len(password.encode("utf-8", "replace")) > MAX_BYTES:
        raise BadInput(f"the password must have at most {MAX_BYTES} bytes")
    if any(unicodedata.category(character) in {"Cc", "Cs"} for character in password):
        raise BadInput("the password must have no control characters")
    if password.casefold() == name.casefold() or len(set(password)) < 4:
        raise BadInput("the password must be another one: this is the user's name, or hardly any characters")
    return password


def hash_password(password: str, salt: bytes | None = None) -> str:
    """`scrypt$LOG2_N$R$P$SALT$HASH`, the last two in base64. Takes a fifth of a second."""
    salt = os.urandom(_SALT_BYTES) if salt is None else salt
    derived = _derive(password, salt, LOG2_N, R, P)
    return "$".join(("scrypt", str(LOG2_N), str(R), str(P), _text(salt), _text(derived)))


def is_password(password: str, stored: str) -> bool:
    """Whether that is the password behind a hash; False for what is no hash of ours."""
    try:
        kind, log2_n, r, p, salt, wanted = stored.split("$")
        costs = int(log2_n), int(r), int(p)
        raw_salt, raw_wanted = (base64.b64decode(part, validate=True) for part in (salt, wanted))
    except (ValueError, binascii.Error):
        return False
    bounded = all(1 <= cost <= most for cost, most in zip(costs, (_MAX_LOG2_N, _MAX_R, _MAX_P), strict=True))
    if kind != "scrypt" or not bounded or len(password.encode("utf-8", "replace")) > MAX_BYTES:
        return False
    return hmac.compare_digest(_derive(password, raw_salt, *costs), raw_wanted)


def is_outdated(stored: str) -> bool:
    """Whether a hash was made with other costs than today's."""
    return stored.split("$")[:4] != ["scrypt", str(LOG2_N), str(R), str(P)]


def _derive(password: str, salt: bytes, log2_n: int, r: int, p: int) -> bytes:
    # A keyboard's "ä" has two spellings in Unicode: NFKC makes them one (NIST SP 800-63B).
    data = unicodedata.normalize("NFKC", password).encode("utf-8", "replace")
    memory = 128 * r * (2**log2_n + p + 2) + 2**20
    with _one_at_a_time:
        return hashlib.scrypt(data, salt=salt, n=2**log2_n, r=r, p=p, maxmem=memory, dklen=_HASH_BYTES)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


NOBODY = f"scrypt${LOG2_N}${R}${P}${_text(bytes(_SALT_BYTES))}${_text(bytes(_HASH_BYTES))}"
"""Compared with where no user has the name, so that this takes as long: no password is known to have this hash."""
