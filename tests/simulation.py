"""tools/simulated_fleet.py as a process that tests talk to, and boards enrolled for it without asking the API."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from agents import until

from edgekit.fleet import schema as db
from edgekit.fleet.config import FleetConfig
from edgekit.fleet.enroll import enroll, write_broker_files
from edgekit.fleet.reading import ROLLED
from edgekit.fleet.store import get_fact, open_store

SIMULATED_FLEET = Path(__file__).parents[1] / "tools" / "simulated_fleet.py"


def enroll_many(
    config: FleetConfig, count: int, path: Path, profiles: Sequence[str] = ("raspberrypi5",)
) -> list[str]:
    """Enroll boards in one transaction, write their credentials, and tell the broker; their names."""
    store = open_store(config.database_url)
    names = [f"sim-{number:05d}" for number in range(count)]
    lines = []
    with store.write() as connection:
        for number, name in enumerate(names):
            profile = profiles[number % len(profiles)]
            given = enroll(connection, name, profile, [f"site-{number % 4}"], time.time())
            lines.append(json.dumps({"name": name, "password": given.mqtt_password, "profile": profile}))
    path.write_text("\n".join(lines) + "\n")
    write_broker_files(config, store)
    store.close()
    return names


class Simulation:
    """The process. `progress` is the last one it gave."""

    def __init__(
        self, credentials: Path, port: int, *arguments: str, scenario: Mapping[str, Any] | None = None
    ) -> None:
        command = [
            sys.executable,
            str(SIMULATED_FLEET),
            "--credentials",
            str(credentials),
            "--port",
            str(port),
        ]
        if scenario is not None:
            file = credentials.with_suffix(".scenario")
            file.write_text(json.dumps(scenario))
            command += ["--scenario", str(file)]
        self.process = subprocess.Popen(
            [*command, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.progress: dict[str, Any] = {}
        self.ready: dict[str, Any] = {}
        self._answers: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        until(lambda: self.ready or self.process.poll() is not None, "the simulated fleet's start")

    def _read(self) -> None:
        for line in self.process.stdout:
            said = json.loads(line)
            if "progress" in said:
                self.progress = said["progress"]
            elif "ready" in said:
                self.ready = said["ready"]
            else:
                self._answers.put(said)

    def do(self, command: str, /, **more: Any) -> dict[str, Any]:
        """Give a command, and its answer."""
        self.process.stdin.write(json.dumps({"do": command, **more}) + "\n")
        self.process.stdin.flush()
        return self._answers.get(timeout=20)

    def made(self, folder: Path) -> dict[str, list[list[Any]]]:
        """Board -> [boot, last, records, events, job events] of each of its starts."""
        answer = self.do("made", file=str(folder / "made.jsonl"))
        rows = map(json.loads, Path(answer["file"]).read_text().splitlines())
        return {row["name"]: row["boots"] for row in rows}

    def settle(self, timeout_s: float = 60.0) -> None:
        """Make no more, and wait until all that was made is acknowledged."""
        self.do("set", making=False)
        before = self.progress.get("at")
        until(
            lambda: self.progress.get("at") != before and self.progress["held"] == 0,
            "the last ack",
            timeout_s,
        )

    def stop(self) -> int:
        """Say goodbye; its exit code."""
        if self.process.poll() is None:
            self.process.stdin.close()
        code = self.process.wait(20)
        self._reader.join()
        return code


def stored(config: FleetConfig, table: Any) -> dict[tuple[str, str], list[int]]:
    """(board, boot) -> the numbers of one kind that are in the store."""
    store = open_store(config.database_url)
    joined = table.join(db.boots, db.boots.c.id == table.c.boot)
    joined = joined.join(db.devices, db.devices.c.id == db.boots.c.device)
    query = sa.select(db.devices.c.name, db.boots.c.boot_id, table.c.seq).select_from(joined)
    found: dict[tuple[str, str], list[int]] = {}
    with store.read() as connection:
        for name, boot, seq in connection.execute(query):
            found.setdefault((name, boot), []).append(seq)
    store.close()
    return found


def check_all_stored_once(config: FleetConfig, made: Mapping[str, list[list[Any]]]) -> int:
    """Every number that a board used is there once, in the table of its kind, and no other; how many records."""
    kinds = [stored(config, table) for table in (db.records, db.events, db.job_events)]
    told = set()
    for name, boots in made.items():
        for boot, last, *counts in boots:
            there = [kind.get((name, boot), []) for kind in kinds]
            assert sorted(chain.from_iterable(there)) == list(range(1, last + 1)), (name, boot)
            assert [len(numbers) for numbers in there] == counts, (name, boot)
            told.add((name, boot))
    assert set().union(*kinds) == told
    return sum(map(len, kinds[0].values()))


def check_roll_ups(config: FleetConfig, records: int, timeout_s: float = 60.0) -> None:
    """Once the background process has come so far, each roll-up holds every record once."""
    store = open_store(config.database_url)
    tables = (db.minutes, db.hours, db.fleet_minutes, db.fleet_hours, db.fleet_totals)

    def rolled() -> bool:
        with store.read() as connection:
            newest = connection.scalar(sa.select(sa.func.max(db.records.c.id)))
            return bool((get_fact(connection, ROLLED) or 0) >= newest)

    try:
        until(rolled, "the roll-ups", timeout_s)
        with store.read() as connection:
            sums = {
                table.name: connection.scalar(sa.select(sa.func.sum(table.c.records))) for table in tables
            }
        assert sums == dict.fromkeys(sums, records)
    finally:
        store.close()
