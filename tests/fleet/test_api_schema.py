"""The API against its own description: whatever may be asked is answered as described, and never with a defect."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from big_store import SMALL, fill
from fastapi import FastAPI
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from servers import NOW
from starlette.testclient import TestClient

from edgekit.core.bundle import Bundle
from edgekit.fleet import accounts
from edgekit.fleet import schema as db
from edgekit.fleet.alerts.silences import silence
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.api_schema import ANSWERS
from edgekit.fleet.context import PREFIX
from edgekit.fleet.rollouts import commands
from edgekit.fleet.rollouts.plan import Plan
from edgekit.fleet.store import insert_new
from edgekit.repo.add import measure, sign_targets, with_bundle
from edgekit.repo.keys import read_key
from edgekit.repo.metadata import key_file, read_current
from edgekit.repo.publish import publish

schemathesis = pytest.importorskip("schemathesis")
from schemathesis import GenerationMode, checks  # noqa: E402
from schemathesis.python import asgi  # noqa: E402
from schemathesis.specs.openapi import checks as openapi_checks  # noqa: E402

CHECKED = [
    checks.not_a_server_error,
    openapi_checks.status_code_conformance,
    openapi_checks.content_type_conformance,
    openapi_checks.response_headers_conformance,
    openapi_checks.response_schema_conformance,
]
NEVER_SAID = ("Traceback", "sqlalchemy", "psycopg", "sqlite3", "site-packages", ".py")
HARSH = ["\x00", "\ud800", "%00", "../..", "a" * 300, "'; --", "9" * 40, "-1", "\u202e", ""]
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def seeded(context: Context, make_bundle: Callable[..., Any]) -> Context:
    """A fleet of 230 boards: jobs, events, a published bundle, a rollout, an alert, a silence, users and a token."""
    context = replace(context, clock=lambda: NOW)
    fill(context.store, NOW, SMALL)
    _publish(context.config.repository, make_bundle(profiles=SMALL.profiles))
    with context.store.write() as connection:
        plan = Plan.parse({"target": "toy/1", "to": "tag=site-3"})
        connection.execute(sa.update(db.devices).values(runs="other/7"))
        commands.create(connection, plan, commands.published(context.config.repository), "anna", NOW)
        accounts.add_user(connection, "anna", "operator", "no hash", NOW)
        accounts.add_token(connection, "dashboard", "viewer", NOW, None)
        silence(connection, NOW, "anna", until=NOW + 60, why="test", rule=None, selector="all")
        insert_new(connection, db.alerts, [ALERT])
    return context


def _publish(folder: Path, bundle: Bundle) -> None:
    at = datetime.now(timezone.utc)
    signed = sign_targets(
        with_bundle(read_current(folder).targets, bundle, at), read_key(key_file(folder, "targets"))
    )
    publish(folder, signed, {measure(bundle.path)[1]: bundle.path}, at)


ALERT = {
    "rule": "slow",
    "subject": "board:b00001",
    "state": "firing",
    "kind": "p99",
    "severity": "warning",
    "device": 2,
    "grouped": "slow",
    "value": 4.0,
    "text": "p99 4 ms",
    "since": NOW - 60,
    "updated": NOW,
}


def known_parameters(context: Context) -> dict[str, list[Any]]:
    """Values of path parameters that are something in the seeded store, by parameter's name."""
    with context.store.read() as connection:
        rollout = connection.scalar(sa.select(db.rollouts.c.rollout_id))
    return {
        "name": ["b00001", "toy", "anna", "dashboard", "raspberrypi5"],
        "job_id": ["job-1"],
        "rollout_id": [rollout],
        "number": [1],
        "sha256": ["0" * 64],
        "path": ["run/toy/1.edge"],
    }


def loaded(context: Context, app: FastAPI) -> Any:
    """The description as a program would get it."""
    headers = {"authorization": f"Bearer {context.token}"}
    with TestClient(app, base_url="http://127.0.0.1") as web:
        answer = web.get(f"{PREFIX}/openapi.json", headers=headers)
    assert answer.status_code == 200, answer.text
    return schemathesis.openapi.from_dict(answer.json())


def walk(context: Context, token: str, examples: int, seen: Callable[[Any, Any], None]) -> int:
    """Ask every operation, with what fits its description and what does not; how many answers there were."""
    app = make_app(context)
    schema = loaded(context, app)
    known, count = known_parameters(context), 0
    wrong: list[str] = []
    quiet = settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    with asgi.get_client(app) as client:
        for found in schema.get_all_operations():
            operation = found.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

                @quiet
                @given(case=operation.as_strategy(generation_mode=mode), data=st.data())
                def ask(case: Any, data: Any) -> None:
                    nonlocal count
                    _at_something(case, data, known)
                    answer = case.call(
                        base_url="http://127.0.0.1",
                        session=client,
                        app=app,
                        headers={"authorization": f"Bearer {token}"},
                    )
                    count += 1
                    seen(case, answer)

                try:
                    ask()
                except Exception as err:  # noqa: BLE001  (the other operations are asked all the same)
                    wrong.append(f"{operation.label}: {_reason(err)}")
    assert not wrong, "\n\n".join(wrong)
    return count


