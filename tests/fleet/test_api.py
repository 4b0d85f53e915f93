from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from starlette.testclient import TestClient

from edgekit.core.bundle import Bundle
from edgekit.fleet import views
from edgekit.fleet.api import Context, make_app
from edgekit.repo.add import measure, sign_targets, with_bundle
from edgekit.repo.keys import make_key, read_key
from edgekit.repo.metadata import key_file, parse_targets
from edgekit.repo.status import status

MakeBundle = Callable[..., Bundle]
V1 = "/api/v1"


def now() -> datetime:
    return datetime.now(timezone.utc)


def sign_on(web: TestClient, context: Context, bundle: Bundle) -> bytes:
    """The next targets metadata, as an engineer signs it."""
    current = parse_targets(web.get(f"{V1}/repo/targets").content, "targets")
    return sign_targets(
        with_bundle(current, bundle, now()), read_key(key_file(context.config.repository, "targets"))
    )


def upload(web: TestClient, bundle: Bundle) -> str:
    sha256 = measure(bundle.path)[1]
    answer = web.put(f"{V1}/repo/bundles/{sha256}", content=bundle.path.read_bytes())
    assert answer.status_code == 201, answer.text
    return sha256


def publish(web: TestClient, context: Context, bundle: Bundle) -> Any:
    upload(web, bundle)
    return web.post(f"{V1}/repo/targets", content=sign_on(web, context, bundle))


def enroll(web: TestClient, name: str = "pi5", **more: Any) -> dict[str, Any]:
    answer = web.post(f"{V1}/devices", json={"name": name, "profile": "host", "tags": ["site-a"], **more})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def error(answer: Any, code: int) -> str:
    """The one line of an error answer."""
    assert answer.status_code == code, answer.text
    line = answer.json()["error"]
    assert "\n" not in line
    return str(line)


def test_an_unknown_path_below_the_api_says_nothing_without_the_token(web: TestClient) -> None:
    assert web.get(f"{V1}/secrets").status_code == 404
    assert web.get(f"{V1}/secrets", headers={"authorization": ""}).status_code == 401
    assert web.get(f"{V1}/openapi.json", headers={"authorization": ""}).status_code == 401


def test_the_token_file_is_for_its_owner_alone(context: Context) -> None:
    for path in (
        context.config.token_file,
        context.config.control_key_file,
        context.config.broker.password_file,
    ):
        assert path.stat().st_mode & 0o777 == 0o600
    assert context.config.data_dir.stat().st_mode & 0o777 == 0o700
    assert (context.config.data_dir / "fleet.db").stat().st_mode & 0o777 == 0o600


# --- boards ---


def test_enrolment_gives_a_board_all_it_needs_and_the_broker_its_password(
    context: Context, web: TestClient
) -> None:
    answer = enroll(web)
    assert answer["fleet"] == "demo"
    assert answer["repository"] == {"url": "http://127.0.0.1:8080/repo", "tls": False}
    assert answer["broker"] == {"host": "127.0.0.1", "port": 1, "tls": False}
    assert (answer["ca"], answer["certificate"]) == (None, None)
    assert "BEGIN PUBLIC KEY" in answer["control_key"]
    assert json.loads(answer["root"])["signed"]["_type"] == "root"
    assert answer["broker_reloaded"] is False
    passwd = (context.config.broker.files_dir / "passwd").read_text()
    assert "demo/pi5:$7$101$" in passwd
    for secret in (answer["mqtt_password"], answer["repo_token"]):
        assert len(secret) >= 40
        assert secret not in passwd
        assert secret.encode() not in (context.config.data_dir / "fleet.db").read_bytes()


def test_a_name_is_given_once_and_again_only_on_request(web: TestClient) -> None:
    first = enroll(web)
    assert "is enrolled already" in error(web.post(f"{V1}/devices", json={"name": "pi5"}), 409)
    second = enroll(web, again=True)
    assert second["repo_token"] != first["repo_token"]
    old = {"authorization": f"Bearer {first['repo_token']}"}
    assert web.get("/repo/metadata/timestamp.json", headers=old).status_code == 401
    assert len(web.get(f"{V1}/devices").json()["devices"]) == 1


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": "a b"},
        {"name": "../x"},
        {"name": "demo/x"},
        {"name": "x" * 65},
        {"name": 7},
        {"name": "x", "tags": "a"},
        {"name": "x", "tags": ["a b"]},
        {"name": "x", "tags": ["t"] * 33},
        {"name": "x", "profile": ""},
        {"name": "x", "colour": "red"},
        [],
        None,
    ],
)
def test_a_board_that_cannot_be_enrolled_is_refused_in_one_line(web: TestClient, body: Any) -> None:
    assert error(web.post(f"{V1}/devices", json=body), 400)


