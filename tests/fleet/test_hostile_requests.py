"""Requests that no honest caller makes: one line of refusal each, and no door that opens to another spelling."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from edgekit.fleet import accounts
from edgekit.fleet.api import make_app
from edgekit.fleet.context import Context

NUL, HUGE, HALF = "%00", str(2**70), "\\ud800"
VALUES = (NUL, HUGE, "-1", "nan", "1e309", "%ff%fe", "a" * 300, "%C2%B2", "%D9%A3", "%25_", "..%2f..%2fx")
BODIES = (
    b"[" * 100_000,
    b'{"a":' * 5000 + b"1" + b"}" * 5000,
    b"9" * 5000,
    b"\xff",
    b"null",
    b"NaN",
    f'{{"name": "{HALF}", "role": "{HALF}", "password": "{HALF}"}}'.encode(),
    f'{{"target": "toy/1", "to": "{HALF}", "why": "{HALF}", "for_s": 5}}'.encode(),
    f'{{"target": "toy/1", "to": "all", "salt": "{HALF}", "config": {{"{HALF}": "\\u0000"}}}}'.encode(),
    b'{"target": "toy/1", "to": "' + b"tag=a," * 20_000 + b'"}',
    b'{"target": "toy/1", "to": "name=' + b"*a" * 2000 + b'"}',
    b'{"target": "toy/1", "to": "all", "canary": 1e400}',
    b'{"target": "toy/1", "to": "all", "gate": {"max_failed": ' + b"9" * 4000 + b"}}",
    b'{"target": "toy/1", "to": "all", "time_zone": "../../etc/passwd"}',
    b'{"target": "toy/1", "to": "all", "time_zone": "Europe"}',
    b'{"target": "toy/1", "to": "all", "time_zone": "\\u0000"}',
    b'{"to": "all", "why": "x", "for_s": 1e400}',
    b'{"to": "all", "interval_s": 1e308, "expires_s": 1e308}',
    b'{"to": "all", "target": "toy/' + b"9" * 400 + b'"}',
)


@pytest.fixture
def web(context: Context) -> Iterator[TestClient]:
    with TestClient(
        make_app(context), base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False
    ) as client:
        yield client


def is_one_line(text: str) -> bool:
    return len(text) <= 1200 and "\n" not in text.strip() and "Traceback" not in text


@pytest.mark.parametrize(
    "database_url", ["postgresql", pytest.param("sqlite", marks=pytest.mark.slow)], indirect=True
)
def test_no_value_of_any_parameter_of_any_route_is_a_defect(context: Context, web: TestClient) -> None:
    web.headers["authorization"] = f"Bearer {context.token}"
    found = []
    for path, methods in web.get("/api/v1/openapi.json").json()["paths"].items():
        for method, route in methods.items():
            named = {
                kind: [p["name"] for p in route.get("parameters", []) if p["in"] == kind]
                for kind in ("path", "query")
            }
            asked = [fill(path, named["path"], value) for value in VALUES if named["path"]]
            plain = fill(path, named["path"], "x")
            asked += [f"{plain}?{name}={value}" for name in named["query"] for value in VALUES]
            answers = {url: web.request(method, url) for url in asked}
            if method != "get":
                head = {"content-type": "application/json"}
                answers |= {
                    f"{plain} {body[:40]!r}": web.request(method, plain, content=body, headers=head)
                    for body in BODIES
                }
            found += [
                f"{method} {url}: {answer.status_code} {answer.text[:80]}"
                for url, answer in answers.items()
                if answer.status_code >= 500 or (answer.status_code >= 400 and not is_one_line(answer.text))
            ]
    assert found == []


def fill(path: str, names: list[str], value: str) -> str:
    for name in names:
        path = path.replace(f"{{{name}}}", value)
    return path


SPELLINGS = (
    *("/api/v1/devices", "//api/v1/devices", "/api//v1/devices", "/api/v1/devices/", "/API/v1/devices"),
    *("/api%2fv1/devices", "/%61pi/v1/devices", "/x/../api/v1/devices", "/x/%2e%2e/api/v1/devices"),
    *(
        "/favicon.ico/../api/v1/devices",
        "/favicon.ico%09/",
        "/fav%09icon.ico",
        "/favicon.ico%3f/x",
        "/login/../api/v1/jobs",
    ),
    *(
        "/api/v1/devi%09ces",
        "/api/v1/status;x",
        "/api",
        "/api/",
        "/metrics",
        "/metrics/",
        "/Metrics",
        "/repo",
        "/repo/x",
    ),
    *(
        "/certificate",
        "/certificate/",
        "/openapi.json",
        "/docs",
        "/redoc",
        "/api/v1/openapi.json",
        "/login/x",
    ),
)
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND", "get", "X" * 40)


@pytest.mark.parametrize("method", METHODS)
def test_no_spelling_of_an_address_lets_a_stranger_in(web: TestClient, method: str) -> None:
    for path in SPELLINGS:
        for host in (
            "127.0.0.1",
            "localhost",
            "localhost/login?",
            "localhost/favicon.ico?",
            "localhost#",
            "x@localhost",
        ):
            answer = web.request(method, path, headers={"host": host})
            assert answer.status_code in {400, 401, 403, 404, 421}, (method, path, host, answer.status_code)


def test_a_viewers_token_changes_nothing_by_any_method_or_spelling(context: Context, web: TestClient) -> None:
    now = context.clock()
    with context.store.write() as connection:
        token = accounts.add_token(connection, "dashboard", "viewer", now, None)
    web.headers["authorization"] = f"Bearer {token}"
    before = web.get("/api/v1/devices").json()
    paths = web.get("/api/v1/openapi.json").json()["paths"]
    for path in paths:
        for url in (re.sub(r"\{\w+\}", "x", path), path.upper()):
            for method in ("POST", "PUT", "DELETE", "OPTIONS"):
                more = {"x-http-method-override": "GET", "content-type": "application/json"}
                status = web.request(method, url, content=b'{"name": "x"}', headers=more).status_code
                assert status in {401, 403, 404}, (method, url, status)
    for secret in (
        "users",
        "tokens",
        "audit",
        "stick/x",
        "AUDIT",
        "audit/",
        "devices/../audit",
        "status/../users",
    ):
        assert web.get(f"/api/v1/{secret}").status_code in {403, 404}, secret
    assert web.get("/api/v1/devices").json() == before
