"""A fleet's server under load: broker, server and simulated boards, what they take, what is in the store at the end.

Helpers of fleet.py and fleet_rollout.py; servers and boards are the tests' own (tests/).
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tools")]

from edgekit.fleet import schema as db  # noqa: E402
from edgekit.fleet.enroll import prepare  # noqa: E402
from edgekit.fleet.reading import ROLLED  # noqa: E402
from edgekit.fleet.store import Store, get_fact, open_store  # noqa: E402

servers = importlib.import_module("servers")
simulation = importlib.import_module("simulation")

PROFILES = ("raspberrypi5", "raspberrypi4b", "jetson-orin-nano")


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def memory_mb(pid: int) -> dict[str, float]:
    """Resident memory, and its own share of what is shared with others."""
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        key, _, rest = line.partition(":")
        if key in {"Rss", "Pss"}:
            found[key.lower()] = int(rest.split()[0]) / 1024
    return found


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Watch:
    """Memory and processor time of the server's processes and the broker, sampled until it is closed."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids, self._begun = pids, time.monotonic()
        self._cpu = {name: cpu_s(pid) for name, pid in pids.items()}
        self.highest: dict[str, dict[str, float]] = {}
        self.sum_mb = {"rss": 0.0, "pss": 0.0}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        while not self._stop.wait(2.0):
            self._look()

    def _look(self) -> None:
        now = {name: memory_mb(pid) for name, pid in self._pids.items()}
        for name, found in now.items():
            seen = self.highest.setdefault(name, {"rss": 0.0, "pss": 0.0})
            for key, value in found.items():
                seen[key] = max(seen[key], round(value, 1))
        for key, highest in self.sum_mb.items():
            own = sum(found[key] for name, found in now.items() if name != "mosquitto")
            self.sum_mb[key] = max(highest, round(own, 1))

    def close(self) -> dict[str, Any]:
        self._stop.set()
        self._thread.join()
        self._look()
        spent = time.monotonic() - self._begun
        shares = {name: round((cpu_s(pid) - self._cpu[name]) / spent, 3) for name, pid in self._pids.items()}
        return {"server_mb": self.sum_mb, "by_process_mb": self.highest, "cpu_share": shares}


def pid_of(folder: Path) -> int:
    """Mosquitto's process."""
    return int((folder / "broker" / "pid").read_text())


@contextmanager
def served(
    folder: Path, boards: int, *arguments: str, scenario: Mapping[str, Any] | None = None
) -> Iterator[tuple[Any, Any, Any]]:
    """Broker, server, simulated boards; all ended by their process ids."""
    with ExitStack() as stack:
        broker = servers.Broker(folder / "broker")
        stack.callback(broker.stop)
        config = servers.write_config(folder, broker.port)
        prepare(config)
        credentials = folder / "boards.jsonl"
        simulation.enroll_many(config, boards, credentials, PROFILES)
        server = servers.FleetServer(config)
        stack.callback(server.end)
        options = ("--control-key", str(config.control_public_file), *arguments)
        fleet = simulation.Simulation(credentials, broker.port, *options, scenario=scenario)
        stack.callback(fleet.stop)
        yield broker, server, fleet


def until(ready: Callable[[], bool], timeout_s: float, what: str, fleet: Any = None) -> float:
    """Wait; how long it took in seconds. fleet: say every 5 s how it is."""
    begun = said = time.monotonic()
    while not ready():
        if time.monotonic() - begun > timeout_s:
            raise SystemExit(f"{what} did not happen within {timeout_s:g} s")
        if fleet is not None and time.monotonic() - said > 5:
            said = time.monotonic()
            shown = ("connected", "made", "held", "sent", "sent_again", "lost")
            say(f"{what}: { {key: fleet.progress[key] for key in shown} }")
        time.sleep(0.1)
    return round(time.monotonic() - begun, 1)


def compare(config: Any, fleet: Any, folder: Path) -> dict[str, Any]:
    """Each (board, boot) that made something against the store; then the roll-ups against the records."""
    made = fleet.made(folder)
    store = open_store(config.database_url)
    wrong = 0
    try:
        stored = {what: counted(store, getattr(db, what)) for what in ("records", "events", "job_events")}
        for name, boots in made.items():
            for boot, last, *kinds in boots:
                there = [stored[what][name, boot] for what in ("records", "events", "job_events")]
                wrong += there != kinds or sum(there) != last
        strangers = sum(map(len, stored.values())) - sum(
            (name, boot[0]) in stored[what]
            for what in stored
            for name, boots in made.items()
            for boot in boots
        )
        rolled_s = until(lambda: all_rolled(store), 300, "the roll-ups")
        with store.read() as connection:
            totals = {
                table.name: connection.scalar(sa.select(sa.func.sum(table.c.records)))
                for table in (db.minutes, db.hours, db.fleet_minutes, db.fleet_hours, db.fleet_totals)
            }
    finally:
        store.close()
    records = sum(stored["records"].values())
    return {
        "records": records,
        "boots": sum(map(len, made.values())),
        "boots_that_differ": wrong + strangers,
        "rolled_up_after_s": rolled_s,
        "roll_ups_agree": set(totals.values()) == {records},
    }


def counted(store: Store, table: Any) -> Counter[tuple[str, str]]:
    """(board, boot) -> how many rows. That none is there twice is the table's own key."""
    joined = table.join(db.boots, db.boots.c.id == table.c.boot)
    joined = joined.join(db.devices, db.devices.c.id == db.boots.c.device)
    key = (db.devices.c.name, db.boots.c.boot_id)
    query = sa.select(*key, sa.func.count()).select_from(joined).group_by(*key)
    with store.read() as connection:
        return Counter({(name, boot): count for name, boot, count in connection.execute(query)})


def all_rolled(store: Store) -> bool:
    with store.read() as connection:
        last = connection.scalar(sa.select(sa.func.max(db.records.c.id)))
        return bool((get_fact(connection, ROLLED) or 0) >= (last or 0))