def test_a_body_that_is_no_json_is_refused_in_one_line(web: TestClient) -> None:
    for data in (b"", b"{", b"\xff", b"[" * 100_000):
        assert error(
            web.post(f"{V1}/devices", content=data, headers={"content-type": "application/json"}), 400
        )


def test_a_body_without_end_is_refused(web: TestClient) -> None:
    assert "at most 6000000 bytes" in error(web.post(f"{V1}/jobs", content=b"x" * 6_000_001), 413)
    assert "Content-Length" in error(web.post(f"{V1}/jobs", content=iter([b"{}"])), 411)
    both = {"Content-Length": "2", "Transfer-Encoding": "chunked"}
    assert "Content-Length" in error(web.post(f"{V1}/jobs", content=iter([b"{}"]), headers=both), 411)


def test_a_board_that_is_not_there_is_not_found(web: TestClient) -> None:
    assert error(web.get(f"{V1}/devices/none"), 404) == "there is no board called 'none'"
    assert error(web.get(f"{V1}/jobs/none"), 404) == "there is no job 'none'"


def test_windows_are_numbers_that_make_sense(web: TestClient) -> None:
    for window in ("0", "-1", "nan", "inf", "x", "1e300"):
        assert "window_s" in error(web.get(f"{V1}/devices", params={"window_s": window}), 400)


# --- the repository ---