def _reason(err: BaseException) -> str:
    inner = getattr(err, "exceptions", ())
    return "\n".join([str(err), *map(_reason, inner), *getattr(err, "__notes__", ())])


def _at_something(case: Any, data: Any, known: dict[str, list[Any]]) -> None:
    """Most path parameters name something that is there, some are harsh; so are some of the texts in the query."""
    for key in list(case.path_parameters or {}):
        draw = data.draw(st.integers(0, 9))
        if draw < 6:
            case.path_parameters[key] = data.draw(st.sampled_from(known[key]))
        elif draw < 8:
            case.path_parameters[key] = data.draw(st.sampled_from([text for text in HARSH[2:] if text]))
    for key, value in list((case.query or {}).items()):
        if isinstance(value, str) and data.draw(st.integers(0, 4)) == 0:
            case.query[key] = data.draw(st.sampled_from([text for text in HARSH if text != "\ud800"]))


def conforms(case: Any, answer: Any) -> None:
    """An answer is one that is described, one line where it is an error, and says nothing of the server's inside."""
    case.validate_response(answer, checks=CHECKED)
    headers = {key.lower(): value for key, value in answer.headers.items()}
    assert headers["x-content-type-options"] == ["nosniff"], case
    if answer.status_code >= 400:
        text = answer.content.decode()
        error = json.loads(text)["error"]
        assert error.strip(), case
        assert "\n" not in error, (case, error)
        assert len(error) <= 1500, (case, error)
        assert not [word for word in NEVER_SAID if word in error], (case, error)


def contents(context: Context) -> dict[str, str]:
    """A hash of each table's rows."""
    with context.store.read() as connection:
        return {
            table.name: hashlib.sha256(
                repr(sorted(map(repr, connection.execute(sa.select(table))))).encode()
            ).hexdigest()
            for table in db.metadata.tables.values()
        }


def operators_walk(context: Context, examples: int, caplog: pytest.LogCaptureFixture) -> int:
    with caplog.at_level(logging.ERROR, "edgekit.fleet.api"):
        count = walk(context, context.token, examples, conforms)
    assert not caplog.records, caplog.text
    return count


def test_whatever_an_operator_asks_is_answered_as_described(
    seeded: Context, caplog: pytest.LogCaptureFixture
) -> None:
    assert operators_walk(seeded, 2, caplog) > 150


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.both_databases
def test_much_that_an_operator_asks_is_answered_as_described(
    seeded: Context, caplog: pytest.LogCaptureFixture
) -> None:
    assert operators_walk(seeded, 25, caplog) > 1500


def viewers_walk(context: Context, examples: int) -> None:
    with context.store.write() as connection:
        token = accounts.add_token(connection, "watching", "viewer", NOW, None)
    before, codes = contents(context), set()

    def seen(case: Any, answer: Any) -> None:
        codes.add(answer.status_code)
        changes = case.method.upper() not in {"GET", "HEAD"}
        assert answer.status_code < 500, case
        assert not changes or answer.status_code >= 400, (case, answer.status_code)

    walk(context, token, examples, seen)
    assert {200, 403} <= codes
    assert contents(context) == before


def test_a_viewer_changes_nothing_whatever_it_asks(seeded: Context) -> None:
    viewers_walk(seeded, 1)


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.both_databases
def test_a_viewer_changes_nothing_however_much_it_asks(seeded: Context) -> None:
    viewers_walk(seeded, 15)


def test_every_route_has_a_described_answer_and_its_errors(context: Context) -> None:
    raw = loaded(context, make_app(context)).raw_schema
    assert raw["components"]["securitySchemes"]["token"]["scheme"] == "bearer"
    assert raw["security"] == [{"token": []}]
    names: list[str] = []
    keys = set()
    for path, operations in raw["paths"].items():
        for method, operation in operations.items():
            keys.add(f"{method} {path.removeprefix(PREFIX)}")
            names.append(operation["operationId"])
            assert operation["description"], path
            assert {"400", "401", "403", "421", "503"} <= set(operation["responses"]), path
            for kind, answer in _good(operation)["content"].items():
                assert kind != "application/json" or answer["schema"], path
            assert "422" not in operation["responses"], path
            assert ("404" in operation["responses"]) >= ("{" in path), path
    assert len(names) == len(set(names))
    assert set(ANSWERS) <= keys


def _good(operation: dict[str, Any]) -> dict[str, Any]:
    """What is answered where all is well."""
    (found,) = [answer for code, answer in operation["responses"].items() if code.startswith("2")]
    return dict(found)


def test_every_parameter_has_a_bound(context: Context) -> None:
    raw = loaded(context, make_app(context)).raw_schema
    for path, operations in raw["paths"].items():
        for operation in operations.values():
            for parameter in operation.get("parameters", ()):
                if parameter["in"] == "query":
                    assert _is_bounded(parameter["schema"]), (path, parameter["name"], parameter["schema"])


def _is_bounded(schema: dict[str, Any]) -> bool:
    choices = schema.get("anyOf") or [schema]
    return all(
        "enum" in one
        or "const" in one
        or one["type"] in {"boolean", "null"}
        or (one["type"] == "string" and "maxLength" in one)
        or (one["type"] in {"integer", "number"} and "maximum" in one)
        for one in choices
    )
