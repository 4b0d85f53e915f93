"""Commands that the enrolled control key signed. Opens and checks them; obeys none."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edgekit.core.errors import BadInput
from edgekit.core.messages import Desired, OneShot, signed_bytes
from edgekit.core.trust import refusal


def load_control_key(pem: bytes, where: str) -> Ed25519PublicKey:
    """The control key. Raises BadInput naming `where`."""
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError) as err:
        raise BadInput(f"{where} must be an ed25519 public key in PEM form") from err
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{where} must be an ed25519 public key, got {type(key).__name__}")
    return key


def open_desired(payload: Mapping[str, Any], key: Ed25519PublicKey) -> Desired:
    """A decoded `desired` whose signature holds. Raises Refused (bad-signature) or BadInput."""
    _verify(payload, key)
    return Desired.parse(payload)


def open_one_shot(payload: Mapping[str, Any], key: Ed25519PublicKey) -> OneShot:
    """A decoded `job` whose signature holds. Raises Refused (bad-signature) or BadInput."""
    _verify(payload, key)
    return OneShot.parse(payload)


def _verify(payload: Mapping[str, Any], key: Ed25519PublicKey) -> None:
    signature = payload.get("sig")
    try:
        if not isinstance(signature, str):
            raise refusal("bad-signature", "it has none")
        key.verify(base64.b64decode(signature, validate=True), signed_bytes(payload))
    except (InvalidSignature, binascii.Error, ValueError, TypeError, RecursionError) as err:
        raise refusal("bad-signature") from err