def test_an_upload_is_published_and_served_to_boards_with_range(
    context: Context, web: TestClient, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle()
    answer = publish(web, context, bundle)
    assert answer.status_code == 200
    assert [target["label"] for target in answer.json()["targets"]] == ["toy/1"]
    assert list(context.config.incoming.iterdir()) == []
    board = {"authorization": f"Bearer {enroll(web)['repo_token']}"}
    data = bundle.path.read_bytes()
    found = web.get("/repo/targets/run/toy/1.edge", headers=board)
    assert found.content == data
    part = web.get("/repo/targets/run/toy/1.edge", headers=board | {"range": "bytes=100-"})
    assert (part.status_code, part.content) == (206, data[100:])
    assert web.get("/repo/metadata/2.targets.json", headers=board).status_code == 200
    assert web.get("/repo/metadata/2.root.json", headers=board).status_code == 404
    assert status(context.config.repository, now())["problems"] == []


@pytest.mark.parametrize(
    "path",
    [
        "metadata/../keys/online.pem",
        "metadata/%2e%2e/keys/online.pem",
        "metadata/..%2fkeys%2fonline.pem",
        "metadata/.timestamp.json.1.part",
        "metadata/",
        "keys/online.pem",
        "targets/../keys/online.pem",
        "targets/run/toy/..%2f..%2f..%2f..%2fkeys%2fonline.pem",
        "targets/run/toy/0.edge",
        "targets/run/toy",
        "targets//run/toy/1.edge",
    ],
)
def test_nothing_but_published_files_is_served(web: TestClient, path: str) -> None:
    board = {"authorization": f"Bearer {enroll(web)['repo_token']}"}
    answer = web.get(f"http://127.0.0.1/repo/{path}", headers=board)
    assert answer.status_code in {401, 404}
    assert b"PRIVATE" not in answer.content


def test_the_second_of_two_engineers_is_told_and_can_sign_again(
    context: Context, web: TestClient, make_bundle: MakeBundle
) -> None:
    first, second = make_bundle(name="a"), make_bundle(name="b")
    late = sign_on(web, context, second)
    publish(web, context, first)
    upload(web, second)
    answer = web.post(f"{V1}/repo/targets", content=late)
    assert "must be version 3, got 2: somebody else published meanwhile" in error(answer, 409)
    assert publish(web, context, second).status_code == 200


def test_what_is_not_signed_by_the_targets_key_is_refused(
    context: Context, web: TestClient, make_bundle: MakeBundle, tmp_path: Path
) -> None:
    bundle = make_bundle()
    upload(web, bundle)
    current = parse_targets(web.get(f"{V1}/repo/targets").content, "targets")
    forged = sign_targets(with_bundle(current, bundle, now()), make_key(tmp_path / "stranger.pem"))
    assert "was signed by 0/1 keys" in error(web.post(f"{V1}/repo/targets", content=forged), 400)
    tampered = sign_on(web, context, bundle).replace(b"toy/1", b"toy/2")
    assert error(web.post(f"{V1}/repo/targets", content=tampered), 400)
    assert web.get(f"{V1}/repo").json()["targets"] == []


def test_metadata_for_a_bundle_that_never_came_is_refused(
    context: Context, web: TestClient, make_bundle: MakeBundle
) -> None:
    answer = web.post(f"{V1}/repo/targets", content=sign_on(web, context, make_bundle()))
    assert "was not uploaded" in error(answer, 400)


def test_an_upload_that_arrives_changed_leaves_nothing(
    context: Context, web: TestClient, make_bundle: MakeBundle
) -> None:
    bundle = make_bundle()
    sha256 = measure(bundle.path)[1]
    answer = web.put(f"{V1}/repo/bundles/{sha256}", content=bundle.path.read_bytes()[:-1])
    assert "arrived with another sha256" in error(answer, 400)
    assert error(web.put(f"{V1}/repo/bundles/{'A' * 64}", content=b""), 400)
    assert list(context.config.incoming.iterdir()) == []


def test_an_upload_that_is_too_large_is_stopped_on_the_way(small: Context) -> None:
    with TestClient(make_app(small), base_url="http://127.0.0.1") as web:
        headers = {"authorization": f"Bearer {small.token}"}
        answer = web.put(f"{V1}/repo/bundles/{'0' * 64}", content=bytes(2**20 + 1), headers=headers)
    assert "at most 1048576 bytes" in error(answer, 400)
    assert list(small.config.incoming.iterdir()) == []


def test_a_disk_that_is_full_is_the_worlds_fault(
    context: Context, web: TestClient, make_bundle: MakeBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    bundle = make_bundle()
    monkeypatch.setattr("edgekit.fleet.api_repository._sync", full)
    answer = web.put(f"{V1}/repo/bundles/{measure(bundle.path)[1]}", content=bundle.path.read_bytes())
    assert "No space left on device" in error(answer, 503)
    assert list(context.config.incoming.iterdir()) == []


# --- jobs ---


def test_a_job_is_made_for_a_published_target_alone(
    context: Context, web: TestClient, make_bundle: MakeBundle
) -> None:
    enroll(web)
    publish(web, context, make_bundle())
    body = {"target": "toy/1", "to": "all", "policy": {"kind": "budget", "budget": "3ms"}, "interval_s": 5.0}
    job = web.post(f"{V1}/jobs", json=body).json()["job"]
    assert (job["policy"], job["devices"]["pi5"]["state"]) == ("budget 3ms", "pending")
    assert web.get(f"{V1}/jobs").json()["jobs"][0]["states"] == {"pending": 1}
    assert web.get(f"{V1}/jobs/{job['job_id']}").json()["job"] == job
    for change, says in (
        ({"target": "toy/2"}, "target toy/2 is not published (toy/1)"),
        ({"target": "toy"}, "target must be NAME/VERSION"),
        ({"to": "tag=none"}, "means no board"),
        ({"to": "who"}, "--to must be"),
        ({"policy": {"kind": "fast"}}, "policy.kind must be one of"),
        ({"policy": {"kind": "budget"}}, "needs one"),
        ({"interval_s": 0}, "interval_s"),
        ({"expires_s": -1}, "expires_s"),
    ):
        assert says in error(web.post(f"{V1}/jobs", json=body | change), 400)
    assert len(web.get(f"{V1}/jobs").json()["jobs"]) == 1


def test_the_status_speaks_of_fleet_ingest_and_repository(context: Context, web: TestClient) -> None:
    enroll(web)
    found = web.get(f"{V1}/status").json()
    assert (found["v"], found["fleet"]) == (1, "demo")
    assert {"enrolled": 1, "revoked": 0, "online": 0}.items() <= found["boards"].items()
    assert found["ingest"] is None
    assert found["repository"]["problems"] == []
    assert found["energy_mj"]["mean"] is None


def test_a_broken_database_is_the_worlds_fault_and_one_line(
    web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise sa.exc.OperationalError("select", {}, OSError("disk I/O error"))

    monkeypatch.setattr(views, "job_page", broken)
    assert error(web.get(f"{V1}/jobs"), 503) == "database: disk I/O error"


def test_a_defect_of_ours_is_said_without_its_details(
    web: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views, "job_page", lambda connection, **_: 1 / 0)
    assert error(web.get(f"{V1}/jobs"), 500) == "the server has a defect; its log says more"


def test_the_schema_lists_every_route(web: TestClient) -> None:
    paths = web.get(f"{V1}/openapi.json").json()["paths"]
    assert {f"{V1}/devices", f"{V1}/jobs", f"{V1}/repo/targets", f"{V1}/status"} <= set(paths)
