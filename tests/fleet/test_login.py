"""Browsers: logging in and out, sessions and their ends, forms of other sites, and who guesses."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from edgekit.fleet import accounts, audit, passwords
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.attempts import FREE_OF_USER, MAX_WAIT_S, Attempts, wait_s
from edgekit.fleet.sessions import LIFE_S

HERE, PASSWORD = "http://127.0.0.1", "correct horse battery"
HTML = {"accept": "text/html"}
V1 = "/api/v1"


@pytest.fixture(autouse=True)
def cheap_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The costs of real ones are tested in test_accounts.py."""
    monkeypatch.setattr(passwords, "LOG2_N", 4)


@pytest.fixture
def inside(context: Context, clock: Any) -> Context:
    return dataclasses.replace(context, clock=clock)


@pytest.fixture
def browser(inside: Context) -> Iterator[TestClient]:
    app = make_app(inside)

    with inside.store.write() as connection:
        for name, role in (("anna", "operator"), ("vic", "viewer")):
            accounts.add_user(connection, name, role, passwords.hash_password(PASSWORD), inside.clock())
    with TestClient(app, base_url=HERE, follow_redirects=False) as client:
        yield client


def log_in(browser: TestClient, name: str = "anna", password: str = PASSWORD, **more: str) -> Any:
    return browser.post("/login", data={"name": name, "password": password, **more})


def is_in(browser: TestClient) -> bool:
    status = browser.get("/nothing-there", headers=HTML).status_code
    assert status in {303, 404}
    return status == 404


def api(browser: TestClient, context: Context, method: str, where: str, **body: Any) -> Any:
    headers = {"authorization": f"Bearer {context.token}"}
    return browser.request(method, f"{V1}{where}", headers=headers, json=body)


def lines(context: Context, subject: str | None = None) -> list[tuple[str, str]]:
    with context.store.read() as connection:
        return [(line["who"], line["action"]) for line in audit.lines(connection, subject)]


def test_a_stranger_is_sent_to_the_login_page_and_back_to_where_it_was_going(browser: TestClient) -> None:
    answer = browser.get("/board/pi5?x=1", headers=HTML)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login?next=/board/pi5%3Fx%3D1")
    assert browser.get("/", headers={"accept": "*/*"}).status_code == 401
    page = browser.get(answer.headers["location"])
    assert 'value="/board/pi5?x=1"' in page.text
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert log_in(browser, next="/board/pi5?x=1").headers["location"] == "/board/pi5?x=1"


@pytest.mark.parametrize(
    "where", ["//evil.example", "/\\evil.example", "https://evil.example", "/logout", "", "/a\nb"]
)
def test_nobody_is_led_elsewhere_after_logging_in(browser: TestClient, where: str) -> None:
    assert log_in(browser, next=where).headers["location"] == "/"


def test_a_user_comes_in_with_name_and_password_and_leaves_with_log_out(
    browser: TestClient, inside: Context
) -> None:
    for name, password in (
        ("anna", "wrong"),
        ("anna", ""),
        ("nobody", PASSWORD),
        ("", ""),
        ("an\0na", PASSWORD),
    ):
        answer = log_in(browser, name, password)
        assert answer.status_code == 401
        assert "do not go together" in answer.text
    cookie = log_in(browser).headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie
    assert "secure" not in cookie
    assert is_in(browser)
    old = browser.cookies["edgekit_session"]
    assert browser.get("/logout").status_code == 200
    assert is_in(browser), "a link alone logged out"
    assert browser.post("/logout").headers["location"] == "/login"
    assert not is_in(browser)
    browser.cookies.set("edgekit_session", old)
    assert not is_in(browser), "the session outlived the log-out"
    assert lines(inside, "user:anna") == [("anna", "logout"), ("anna", "login")]
    assert ("server", "login.failed") in lines(inside, "address:testclient")


