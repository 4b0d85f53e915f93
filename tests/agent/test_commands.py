"""Commands that nobody signed: what they hold harms nobody, whoever sent them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from edgekit.agent.commands import Commands


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("odd", ["\ud800", {"\udfff": 1}, float("inf"), nested(900)], ids=range(4))
@pytest.mark.parametrize("kind", ["desired", "job"])
def test_a_command_that_cannot_even_be_written_again_is_refused_once(kind: str, odd: Any) -> None:
    key = Ed25519PrivateKey.generate().public_key()
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    config = SimpleNamespace(
        address="demo/pi5", path=Path("agent.toml"), trust=SimpleNamespace(control_key=pem)
    )
    commands: Any = Commands(cast("Any", config))
    refused: list[tuple[Any, ...]] = []
    commands.attach(None, None, None, lambda *given: refused.append(given))
    for _ in range(2):
        commands.receive(kind, {"v": 1, "job_id": "job-1", "sig": "AAAA", "odd": odd})
    assert [(job_id, reason) for job_id, _, reason, _ in refused] == [("job-1", "bad-signature")]
