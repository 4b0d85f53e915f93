"""What the server hands out for a stick: who gets a command, signed as over MQTT, and who does not and why."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any

import pytest
from agents import until
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from starlette.testclient import TestClient

from edgekit.core.bundle import Bundle
from edgekit.core.messages import Desired, signed_bytes
from edgekit.fleet.api import Context
from edgekit.repo.add import measure, sign_targets, with_bundle
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import parse_targets
from edgekit.repo.publish import publish


@pytest.fixture
def pushed(context: Context, web: TestClient, make_bundle: Callable[..., Bundle]) -> Bundle:
    """A published bundle, asked of one of two boards."""
    bundle = make_bundle(profiles=("raspberrypi5",))
    folder, now = context.config.repository, datetime.now(timezone.utc)
    current = parse_targets(web.get("/api/v1/repo/targets").content, "targets")
    signed = sign_targets(with_bundle(current, bundle, now), read_key(folder / "keys/targets.pem"))
    publish(folder, signed, {measure(bundle.path)[1]: bundle.path}, now)
    for name in ("pi5-a", "pi5-b"):
        assert web.post("/api/v1/devices", json={"name": name, "profile": "raspberrypi5"}).status_code == 201
    assert web.post("/api/v1/jobs", json={"target": "toy/1", "to": "name=pi5-a"}).status_code == 201
    return bundle


def stick(web: TestClient, to: str = "all") -> dict[str, Any]:
    answer = web.get("/api/v1/stick", params={"to": to})
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_a_board_gets_its_command_as_the_control_key_signs_it(
    context: Context, web: TestClient, pushed: Bundle
) -> None:
    found = stick(web)
    command = found["boards"]["pi5-a"]["desired"]
    key = load_pem_public_key(context.config.control_public_file.read_bytes())
    assert isinstance(key, Ed25519PublicKey)
    key.verify(base64.b64decode(command["sig"]), signed_bytes(command))
    with pytest.raises(InvalidSignature):
        key.verify(base64.b64decode(command["sig"]), signed_bytes({**command, "target": "toy/2"}))
    assert Desired.parse(command).to == "demo/pi5-a"
    assert found["boards"]["pi5-b"] == {"desired": None, "why": "nothing was pushed to it yet"}
    assert list(found["files"]) == ["run/toy/1.edge"]
    assert web.get("/api/v1/repo/files/run/toy/1.edge").content == pushed.path.read_bytes()


def test_the_metadata_is_all_a_board_needs_and_fits_together(
    context: Context, web: TestClient, pushed: Bundle
) -> None:
    folder = context.config.repository / "metadata"
    for name, text in stick(web)["metadata"].items():
        assert text == (folder / name).read_text()
    names = {name.split(".", 1)[-1] for name in stick(web)["metadata"]}
    assert names == {"root.json", "snapshot.json", "targets.json", "json"}


def test_a_command_whose_time_is_over_is_left_out(web: TestClient, pushed: Bundle) -> None:
    short = {"target": "toy/1", "to": "name=pi5-a", "expires_s": 0.001}
    assert web.post("/api/v1/jobs", json=short).status_code == 201
    until(lambda: stick(web, "name=pi5-a")["boards"]["pi5-a"]["desired"] is None, "the job's end")
    assert "has expired: push again" in stick(web, "name=pi5-a")["boards"]["pi5-a"]["why"]


def test_a_selector_that_means_nobody_is_refused(web: TestClient, pushed: Bundle) -> None:
    answer = web.get("/api/v1/stick", params={"to": "tag=nowhere"})
    assert answer.status_code == 400
    assert "means no board" in answer.json()["error"]


@pytest.mark.parametrize(
    "path", ["run/toy/9.edge", "../keys/targets.pem", "run/../../keys/targets.pem", "keys"]
)
def test_nothing_but_published_bundles_comes_out(web: TestClient, pushed: Bundle, path: str) -> None:
    assert web.get(f"/api/v1/repo/files/{path.replace('/', '%2F')}").status_code == 404


def test_a_board_may_not_ask_for_sticks(web: TestClient, pushed: Bundle) -> None:
    token = web.post("/api/v1/devices", json={"name": "pi5-c"}).json()["repo_token"]
    for path in ("/api/v1/stick?to=all", "/api/v1/repo/files/run/toy/1.edge"):
        assert web.get(path, headers={"authorization": f"Bearer {token}"}).status_code == 401