def test_the_servers_token_is_the_other_way_in(browser: TestClient, inside: Context) -> None:
    assert browser.post("/login", data={"token": "wrong"}).status_code == 401
    assert browser.get(f"/?token={inside.token}", headers=HTML).status_code == 303
    assert not is_in(browser), "the token worked in an address"
    assert browser.post("/login", data={"token": f" {inside.token} "}).status_code == 303
    assert is_in(browser)
    assert lines(inside, "user:server token") == [("server token", "login")]


def test_a_session_of_the_servers_token_ends_with_that_token(browser: TestClient, inside: Context) -> None:
    browser.post("/login", data={"token": inside.token})
    other = make_app(dataclasses.replace(inside, token="another"))
    with TestClient(other, base_url=HERE, follow_redirects=False, cookies=dict(browser.cookies)) as later:
        assert not is_in(later)


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "/users/anna/remove", {}),
        ("POST", "/users/anna/role", {"role": "viewer"}),
        ("POST", "/users/anna/password", {"password": "another good one"}),
    ],
)
def test_sessions_end_when_their_user_goes_or_changes(
    browser: TestClient, inside: Context, method: str, path: str, body: dict[str, Any]
) -> None:
    log_in(browser)
    assert is_in(browser)
    assert api(browser, inside, method, path, **body).status_code == 200
    assert not is_in(browser)


def test_a_session_ends_after_its_time(browser: TestClient, clock: Any) -> None:
    log_in(browser)
    clock.time += LIFE_S - 1
    assert is_in(browser)
    clock.time += 1
    assert not is_in(browser)


@pytest.mark.parametrize("value", ["", ".", "9999999999.abc", "x" * 4000, '"', "=;="])
def test_a_made_up_session_lets_nobody_in(browser: TestClient, value: str) -> None:
    answer = browser.get("/", headers={"cookie": f"edgekit_session={value}", **HTML})
    assert answer.status_code == 303


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "http://127.0.0.1:81"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site", "origin": HERE},
    ],
)
def test_a_form_of_another_site_does_nothing(browser: TestClient, headers: dict[str, str]) -> None:
    data = {"name": "anna", "password": PASSWORD}
    assert browser.post("/login", data=data, headers=headers).status_code == 403
    log_in(browser)
    for path in ("/logout", "/password", "/anything"):
        assert browser.post(path, headers=headers).status_code == 403
    with (
        pytest.raises(WebSocketDisconnect),
        browser.websocket_connect("/_nicegui_ws/socket.io/", headers=headers),
    ):
        pass
    assert is_in(browser)
    own = {"origin": HERE, "sec-fetch-site": "same-origin"}
    assert browser.post("/logout", headers=own).status_code == 303


def test_a_link_on_another_site_leads_in_although_it_brings_no_cookie(browser: TestClient) -> None:
    """SameSite=Strict keeps the cookie back: the page asks for itself once more, from this site."""
    answer = browser.get("/board/pi5", headers={**HTML, "sec-fetch-site": "cross-site"})
    assert answer.status_code == 200
    assert 'http-equiv="refresh"' in answer.text


def test_a_link_lets_one_browser_in_once(browser: TestClient, inside: Context, clock: Any) -> None:
    made = api(browser, inside, "POST", "/login-links", path="/jobs").json()
    assert browser.get(made["path"], headers={"sec-purpose": "prefetch"}).status_code == 200
    assert not is_in(browser), "a preview used the link"
    answer = browser.get(made["path"])
    assert (answer.status_code, answer.headers["location"]) == (303, "/jobs")
    assert is_in(browser)
    assert browser.get(made["path"]).headers["location"] == "/jobs", "who is in already goes on"
    browser.cookies.clear()
    assert browser.get(made["path"]).status_code == 401
    late = api(browser, inside, "POST", "/login-links").json()
    clock.time = late["expires"]
    assert browser.get(late["path"]).status_code == 401


