"""How many boards there may be, and what a machine that does not lead must have been given."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from servers import NOW
from starlette.testclient import TestClient

from edgekit.core.errors import BadInput
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.config import FleetConfig, Ingesters, Limits
from edgekit.fleet.enroll import Taken, enroll, prepare, revoke
from edgekit.fleet.store import Store


def test_more_boards_than_the_limit_are_refused_and_those_that_are_there_stay(
    store: Store, boards: tuple[str, ...]
) -> None:
    with store.write() as connection:
        with pytest.raises(BadInput, match=r"3 boards are enrolled, and limits.devices is 3: .*fleet.toml"):
            enroll(connection, "fourth", None, [], NOW, most=3)
        enroll(connection, boards[0], None, [], NOW, again=True, most=3)
        with pytest.raises(Taken):
            enroll(connection, boards[0], None, [], NOW, most=3)


def test_a_revoked_board_makes_room_and_needs_it_to_come_back(store: Store, boards: tuple[str, ...]) -> None:
    with store.write() as connection:
        revoke(connection, boards[0], NOW)
        enroll(connection, "fourth", None, [], NOW, most=3)
        with pytest.raises(BadInput, match="3 boards are enrolled"):
            enroll(connection, boards[0], None, [], NOW, again=True, most=3)


def test_the_limit_of_fleet_toml_is_the_one_that_counts(context: Context) -> None:
    config = dataclasses.replace(context.config, limits=Limits(devices=1))
    with TestClient(
        make_app(dataclasses.replace(context, config=config)), base_url="http://127.0.0.1"
    ) as web:
        web.headers["authorization"] = f"Bearer {context.token}"
        answers = [web.post("/api/v1/devices", json={"name": name}) for name in ("a", "b")]
    assert [answer.status_code for answer in answers] == [201, 400]
    assert "limits.devices is 1" in answers[1].json()["error"]


def test_a_machine_that_does_not_lead_draws_no_password_the_broker_would_not_know(
    config: FleetConfig, tmp_path: Path
) -> None:
    second = dataclasses.replace(
        config, data_dir=tmp_path / "second", ingest=Ingesters(leader=False, first=2)
    )
    broker = dataclasses.replace(
        config.broker, password_file=tmp_path / "second" / "broker.password", tls=True
    )
    second = dataclasses.replace(second, broker=broker)
    with pytest.raises(BadInput, match=r"broker.password and .*client.pem must be a copy of the leader's"):
        prepare(second)
    assert not (tmp_path / "second").exists()
