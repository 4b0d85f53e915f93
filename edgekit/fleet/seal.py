"""What boards are commanded, in the form that the control key signs. Sends nothing."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from edgekit.core.messages import Desired, signed_bytes
from edgekit.core.policy import PolicySpec


def desired_of(row: sa.Row[Any], fleet: str) -> Desired:
    """A row of the table `desired`, with its board's name, as the board's command."""
    return Desired(
        to=f"{fleet}/{row.name}",
        rev=row.rev,
        n=row.n,
        job_id=row.job_id,
        target=row.target,
        policy=None if row.policy is None else PolicySpec.parse(json.loads(row.policy)),
        interval_s=row.interval_s,
        expires=row.expires,
        config=None if row.config is None else json.loads(row.config),
    )


def sealed(payload: Mapping[str, Any], control_key: Ed25519PrivateKey) -> dict[str, Any]:
    """A command with the control key's signature."""
    signature = control_key.sign(signed_bytes(payload))
    return {**payload, "sig": base64.b64encode(signature).decode("ascii")}
