"""Commands go out some at a time, each once, and are pending until the broker has them. No broker here."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from servers import FLEET, NOW

from edgekit.fleet import schema as db
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import enroll
from edgekit.fleet.store import Store
from edgekit.fleet.telling import AT_ONCE, UNDER_WAY, Teller
from edgekit.repo.keys import read_key


class Outbox:
    """Takes what is published, and numbers it."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, str]] = []

    def __call__(self, device: str, kind: str, _payload: dict[str, Any], _retain: bool) -> int:
        self.sent.append((device, kind))
        return len(self.sent)


@pytest.fixture
def outbox() -> Outbox:
    return Outbox()


@pytest.fixture
def teller(config: FleetConfig, store: Store, outbox: Outbox) -> Teller:
    return Teller(store, FLEET, read_key(config.control_key_file), lambda: NOW, outbox)


def command(store: Store, boards: int) -> None:
    """So many boards, each with a desired state that nobody was told."""
    row = {"rev": 1, "n": 1, "job_id": "j", "expires": NOW + 600, "pending": True}
    with store.write() as connection:
        for number in range(boards):
            enroll(connection, f"board-{number:04}", None, [], NOW)
        devices = connection.scalars(sa.select(db.devices.c.id)).all()
        connection.execute(sa.insert(db.desired), [{"device": device, **row} for device in devices])


def pending(store: Store) -> int:
    with store.read() as connection:
        count = sa.select(sa.func.count()).select_from(db.desired).where(db.desired.c.pending)
        return connection.scalar(count) or 0


def test_many_commands_go_out_in_slices_each_once(teller: Teller, outbox: Outbox, store: Store) -> None:
    command(store, 2 * AT_ONCE + 10)
    assert teller.step() is True
    assert len(outbox.sent) == AT_ONCE
    assert teller.step() is True
    assert teller.step() is False
    assert [len(outbox.sent), len(set(outbox.sent))] == [2 * AT_ONCE + 10] * 2
    assert teller.step() is False  # from the first again: they are on their way, and nobody spins
    assert len(outbox.sent) == 2 * AT_ONCE + 10
    teller.confirm((number + 1, True) for number in range(len(outbox.sent)))
    assert (pending(store), teller.sent) == (0, {})


def test_no_more_is_under_way_than_the_broker_should_hold(
    teller: Teller, outbox: Outbox, store: Store
) -> None:
    command(store, 3)
    teller.sent.update({-number: ("desired", -number, 1) for number in range(1, UNDER_WAY - 1)})
    teller.step()
    assert len(outbox.sent) == 2
    assert teller.step() is False
    teller.confirm([(-1, True)])
    teller.step()
    teller.step()
    assert len(set(outbox.sent)) == 3


def test_what_the_broker_refused_is_pending_and_sent_again_on_the_next_connection_alone(
    teller: Teller, outbox: Outbox, store: Store
) -> None:
    command(store, 1)
    teller.step()
    teller.confirm([(1, False)])
    teller.step()
    assert (len(outbox.sent), pending(store)) == (1, 1)
    teller.forget()
    teller.step()
    assert len(outbox.sent) == 2


def test_boards_that_are_born_are_told_again_some_at_a_time(
    teller: Teller, outbox: Outbox, store: Store
) -> None:
    command(store, AT_ONCE + 1)
    with store.write() as connection:
        connection.execute(sa.update(db.desired).values(pending=False))
    teller.born(f"board-{number:04}" for number in range(AT_ONCE + 1))
    assert teller.step() is True
    assert len(outbox.sent) == AT_ONCE
    assert teller.step() is False
    assert len(set(outbox.sent)) == AT_ONCE + 1
