"""Whole rollouts at the store's level: 2,000 boards, a bad bundle and a good one, and a server that is killed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import sqlalchemy as sa
from fleet.rollouts.simulated import NEW, OLD, PROFILES, Fleet

from edgekit.fleet import schema as db
from edgekit.fleet.store import Store

BAD = PROFILES[2]


class Killed(Exception):
    """The process ends here."""


def runs(store: Store) -> dict[str, int]:
    with store.read() as connection:
        query = sa.select(db.devices.c.runs, sa.func.count()).group_by(db.devices.c.runs)
        return {row[0]: row[1] for row in connection.execute(query)}


@pytest.mark.both_databases
def test_a_bundle_that_doubles_p99_on_one_profile_stops_at_the_canary_and_goes_back(store: Store) -> None:
    fleet = Fleet(store, 2000, failing=0.05, silent=0.03, slow={BAD: 2.0})
    found = fleet.run(fleet.start())
    assert found["state"] == "rolled_back"
    assert found["wave"] == 0
    assert [wave["state"] for wave in found["waves"]] == ["failed", "waiting", "waiting"]
    assert found["boards"]["asked"] == 102  # 5 % of each of 667, 667 and 666 boards, rounded up
    bad = [check for check in found["waves"][0]["verdict"]["checks"] if check["verdict"] == "failed"]
    assert {(check["scope"], check["figure"]) for check in bad} >= {(BAD, "p99")}
    assert PROFILES[0] not in {check["scope"] for check in bad}
    assert runs(store) == {OLD: 2000}
    said = " | ".join(line["text"] for line in found["audit"])
    assert f"{BAD}: p99" in said
    assert "canary failed its gate" in said
    assert "every board that was asked goes back" in said
    assert "boards are back" in said


@pytest.mark.both_databases
def test_the_healthy_bundle_reaches_everybody_who_can_take_it(store: Store) -> None:
    fleet = Fleet(store, 2000, failing=0.05, silent=0.03)
    found = fleet.run(fleet.start())
    assert found["state"] == "completed"
    assert [wave["state"] for wave in found["waves"]] == ["passed"] * 3
    boards = found["boards"]
    assert boards["asked"] == 2000
    assert boards["took"] == runs(store)[NEW]
    assert boards["took"] + boards["failed"] + boards["silent"] + boards["open"] == 2000
    assert boards["failed"] > 50
    assert boards["silent"] + boards["open"] > 30


def outcome(found: dict[str, Any], store: Store) -> Any:
    return (
        found["state"],
        found["boards"],
        [(wave["state"], wave["states"]) for wave in found["waves"]],
        [(line["action"], line["detail"].get("wave")) for line in found["audit"]],
        runs(store),
    )


class Killer:
    """Ends a step at its n-th statement from now on, then draws the next n."""

    def __init__(self, store: Store, seed: int) -> None:
        self.random, self.left, self.kills = random.Random(seed), 5, 0
        self.active = False
        self.engine = store.engine
        sa.event.listen(self.engine, "before_cursor_execute", self._count)
        sa.event.listen(self.engine, "commit", self._before_commit)

    def close(self) -> None:
        sa.event.remove(self.engine, "before_cursor_execute", self._count)
        sa.event.remove(self.engine, "commit", self._before_commit)

    def _count(self, *_: object) -> None:
        if not self.active:
            return
        self.left -= 1
        if self.left <= 0:
            self.left = self.random.randint(1, 25)
            self.kills += 1
            raise Killed

    def _before_commit(self, _connection: object) -> None:
        self._count()


@pytest.fixture
def killer(store: Store) -> Iterator[Killer]:
    made = Killer(store, 7)
    yield made
    made.close()


@pytest.mark.parametrize("slow", [{}, {BAD: 2.0}], ids=["healthy", "slow"])
def test_a_server_that_is_killed_between_any_two_statements_ends_the_same(
    store: Store, tmp_path: Any, killer: Killer, slow: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgekit.fleet.rollouts import conduct
    from edgekit.fleet.store import open_store

    monkeypatch.setattr(conduct, "SLICE", 7)
    calm_store = open_store(f"sqlite:///{tmp_path / 'calm.db'}")
    calm = Fleet(calm_store, 120, failing=0.05, silent=0.03, slow=slow)
    wanted = outcome(calm.run(calm.start()), calm_store)
    calm_store.close()

    fleet = Fleet(store, 120, failing=0.05, silent=0.03, slow=slow)
    rollout_id = fleet.start()
    monkeypatch.setattr(conduct.log, "exception", lambda *_: None)
    real = fleet.step

    def step() -> bool:
        killer.active = True
        kills = killer.kills
        try:
            more = real()
        except Killed:
            more = True
        finally:
            killer.active = False
        return more or killer.kills > kills

    monkeypatch.setattr(fleet, "step", step)
    assert outcome(fleet.run(rollout_id), store) == wanted
    assert killer.kills > 20
