"""Passwords, the audit log, and the API's way to users and tokens."""

from __future__ import annotations

import json

import pytest
import sqlalchemy as sa
from servers import NOW
from sqlalchemy.exc import DBAPIError
from starlette.testclient import TestClient

from edgekit.core.errors import BadInput
from edgekit.fleet import audit, passwords
from edgekit.fleet import schema as db
from edgekit.fleet.store import Store

V1 = "/api/v1"


def test_a_password_is_kept_as_a_hash_that_says_its_costs() -> None:
    kept = passwords.hash_password("correct horse", b"s" * 16)
    assert kept.startswith("scrypt$15$8$3$")
    assert "correct" not in kept
    assert passwords.hash_password("correct horse") != kept, "a salt of its own"
    assert passwords.is_password("correct horse", kept)
    assert not passwords.is_password("correct horsf", kept)
    assert not passwords.is_outdated(kept)


def test_hashes_of_other_costs_still_count_and_are_outdated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(passwords, "LOG2_N", 5)
    kept = passwords.hash_password("K\u00e4sebrot!")
    monkeypatch.setattr(passwords, "LOG2_N", 6)
    assert passwords.is_outdated(kept)
    assert passwords.is_password("Ka\u0308sebrot!", kept), "the same letters, spelt in two ways"


def test_rfc_7914_gives_the_same_bytes() -> None:
    derived = passwords._derive("pleaseletmein", b"SodiumChloride", 14, 8, 1)
    assert derived.hex() == "7023bdcb3afd7348461c06cd81fd38ebfda8fbba904f8e3ea9b543f6545da1f2"


@pytest.mark.parametrize(
    "kept", ["", "scrypt", "scrypt$15$8$3$!$!", "scrypt$99$8$3$YQ==$YQ==", "md5$4$8$1$YQ==$YQ==", "$$$$$"]
)
def test_what_is_no_hash_is_nobodys(kept: str) -> None:
    assert not passwords.is_password("x", kept)


@pytest.mark.parametrize("password", ["short", "a" * 20, "anna-marie-x", "tab\there and there", "x" * 2000])
def test_a_weak_password_is_refused_without_being_shown(password: str) -> None:
    with pytest.raises(BadInput) as raised:
        passwords.check_new(password, "Anna-Marie-X")
    assert password not in str(raised.value)


@pytest.mark.both_databases
def test_the_audit_log_is_only_added_to(store: Store) -> None:
    with store.write() as connection:
        for number in range(5):
            audit.note(connection, NOW, "anna", "job.run", f"job:{number % 2}", {"n": number})
    for change in (sa.delete(db.audit), sa.update(db.audit).values(who="nobody")):
        with pytest.raises(DBAPIError, match="append-only"), store.write() as connection:
            connection.execute(change)
    with store.read() as connection:
        newest = audit.lines(connection, limit=2)
        assert [line["detail"]["n"] for line in newest] == [4, 3]
        older = audit.lines(connection, before=newest[-1]["id"])
        assert [line["detail"]["n"] for line in older] == [2, 1, 0]
        assert [line["detail"]["n"] for line in audit.lines(connection, subject="job:1")] == [3, 1]


def test_a_line_is_bounded_and_printable(store: Store) -> None:
    with store.write() as connection:
        audit.note(connection, NOW, "a" * 500, "x.y", "board:\x1b[2J\0" + "b" * 500, {"text": "c" * 10_000})
    with store.read() as connection:
        (line,) = audit.lines(connection)
    assert len(line["who"]) == 128
    assert line["subject"].startswith("board:\\x1b[2J\\x00b")
    assert len(line["subject"]) == 300
    assert "left_out" in line["detail"]


def test_users_and_tokens_by_the_api(web: TestClient) -> None:
    new = {"name": "anna", "role": "viewer", "password": "correct horse"}
    assert web.post(f"{V1}/users", json=new).status_code == 201
    assert web.post(f"{V1}/users", json=new).status_code == 409
    for wrong in ({"name": "a b"}, {"name": "Server"}, {"role": "root"}, {"password": "short"}, {"more": 1}):
        assert web.post(f"{V1}/users", json={**new, "name": "eve", **wrong}).status_code == 400, wrong
    assert web.post(f"{V1}/users/nobody/role", json={"role": "viewer"}).status_code == 404
    shown = web.get(f"{V1}/users").json()["users"]
    assert [(row["name"], row["role"]) for row in shown] == [("anna", "viewer")]
    assert set(shown[0]) == {"name", "role", "created"}
    made = web.post(f"{V1}/tokens", json={"name": "ci", "role": "viewer", "expires_s": 60.0}).json()
    me = web.get(f"{V1}/me", headers={"authorization": f"Bearer {made['token']}"}).json()
    assert (me["name"], me["role"]) == ("token:ci", "viewer")
    assert web.post(f"{V1}/tokens", json={"name": "ci", "role": "viewer"}).status_code == 409
    assert set(web.get(f"{V1}/tokens").json()["tokens"][0]) == {"name", "role", "created", "expires"}
    assert web.post(f"{V1}/tokens/ci/remove").status_code == 200
    assert web.post(f"{V1}/tokens/ci/remove").status_code == 404
    log = web.get(f"{V1}/audit", params={"limit": 2}).json()
    assert [line["action"] for line in log["lines"]] == ["token.remove", "token.add"]
    rest = web.get(f"{V1}/audit", params={"before": log["next"]}).json()
    assert [line["action"] for line in rest["lines"]] == ["user.add"]
    assert "correct horse" not in json.dumps([log, rest])


def test_what_is_done_by_the_api_is_in_the_audit_log(web: TestClient) -> None:
    web.post(f"{V1}/devices", json={"name": "pi5"})
    web.post(f"{V1}/settings", json={"to": "all", "config": {"log.verbose": True}})
    web.post(f"{V1}/devices/pi5/revoke")
    lines = web.get(f"{V1}/audit").json()["lines"]
    assert [line["action"] for line in lines] == ["board.revoke", "job.configure", "board.enroll"]
    assert {line["who"] for line in lines} == {"server token"}
    assert lines[0]["subject"] == lines[2]["subject"] == "board:pi5"


def test_no_password_of_a_request_is_in_its_error(web: TestClient) -> None:
    answer = web.post(f"{V1}/users", json={"name": "eve", "role": "viewer", "password": ["hunter2hunter2"]})
    assert answer.status_code == 400
    assert "hunter2" not in answer.text
