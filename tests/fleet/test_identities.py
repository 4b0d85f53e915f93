"""Over HTTP: certificates for boards, their renewal, and revoking."""

from __future__ import annotations

import base64
import ssl
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from agents import free_port, until
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from servers import FleetServer, write_config

from edgekit.agent.identity import new_key, request
from edgekit.client import Client
from edgekit.core.errors import BadInput, WorldFailed
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.config import FleetConfig, read_config, read_secret
from edgekit.fleet.enroll import board_files, prepare
from edgekit.fleet.serve import renew_certificates
from edgekit.fleet.store import open_store
from edgekit.fleet.tls import WEB, keep_certificates

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # starlette would like another HTTP client than the one that is installed
    from starlette.testclient import TestClient


@pytest.fixture
def config(tmp_path: Path) -> FleetConfig:
    config = write_config(tmp_path, free_port(), tls=True)
    prepare(config)
    return config


@pytest.fixture
def web(config: FleetConfig) -> Iterator[TestClient]:
    store = open_store(config.database_url)
    context = Context(config, store, read_secret(config.token_file), lambda: "https://127.0.0.1:8080")
    assert context.token not in repr(context)
    with TestClient(make_app(context), base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        client.headers["authorization"] = f"Bearer {context.token}"
        yield client
    store.close()


def enroll(web: TestClient, name: str, csr: str | None, **more: Any) -> Any:
    return web.post("/api/v1/devices", json={"name": name, "csr": csr, **more})


def renewal(key: ec.EllipticCurvePrivateKey, certificate: str, csr: str) -> dict[str, str]:
    signature = key.sign(csr.encode(), ec.ECDSA(hashes.SHA256()))
    return {"csr": csr, "certificate": certificate, "signature": base64.b64encode(signature).decode()}


def test_a_board_gets_a_certificate_for_its_request_and_what_to_check_the_server_with(
    web: TestClient, config: FleetConfig
) -> None:
    assert web.get("/api/v1/fleet").json() == {"v": 1, "fleet": "demo", "certificates": True}
    key = new_key()
    answer = enroll(web, "pi5", request(key, "demo/pi5")).json()
    certificate = x509.load_pem_x509_certificate(answer["certificate"].encode())
    assert certificate.public_key() == key.public_key()
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(answer["ca"].encode()))
    assert answer["ca"] == config.ca_file.read_text()
    assert (answer["broker"]["tls"], answer["repository"]["tls"]) == (True, True)
    (row,) = web.get("/api/v1/devices").json()["devices"]
    assert row["certificate_expires"] == certificate.not_valid_after_utc.timestamp()


@pytest.mark.parametrize("csr", [None, "", "nonsense"])
def test_without_a_request_nobody_is_enrolled_where_the_broker_wants_certificates(
    web: TestClient, csr: str | None
) -> None:
    answer = enroll(web, "pi5", csr)
    assert answer.status_code == 400
    assert "csr" in answer.json()["error"]
    assert web.get("/api/v1/devices").json()["devices"] == []


def test_a_board_renews_with_its_own_token_and_nobody_elses(web: TestClient) -> None:
    keys = {name: new_key() for name in ("a", "b")}
    told = {name: enroll(web, name, request(key, f"demo/{name}")).json() for name, key in keys.items()}
    body = renewal(keys["a"], told["a"]["certificate"], request(new_key(), "demo/a"))

    def ask(token: str | None, body: Any) -> Any:
        headers = {"authorization": f"Bearer {token}"} if token else {"authorization": ""}
        return web.post("/certificate", json=body, headers=headers)

    good = ask(told["a"]["repo_token"], body)
    assert good.status_code == 201
    assert x509.load_pem_x509_certificate(good.json()["certificate"].encode())
    assert ask(None, body).status_code == 401
    assert ask("wrong", body).status_code == 401
    assert ask(told["b"]["repo_token"], body).status_code == 400
    assert (
        ask(told["a"]["repo_token"], body | {"signature": "!"}).json()["error"] == "signature must be base64"
    )
    for csr in (request(new_key(), "demo/b"), request(new_key(), "other/a")):
        answer = ask(told["a"]["repo_token"], renewal(keys["a"], told["a"]["certificate"], csr))
        assert (answer.status_code, "csr must be for demo/a" in answer.json()["error"]) == (400, True)
    assert (
        ask(told["a"]["repo_token"], {"csr": "x" * 9000, "certificate": "", "signature": ""}).status_code
        == 400
    )