def test_behind_https_the_cookie_is_the_hosts_alone(inside: Context) -> None:
    config = dataclasses.replace(inside.config, public_url="https://fleet.example")
    app = make_app(dataclasses.replace(inside, config=config))
    with TestClient(app, base_url="http://fleet.example", follow_redirects=False) as client:
        own = {"origin": "https://fleet.example"}
        cookie = client.post("/login", data={"token": inside.token}, headers=own).headers["set-cookie"]
        assert cookie.startswith("__Host-edgekit_session=")
        assert "Secure" in cookie


def test_a_user_changes_the_own_password(browser: TestClient, inside: Context) -> None:
    log_in(browser)
    new = "another good one"

    def change(current: str, new: str, again: str) -> int:
        form = {"current": current, "new": new, "again": again}
        return int(browser.post("/password", data=form).status_code)

    assert "anna" in browser.get("/password").text
    assert change("wrong", new, new) == 401
    assert change(PASSWORD, new, new + "x") == 400
    assert change(PASSWORD, "short", "short") == 400
    old = browser.cookies["edgekit_session"]
    assert change(PASSWORD, new, new) == 303
    assert is_in(browser)
    assert browser.cookies["edgekit_session"] != old
    assert log_in(browser).status_code == 401
    assert log_in(browser, password=new).status_code == 303
    assert ("anna", "user.password") in lines(inside, "user:anna")


def test_who_guesses_waits_longer_and_longer_and_the_owner_is_never_locked_out(
    browser: TestClient, inside: Context, clock: Any
) -> None:
    codes = [log_in(browser, password="guess").status_code for _ in range(FREE_OF_USER + 3)]
    assert codes == [401] * FREE_OF_USER + [429] * 3
    answer = log_in(browser)
    assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    assert browser.post("/login", data={"token": inside.token}).status_code == 303, (
        "the token is the last way in"
    )
    clock.time += 2
    assert log_in(browser).status_code == 303
    assert ("server", "login.failed") in lines(inside, "user:anna")


# --- how long to wait ---


def test_the_wait_grows_to_a_minute_and_no_further() -> None:
    assert [wait_s(n, 5) for n in (0, 4, 5, 6, 7, 11, 10**6)] == [0, 0, 1, 2, 4, MAX_WAIT_S, MAX_WAIT_S]


def test_a_stranger_who_guesses_at_a_name_does_not_keep_its_owner_out() -> None:
    attempts = Attempts()
    attempts.failed("anna", "10.0.0.1", 0.0)
    attempts.succeeded("anna", "10.0.0.1", 0.0)
    for _ in range(10):
        attempts.failed("anna", "10.9.9.9", 1.0)
    assert attempts.must_wait_s("anna", "10.9.9.9", 1.0) > 10
    assert attempts.must_wait_s("anna", "10.0.0.1", 1.0) == 0
    assert attempts.must_wait_s("vic", "10.9.9.9", 1.0) == 0, "another user from there is not kept out yet"


def test_an_address_is_counted_over_all_names_and_a_network_of_ipv6_is_one() -> None:
    attempts = Attempts()
    for number in range(30):
        attempts.failed(f"user{number}", f"2001:db8::{number:x}", 0.0)
    assert attempts.must_wait_s("new", "2001:db8::ffff", 0.0) == MAX_WAIT_S
    assert attempts.must_wait_s("new", "2001:db8:1::1", 0.0) == 0
    assert attempts.must_wait_s("new", "2001:db8::ffff", 10_000.0) == 0


def test_guessing_writes_few_lines_and_remembers_a_bounded_number() -> None:
    attempts = Attempts()
    noted = sum(attempts.failed("anna", "10.0.0.1", 0.0) > 0 for _ in range(1000))
    assert noted == 9  # 3, 6, ..., 768
    for number in range(30_000):
        attempts.failed(f"u{number}", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0.0)
    assert len(attempts._counts) <= 20_000
