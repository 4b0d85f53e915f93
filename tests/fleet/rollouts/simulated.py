"""A fleet inside the store: boards answer jobs and serve requests without MQTT, by their names alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import sqlalchemy as sa

from edgekit.core.histogram import histogram
from edgekit.core.target import Target
from edgekit.fleet import schema as db
from edgekit.fleet.commit import expire_silent_jobs
from edgekit.fleet.figures import Sum
from edgekit.fleet.names import BUNDLE, EXIT, ids_of
from edgekit.fleet.rollouts import commands
from edgekit.fleet.rollouts.conduct import step
from edgekit.fleet.rollouts.plan import Plan
from edgekit.fleet.rollouts.states import OVER
from edgekit.fleet.rollouts.views import rollout_detail
from edgekit.fleet.store import Store, insert_new

PROFILES = ("raspberrypi5", "raspberrypi4b", "jetson-orin-nano")
OLD, NEW = "toy/1", "toy/2"
START = 1_800_000_000.0
REQUESTS = 60  # of a board in one go
TARGETS: dict[str, Target] = {
    OLD: Target("toy", 1, PROFILES, "run", "allowed", "a" * 64),
    NEW: Target("toy", 2, PROFILES, "run", "current", "b" * 64),
}
LATENCIES = [2.0] * 97 + [4.0] * 3


def share(name: str, salt: str) -> float:
    """A number in [0, 1) that belongs to a board."""
    return int.from_bytes(hashlib.sha256(f"{salt}/{name}".encode()).digest()[:6], "big") / 2**48


class Fleet:
    """failing, silent: shares of boards; slow: profile -> factor of its latencies on the new bundle."""

    def __init__(
        self,
        store: Store,
        boards: int,
        *,
        failing: float = 0.0,
        silent: float = 0.0,
        slow: Mapping[str, float] | None = None,
    ) -> None:
        self.store, self.now = store, START
        self.failing, self.silent, self.slow = failing, silent, dict(slow or {})
        self.targets = dict(TARGETS)
        with store.write() as connection:
            self._enroll(connection, boards)
            texts = ids_of(connection, BUNDLE, [OLD, NEW])
            self.bundles = {label: texts[label] for label in (OLD, NEW)}
            self.exit = ids_of(connection, EXIT, ["exit1"])["exit1"]
        self.serve(START - 1800)

    def _enroll(self, connection: sa.Connection, boards: int) -> None:
        rows = []
        for number in range(boards):
            name, profile = f"b{number:05}", PROFILES[number % len(PROFILES)]
            said = {"rev": 0, "bundle": OLD, "content_id": "a" * 64}
            rows.append(
                {
                    "name": name,
                    "profile": profile,
                    "tags": json.dumps(["site-a"]),
                    "enrolled_at": START,
                    "token_sha256": hashlib.sha256(name.encode()).hexdigest(),
                    "broker_hash": "x",
                    "reported": json.dumps(said),
                    "runs": OLD,
                }
            )
        connection.execute(sa.insert(db.devices), rows)

    def fails(self, name: str) -> bool:
        return share(name, "fails") < self.failing

    def is_silent(self, name: str) -> bool:
        return share(name, "silent") < self.silent

    def answer(self) -> None:
        """Every board that speaks does what its newest job asks of it."""
        states, jobs, devices = db.job_devices, db.jobs, db.devices
        query = (
            sa.select(states.c.job, states.c.device, jobs.c.target, devices.c.name)
            .join(jobs, jobs.c.id == states.c.job)
            .join(devices, devices.c.id == states.c.device)
            .where(states.c.state == "pending")
        )
        with self.store.write() as connection:
            done, failed, runs = [], [], []
            for row in connection.execute(query):
                if self.is_silent(row.name):
                    continue
                key = {"j": row.job, "d": row.device}
                if row.target == NEW and self.fails(row.name):
                    failed.append(key)
                    continue
                done.append(key)
                said = {"rev": 1, "bundle": row.target, "content_id": self.targets[row.target].content_id}
                runs.append({"d": row.device, "to_runs": row.target, "to_reported": json.dumps(said)})
            own = (states.c.job == sa.bindparam("j")) & (states.c.device == sa.bindparam("d"))
            for keys, values in (
                (done, {"state": "active"}),
                (failed, {"state": "failed", "reason": "golden"}),
            ):
                if keys:
                    connection.execute(sa.update(states).where(own).values(updated=self.now, **values), keys)
            if runs:
                change = sa.update(devices).where(devices.c.id == sa.bindparam("d"))
                values = {"runs": sa.bindparam("to_runs"), "reported": sa.bindparam("to_reported")}
                connection.execute(change.values(values), runs)
            expire_silent_jobs(connection, self.now)

    def serve(self, at: float | None = None) -> None:
        """A minute of requests of every board, on the bundle it runs."""
        at = int((self.now if at is None else at) // 60) * 60
        figures = {
            (label, profile): self._figures(self.slow.get(profile, 1.0) if label == NEW else 1.0)
            for label in (OLD, NEW)
            for profile in PROFILES
        }
        with self.store.write() as connection:
            query = sa.select(db.devices.c.id, db.devices.c.runs, db.devices.c.profile)
            rows = [
                {
                    "device": row.id,
                    "at": at,
                    "bundle": self.bundles[row.runs],
                    **figures[row.runs, row.profile],
                }
                for row in connection.execute(query)
            ]
            insert_new(connection, db.minutes, rows)

    def _figures(self, factor: float) -> dict[str, Any]:
        counts = histogram([value * factor for value in LATENCIES])
        found = Sum(records=1, requests=len(LATENCIES), latency=dict(counts.counts), exits={self.exit: 100})
        return found.values()

    def start(self, **plan: Any) -> str:
        whole = Plan.parse({"target": NEW, "to": "all", **plan})
        with self.store.write() as connection:
            return commands.create(connection, whole, self.targets, "operator", self.now)

    def step(self) -> bool:
        return step(self.store, self.now, lambda: self.targets)

    def detail(self, rollout_id: str) -> dict[str, Any]:
        with self.store.read() as connection:
            return rollout_detail(connection, rollout_id, self.now)

    def state(self, rollout_id: str) -> str:
        with self.store.read() as connection:
            state = connection.scalar(
                sa.select(db.rollouts.c.state).where(db.rollouts.c.rollout_id == rollout_id)
            )
        assert state is not None
        return state

    def run(
        self,
        rollout_id: str,
        *,
        tick_s: float = 300.0,
        until: Callable[[str], bool] = lambda state: state in OVER or state == "paused",
        most: int = 300,
    ) -> dict[str, Any]:
        """Let time pass until the rollout is where it should be."""
        for _ in range(most):
            while self.step():
                pass
            if until(self.state(rollout_id)):
                return self.detail(rollout_id)
            self.answer()
            self.now += tick_s
            self.serve()
        raise AssertionError(f"still {self.detail(rollout_id)}")