def test_who_is_revoked_gets_no_file_no_certificate_and_no_job_and_is_shown_as_such(web: TestClient) -> None:
    key = new_key()
    told = enroll(web, "pi5", request(key, "demo/pi5"), tags=["x"]).json()
    own = {"authorization": f"Bearer {told['repo_token']}"}
    assert web.get("/repo/metadata/timestamp.json", headers=own).status_code == 200
    answer = web.post("/api/v1/devices/pi5/revoke", json={}).json()
    assert answer["broker_reloaded"] is False  # none runs here
    assert web.get("/repo/metadata/timestamp.json", headers=own).status_code == 401
    body = renewal(key, told["certificate"], request(new_key(), "demo/pi5"))
    assert web.post("/certificate", json=body, headers=own).status_code == 401
    (row,) = web.get("/api/v1/devices").json()["devices"]
    assert (row["revoked_at"], row["online"]) == (answer["revoked_at"], False)
    boards = web.get("/api/v1/status").json()["boards"]
    assert (boards["enrolled"], boards["revoked"]) == (0, 1)
    assert web.post("/api/v1/devices/nobody/revoke", json={}).status_code == 404
    refused = enroll(web, "pi5", request(key, "demo/pi5"))
    assert (refused.status_code, "--again" in refused.json()["error"]) == (409, True)
    again = enroll(web, "pi5", request(key, "demo/pi5"), again=True).json()
    assert again["repo_token"] != told["repo_token"]
    assert web.get("/api/v1/devices").json()["devices"][0]["revoked_at"] is None
    assert web.get("/repo/metadata/timestamp.json", headers=own).status_code == 401


def test_boards_are_not_told_to_connect_to_every_address(web: TestClient, config: FleetConfig) -> None:
    for section, key in (("web", "public_url"), ("broker", "broker.public_host")):
        text = config.path.read_text()
        changed = text.replace(f"[{section}]", f'[{section}]\nhost = "0.0.0.0"')
        config.path.write_text(changed)
        with pytest.raises(BadInput, match=f"boards cannot be told to connect to 0.0.0.0: set {key}"):
            board_files(read_config(config.path), "https://127.0.0.1:1")
        config.path.write_text(text)


# --- the server itself ---


def test_the_page_and_the_api_are_served_encrypted_and_a_renewed_certificate_is_shown(tmp_path: Path) -> None:
    config = write_config(tmp_path, free_port(), tls=True)
    server = FleetServer(config)
    try:
        assert server.url.startswith("https://")
        client = Client(server.url, server.token, ca=config.ca_file)
        assert client.fleet()["fleet"] == "demo"
        with pytest.raises(WorldFailed, match="--ca must name the server"):
            Client(server.url, server.token).fleet()
        with pytest.raises(WorldFailed, match="does it want https://"):
            Client(server.url.replace("https", "http"), server.token).fleet()
        with pytest.raises(BadInput, match="must be the server"):
            Client(server.url, server.token, ca=config.path).fleet()
        context = ssl.create_default_context(cafile=str(config.ca_file))
        opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
        page = opener.open(urllib.request.Request(f"{server.url}/login", headers={"accept": "text/html"}))
        assert b"edgekit fleet" in page.read()
        entered = _NoRedirect.open(server.login_link(), context)
        assert "Secure" in entered["set-cookie"]

        def shown() -> str:
            host, port = server.url.removeprefix("https://").split(":")
            return ssl.get_server_certificate((host, int(port)), ca_certs=str(config.ca_file))

        before = shown()
        (config.tls_dir / WEB).unlink()
        renew_certificates(config)
        until(lambda: shown() != before, "the new certificate", 25)
    finally:
        server.end()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None

    @classmethod
    def open(cls, url: str, context: ssl.SSLContext) -> Any:
        opener = urllib.request.build_opener(cls, urllib.request.HTTPSHandler(context=context))
        with pytest.raises(urllib.error.HTTPError) as raised:
            opener.open(url)
        assert raised.value.code == 303
        return raised.value.headers


def test_a_key_that_others_may_read_keeps_the_server_from_starting_and_a_lost_certificate_does_not(
    config: FleetConfig,
) -> None:
    (config.tls_dir / WEB).write_text("damaged")
    prepare(config)
    assert "PRIVATE KEY" in (config.tls_dir / WEB).read_text()
    (config.tls_dir / "ca-1.pem").chmod(0o644)
    with pytest.raises(BadInput, match="others may read this private key"):
        prepare(config)


def test_the_servers_own_files_are_its_own(config: FleetConfig) -> None:
    store = open_store(config.database_url)
    keep_certificates(config, store, datetime.now(timezone.utc) + timedelta(days=61))
    store.close()
    secret = [*config.tls_dir.iterdir(), config.broker.files_dir / "server.pem", config.token_file]
    assert {path.stat().st_mode & 0o777 for path in secret} == {0o600}
    assert config.tls_dir.stat().st_mode & 0o777 == 0o700
    assert "PRIVATE" not in config.ca_file.read_text()
