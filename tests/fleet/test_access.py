"""Every route of the web process, page aside, with every kind of caller."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.routing import BaseRoute
from starlette.testclient import TestClient

from edgekit.fleet import access, accounts, audit, sessions
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.enroll import enroll

V1 = "/api/v1"
HOUR = 3600.0
PASSWORD = "correct horse battery"


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """Method and path of everything that answers, with something in place of parameters."""
    pairs = [(method, route.path) for route in every(app.routes) for method in sorted(route.methods)]
    return [(method, re.sub(r"\{(\w+)(:\w+)?\}", "x", path)) for method, path in pairs]


def every(routes: list[BaseRoute]) -> Iterator[APIRoute]:
    for route in routes:
        inner = getattr(route, "original_router", None) or getattr(route, "router", None)
        if isinstance(route, APIRoute):
            yield route
        elif inner is not None:
            yield from every(inner.routes)
        else:
            raise AssertionError(f"what is {route!r}? this test must know every kind of route")


@pytest.fixture
def app(context: Context) -> FastAPI:
    return make_app(context)


@pytest.fixture
def anybody(app: FastAPI) -> Iterator[TestClient]:
    """Shows nothing of itself."""
    with TestClient(
        app, base_url="http://127.0.0.1", raise_server_exceptions=False, follow_redirects=False
    ) as client:
        yield client


class Callers:
    """One of each kind."""

    def __init__(self, context: Context) -> None:
        now = context.clock()
        with context.store.write() as connection:
            self.viewer = accounts.add_token(connection, "dashboard", "viewer", now, now + HOUR)
            self.operator = accounts.add_token(connection, "ci", "operator", now, None)
            self.expired = accounts.add_token(connection, "old", "operator", now - 2, now - 1)
            self.removed = accounts.add_token(connection, "gone", "operator", now, None)
            accounts.remove_token(connection, "gone")
            self.board = enroll(connection, "pi5", None, [], now).repo_token
            accounts.add_user(connection, "anna", "operator", "no hash", now)
            user = accounts.known_user(connection, "anna")
            self.session = sessions.open_session(connection, user.id, context.token, now)
        self.server = context.token


@pytest.fixture
def callers(context: Context) -> Callers:
    return Callers(context)


def ask(client: TestClient, method: str, path: str, token: str | None = None, **headers: str) -> int:
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    return int(client.request(method, path, headers=headers).status_code)


def api_routes(app: FastAPI) -> list[tuple[str, str]]:
    return [route for route in routes_of(app) if route[1].startswith("/api/") or route[1] == "/metrics"]


def test_the_walk_finds_the_routes(app: FastAPI) -> None:
    found = routes_of(app)
    assert len(found) >= 30
    for route in (
        ("GET", f"{V1}/status"),
        ("POST", f"{V1}/users/x/remove"),
        ("GET", f"{V1}/stick"),
        ("HEAD", "/repo/targets/x"),
        ("POST", "/certificate"),
    ):
        assert route in found
    outside = {path for _method, path in found if not path.startswith(("/api/v1/", "/repo/"))}
    assert outside <= {"/certificate", "/metrics"}, "a route outside the guard's paths is the page's"


def test_a_stranger_is_kept_out_of_every_route(app: FastAPI, anybody: TestClient, callers: Callers) -> None:
    strangers = {
        "nothing": {},
        "an empty token": {"authorization": "Bearer"},
        "a wrong token": {"authorization": "Bearer wrong"},
        "another scheme": {"authorization": f"Basic {callers.server}"},
        "more than the token": {"authorization": f"Bearer {callers.server}x"},
        "an expired token": {"authorization": f"Bearer {callers.expired}"},
        "a removed token": {"authorization": f"Bearer {callers.removed}"},
        "a session's value": {"authorization": f"Bearer {callers.session}"},
        "a session's cookie": {"cookie": f"edgekit_session={callers.session}"},
        "a token as cookie": {"cookie": f"edgekit_session={callers.server}"},
        "no ASCII": {"authorization": b"Bearer \xfc"},
    }
    for method, path in routes_of(app):
        for who, headers in strangers.items():
            answer = anybody.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, who)
            assert "error" in answer.text or method == "HEAD"


def test_a_boards_token_opens_the_repository_and_its_certificate_and_no_more(
    app: FastAPI, anybody: TestClient, callers: Callers
) -> None:
    for method, path in routes_of(app):
        status = ask(anybody, method, path, callers.board)
        if path.startswith("/repo/") or path == "/certificate":
            assert status not in {401, 403}, (method, path)
        else:
            assert status == 401, (method, path)


def test_tokens_of_the_api_do_not_open_what_is_for_boards(
    app: FastAPI, anybody: TestClient, callers: Callers
) -> None:
    for method, path in routes_of(app):
        if path.startswith("/repo/") or path == "/certificate":
            for token in (callers.viewer, callers.operator, callers.server):
                assert ask(anybody, method, path, token) == 401, (method, path)


def test_a_viewer_reads_and_an_operator_changes(app: FastAPI, anybody: TestClient, callers: Callers) -> None:
    seen = {True: 0, False: 0}
    for method, path in api_routes(app):
        wanted = access.needed_role(method, path)
        viewer, operator = (ask(anybody, method, path, token) for token in (callers.viewer, callers.operator))
        assert (viewer == 403) == (wanted == "operator"), (method, path, viewer)
        if not path.endswith("/login-links"):  # for the server's own token alone
            assert operator not in {401, 403}, (method, path)
        assert ask(anybody, method, path, callers.server) not in {401, 403}, (method, path)
        seen[wanted == "viewer"] += 1
    assert min(seen.values()) > 10


def test_every_route_that_reads_is_in_the_table(app: FastAPI) -> None:
    assert not access.READABLE & access.FOR_OPERATORS
    for method, path in api_routes(app):
        if method == "GET" and path != "/metrics":
            segment = path.removeprefix(f"{V1}/").partition("/")[0]
            assert segment in access.READABLE | access.FOR_OPERATORS, f"fleet/access.py does not know {path}"


@pytest.mark.parametrize(
    ("method", "path", "role"),
    [
        ("GET", f"{V1}/status", "viewer"),
        ("GET", f"{V1}/devices/pi5", "viewer"),
        ("HEAD", f"{V1}/devices", "viewer"),
        ("GET", "/metrics", "viewer"),
        ("POST", f"{V1}/devices", "operator"),
        ("PATCH", f"{V1}/status", "operator"),
        ("GET", f"{V1}/users", "operator"),
        ("GET", f"{V1}/users/", "operator"),
        ("GET", f"{V1}/audit", "operator"),
        ("GET", f"{V1}/nobody-classified-this", "operator"),
        ("GET", f"{V1}//status", "operator"),
        ("GET", "/api/v2/status", "operator"),
        ("GET", "/api/status", "operator"),
        ("POST", "/metrics", "operator"),
    ],
)
def test_reading_is_for_viewers_and_what_nobody_classified_for_operators(
    method: str, path: str, role: str
) -> None:
    assert access.needed_role(method, path) == role


CHANGES: tuple[tuple[str, str, dict[str, object], str, str], ...] = (  # in this order
    ("POST", "/devices", {"name": "north", "profile": "raspberrypi5"}, "board.enroll", "board:north"),
    ("POST", "/settings", {"to": "name=north", "config": {"log.verbose": True}}, "job.configure", "job:"),
    ("POST", "/devices/{name}/revoke", {"name": "north"}, "board.revoke", "board:north"),
    ("POST", "/users", {"name": "ben", "role": "viewer", "password": PASSWORD}, "user.add", "user:ben"),
    ("POST", "/users/{name}/role", {"name": "ben", "role": "operator"}, "user.role", "user:ben"),
    ("POST", "/users/{name}/password", {"name": "ben", "password": PASSWORD}, "user.password", "user:ben"),
    ("POST", "/users/{name}/remove", {"name": "ben"}, "user.remove", "user:ben"),
    ("POST", "/tokens", {"name": "more", "role": "viewer"}, "token.add", "token:more"),
    ("POST", "/tokens/{name}/remove", {"name": "more"}, "token.remove", "token:more"),
    ("POST", "/login-links", {"path": "/"}, "login.link", "user:"),
    ("POST", "/silences", {"for_s": 60, "why": "quiet", "to": "all"}, "alerts.silence", "silence:"),
    ("DELETE", "/silences/{number}", {"number": 1}, "alerts.unsilence", "silence:"),
)
CHANGES_NOTHING = {"/rollouts/preview", "/repo/bundles/{sha256}"}  # a file is nothing until metadata names it
WITH_BUNDLES = {"/jobs", "/agents", "/measure", "/repo/measure", "/repo/targets", "/rollouts", "/alerts/test"}


def test_every_change_is_a_line_of_the_audit_log(
    app: FastAPI, anybody: TestClient, context: Context, callers: Callers
) -> None:
    for method, path, body, action, subject in CHANGES:
        where = path.format(**body)
        sent = {key: value for key, value in body.items() if f"{{{key}}}" not in path}
        answer = anybody.request(
            method,
            f"{V1}{where}",
            json=None if method == "DELETE" else sent,
            headers={"authorization": f"Bearer {callers.server}"},
        )
        assert answer.status_code in {200, 201}, (path, answer.text)
        with context.store.read() as connection:
            (line,) = audit.lines(connection, limit=1)
        assert (line["who"], line["action"]) == ("server token", action)
        assert line["subject"].startswith(subject)
        assert PASSWORD not in str(line)
    changing = {
        route.path.removeprefix(V1): route
        for route in every(app.routes)
        if route.methods - {"GET", "HEAD"} and route.path.startswith(V1)
    }
    rest = set(changing) - {path for _, path, *_ in CHANGES} - CHANGES_NOTHING
    assert {path for path in rest if not path.startswith("/rollouts/{")} == WITH_BUNDLES
    for path in rest:  # they cannot be done here; each has to know who asks
        assert "who" in inspect.signature(changing[path].endpoint).parameters, path


def test_a_token_ends_when_its_time_is_over(context: Context, callers: Callers) -> None:
    import dataclasses

    later = dataclasses.replace(context, clock=lambda: context.clock() + 2 * HOUR)
    for one, status in ((context, 200), (later, 401)):
        with TestClient(make_app(one), base_url="http://127.0.0.1") as client:
            assert ask(client, "GET", f"{V1}/status", callers.viewer) == status


def test_what_is_not_there_says_so_only_to_who_may_come_in(anybody: TestClient, callers: Callers) -> None:
    assert ask(anybody, "GET", f"{V1}/secrets") == 401
    assert ask(anybody, "GET", f"{V1}/secrets", callers.viewer) == 403
    assert ask(anybody, "GET", f"{V1}/secrets", callers.operator) == 404


def test_the_store_holds_no_secret(context: Context, callers: Callers) -> None:
    files = list(Path(context.config.data_dir).glob("fleet.db*"))
    data = b"".join(path.read_bytes() for path in files)
    assert b"dashboard" in data
    for secret in (callers.viewer, callers.operator, callers.session, callers.server):
        assert secret.encode() not in data


def test_another_name_for_loopback_is_not_answered(anybody: TestClient, callers: Callers) -> None:
    for host in (
        "evil.example",
        "evil.example:8080",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "[",
        "",
    ):
        for path in (f"{V1}/status", "/login", "/repo/metadata/root.json", "/"):
            assert ask(anybody, "GET", path, callers.server, host=host) == 421, (host, path)
    for host in ("127.0.0.1", "127.0.0.1:8080", "localhost:1", "[::1]:8080", "fleet.localhost", "LOCALHOST."):
        assert ask(anybody, "GET", f"{V1}/status", callers.server, host=host) == 200, host
