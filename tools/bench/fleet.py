#!/usr/bin/env python3
"""What the fleet's server bears: ingest alone, thousands of connected boards, questions to a full store.

    python tools/bench/fleet.py [--quick] [--part ingest|load|queries|rollout] [--boards N] [--seconds S]

- ingest: payload bytes to commit through the functions that the ingester calls, into SQLite and PostgreSQL, with
  messages of 60 Records (a board that was away) and of one, with and without the background process rolling up.
- load: `edgekit fleet serve` and Mosquitto on loopback, 10,000 simulated boards with a Record every 10 s each; then
  the broker is restarted; at the end every Record made must be in the store exactly once, and in the roll-ups.
- queries: a store with a week of hours for 10,000 boards and a day of minutes for 500, and every GET of the API
  and every screen asked again and again while boards send 500 Records a second.
- rollout: a bundle that doubles p99 on one profile to 2,000 boards, of which 5 % fail and 3 % fall silent: the canary's
  gate must take it back; then a healthy one, which must reach the others. About four minutes.

Servers, brokers and the big store are the tests' own helpers (tests/). Prints one JSON object; exit code 1 where a
target is missed. A part that cannot run here (no PostgreSQL) says so.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools.bench.fleet_rollout import measure_rollout, rollout_verdicts
    from tools.bench.fleet_site import PROFILES, Watch, compare, pid_of, say, served, until
else:
    from fleet_site import PROFILES, Watch, compare, pid_of, say, served, until  # isort: skip
    from fleet_rollout import measure_rollout, rollout_verdicts

from edgekit.core.messages import encode, topic
from edgekit.fleet import schema as db
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.enroll import enroll, prepare
from edgekit.fleet.intake import read_message
from edgekit.fleet.store import Store, open_store

servers = importlib.import_module("servers")
simulation = importlib.import_module("simulation")
big_store = importlib.import_module("big_store")
behaviour = importlib.import_module("simulated_behaviour")

TARGETS = {
    "sqlite_records_per_s": 20_000,
    "postgresql_records_per_s": 10_000,
    "lag_p99_s": 2.0,
    "rss_mb": 400.0,
    "back_s": 120.0,
    "query_p95_ms": 300.0,
}
PARTS = ("ingest", "load", "queries", "rollout")
RATE_IN_QUERIES = 500
BATCHES = {60: 50, 1: 500}  # Records in a message -> messages in a transaction, the ingester's own most


# --- ingest alone ------------------------------------------------------------------------------------------------


def made_messages(boards: int, records: int, each: int) -> list[tuple[str, bytes]]:
    """(topic, payload) as boards send them: `each` Records in a message, boards in turn."""
    intervals = behaviour.Intervals(behaviour.Scenario())
    now, found = time.time(), []
    for number in range(records // each):
        board, step = number % boards, number // boards
        templates = intervals.of(PROFILES[board % 3], "demo/1", 60.0)
        first = step * each + 1
        entries = [
            templates[(board + seq) % len(templates)]
            | {"seq": seq, "time": round(now - 3600 + 60 * (seq - first), 3), "uptime": 60.0 * seq}
            for seq in range(first, first + each)
        ]
        payload = {"boot_id": f"boot{board}", "floor": first, "records": entries}
        found.append((topic("demo", f"board-{board}", "telemetry"), encode(payload)))
    return found


def ingest_rate(store: Store, boards: int, records: int, each: int) -> dict[str, Any]:
    """Records a second from payload bytes to commit."""
    with store.write() as connection:
        for number in range(boards):
            enroll(connection, f"board-{number}", PROFILES[number % 3], [], time.time())
    messages = made_messages(boards, records, each)
    read_s, at_once, longest = 0.0, BATCHES[each], 0.0
    begun = time.perf_counter()
    for first in range(0, len(messages), at_once):
        batch_begun = time.perf_counter()
        received = [read_message("demo", *message) for message in messages[first : first + at_once]]
        committing = time.perf_counter()
        read_s += committing - batch_begun
        with store.write() as connection:
            commit_batch(connection, received, [], time.time())
        longest = max(longest, time.perf_counter() - committing)
    spent = time.perf_counter() - begun
    count = len(messages) * each
    with store.read() as connection:
        stored = connection.scalar(sa.select(sa.func.count()).select_from(db.records))
    if stored != count:
        raise SystemExit(f"{count} Records were sent and {stored} are stored")
    return {
        "records_per_s": round(count / spent),
        "reading_share": round(read_s / spent, 2),
        "longest_commit_ms": round(1000 * longest, 1),
        "records": count,
        "in_a_message": each,
        "payload_bytes_per_record": round(sum(len(data) for _, data in messages) / count),
    }


@contextmanager
def background(config: Any) -> Iterator[subprocess.Popen[bytes]]:
    """The process that rolls up, as `fleet serve` starts it."""
    reading, writing = os.pipe()
    command = [sys.executable, "-m", "edgekit.fleet.child", "background", str(config.path), str(reading)]
    process = subprocess.Popen(command, pass_fds=(reading,), stderr=subprocess.DEVNULL)
    os.close(reading)
    try:
        yield process
    finally:
        os.close(writing)
        process.wait()


def measure_ingest(quick: bool) -> dict[str, Any]:
    records, boards = (6_000, 100) if quick else (120_000, 2_000)
    result: dict[str, Any] = {}
    for name in ("sqlite", "postgresql"):
        for each in BATCHES:
            for rolled in (False, True):
                with ExitStack() as stack:
                    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                    more = {} if name == "sqlite" else {"database_url": postgres_database()}
                    config = servers.write_config(folder, 1, **more)
                    prepare(config)
                    store = stack.enter_context(closing(open_store(config.database_url)))
                    if rolled:
                        stack.enter_context(background(config))
                    found = ingest_rate(store, boards, records // (1 if each > 1 else 4), each)
                key = f"{name}, {each} a message, {'rolling up' if rolled else 'alone'}"
                result[key] = found
                say(f"{key}: {found}")
    return result


_POSTGRES: list[Any] = []


def postgres_database() -> str:
    """A new database of a server that keeps what it committed; started when it is first wanted."""
    postgres = importlib.import_module("postgres")
    if not _POSTGRES:
        _POSTGRES.append(postgres.make_postgres(safe=True, settings={"shared_buffers": "128MB"}))
    server = _POSTGRES[0]
    return str(server.url(server.new_database()))


# --- thousands of boards -----------------------------------------------------------------------------------------


def measure_load(boards: int, seconds: float, interval_s: float) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ("--interval-s", str(interval_s), "--ramp-s", str(boards / 500))
        with served(folder, boards, *options) as (broker, server, fleet):
            ramp_s = until(lambda: fleet.progress.get("connected") == boards, 180, "all connections")
            say(f"{boards} connected in {ramp_s} s")
            time.sleep(min(15.0, seconds / 2))  # what is sent at a birth is through
            watch = Watch(
                {"supervisor": server.process.pid, **server.children(), "mosquitto": pid_of(folder)}
            )
            fleet.do("mark")
            before = fleet.progress
            shares = []
            for _ in range(max(1, round(seconds / 5))):
                time.sleep(5)
                shares.append(fleet.progress["cpu_share"])
                say(
                    f"made {fleet.progress['made']} held {fleet.progress['held']} {fleet.progress['lag_since_mark_s']}"
                )
            after = fleet.progress
            steady = {
                "boards": boards,
                "interval_s": interval_s,
                "seconds": seconds,
                "ramp_s": ramp_s,
                "records": after["records"] - before["records"],
                "records_per_s": round(
                    (after["records"] - before["records"]) / (after["at"] - before["at"]), 1
                ),
                "lag_s": after["lag_since_mark_s"],
                "sent_again": after["sent_again"] - before["sent_again"],
                **watch.close(),
                "simulator_cpu_share": round(statistics.mean(shares), 3),
                "simulator_rss_mb": after["rss_mb"],
            }
            say(f"steady: {steady}")
            restart = broker_restart(broker, fleet, boards)
            say(f"restart: {restart}")
            fleet.settle(180)
            exact = compare(server.config, fleet, folder)
        return {"steady": steady, "broker_restart": restart, "exactly_once": exact}


def broker_restart(broker: Any, fleet: Any, boards: int) -> dict[str, Any]:
    """Kill the broker, start it again after 5 s, and wait until all boards are back and what waited has arrived."""
    broker.stop()
    until(lambda: fleet.progress["connected"] == 0, 60, "the loss of all")
    time.sleep(5)
    held = fleet.progress["held"]
    broker.start()
    back_s = until(lambda: fleet.progress["connected"] == boards, 300, "the return of all", fleet)
    fleet.do("mark")
    waited_s = until(lambda: fleet.progress["held"] < boards / 5, 300, "the end of the backlog", fleet)
    return {
        "away_s": 5,
        "held_then": held,
        "back_s": back_s,
        "backlog_gone_after_s": round(back_s + waited_s, 1),
    }


# --- questions ---------------------------------------------------------------------------------------------------

PLACES = {"bundles/{name}": "bundles/toy", "profiles/{name}": "profiles/raspberrypi5", "{name}": "b00007"}
UNASKED = ("repo/files", "stick", "openapi", "/export")  # streams, as long as one likes
PAGES = (
    "/",
    "/?window=7d",
    "/boards",
    "/boards?state=offline&sort=p99&descending=True",
    "/board/b00007",
    "/board/b00007?window=7d",
    "/bundles",
    "/bundle/toy",
    "/jobs",
    "/rollouts",
    "/alerts",
    "/events",
)


class Visitor:
    """Asks as a program, by the server's token; or as a browser that a login link let in."""

    def __init__(self, server: Any) -> None:
        self.url = server.url
        self._token = {"Authorization": f"Bearer {server.token}"}
        self._browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor())
        self._browser.open(server.login_link("/account"), timeout=60).close()

    def get(self, path: str) -> tuple[int, float, bytes]:
        """Status, seconds and body of one GET; of a screen it is the page with its figures in it."""
        api = path.startswith("/api/")
        request = urllib.request.Request(self.url + path, headers=self._token if api else {})  # noqa: S310
        begun = time.perf_counter()
        try:
            opened = urllib.request.urlopen if api else self._browser.open  # our own server, on loopback
            with opened(request, timeout=60) as answer:
                data, status = answer.read(), answer.status
        except urllib.error.HTTPError as err:
            data, status = err.read(), err.code
        return status, time.perf_counter() - begun, data


def paths_of(visitor: Visitor) -> list[str]:
    """Every GET of the API, with names put in; some with the parameters that the page uses; and every screen."""
    status, _, data = visitor.get("/api/v1/openapi.json")
    if status != 200:
        raise SystemExit(f"the server does not describe its API: {status}")
    described = json.loads(data)
    listed = json.loads(visitor.get("/api/v1/jobs")[2])["jobs"]
    jobs = {"{job_id}": listed[0]["job_id"]} if listed else {}
    found = []
    for path, methods in described["paths"].items():
        if "get" in methods and not any(word in path for word in UNASKED):
            wanted = path
            for key, value in (PLACES | jobs).items():
                wanted = wanted.replace(key, value)
            found.append(wanted)
    device = "/api/v1/devices/b00007"
    wide = [f"{device}?window_s={seconds}" for seconds in (3600, 86_400, 604_800)]
    wide += [f"/api/v1/{what}?window_s=604800" for what in ("status", "devices")]
    pages = [*PAGES, *(f"/job/{job}" for job in jobs.values())]
    return [path for path in found if "{" not in path] + wide + pages


def measure_queries(quick: bool) -> dict[str, Any]:
    size = big_store.SMALL if quick else big_store.Size()
    rounds, boards = (5, 50) if quick else (20, RATE_IN_QUERIES)
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        broker = servers.Broker(folder / "broker")
        stack.callback(broker.stop)
        config = servers.write_config(folder, broker.port)
        prepare(config)
        begun = time.monotonic()
        store = open_store(config.database_url)
        big_store.fill(store, time.time(), size)
        store.close()
        filled_s = round(time.monotonic() - begun, 1)
        say(f"filled in {filled_s} s")
        simulation.enroll_many(config, boards, folder / "boards.jsonl", PROFILES)
        server = servers.FleetServer(config)
        stack.callback(server.end)
        options = ("--interval-s", "1", "--ramp-s", "5")
        fleet = simulation.Simulation(folder / "boards.jsonl", broker.port, *options)
        stack.callback(fleet.stop)
        until(lambda: fleet.progress.get("connected") == boards, 120, "all connections")
        time.sleep(5)
        fleet.do("mark")
        began = fleet.progress
        found = ask(Visitor(server), rounds)
        ended = fleet.progress
        with closing(sqlite3.connect(config.data_dir / "fleet.db")) as file:
            pages = (
                file.execute("PRAGMA page_count").fetchone()[0]
                * file.execute("PRAGMA page_size").fetchone()[0]
            )
        return {
            "boards": size.boards,
            "hours": size.hours,
            "minute_boards": size.minute_boards,
            "store_mb": round(pages / 1e6),
            "filled_s": filled_s,
            "records_per_s": round(
                (ended["records"] - began["records"]) / max(1e-9, ended["at"] - began["at"])
            ),
            "lag_s": ended["lag_since_mark_s"],
            "rss_mb": Watch({"supervisor": server.process.pid, **server.children()}).close()["server_mb"],
            "routes": found,
        }


def ask(visitor: Visitor, rounds: int) -> dict[str, Any]:
    """Path -> p50 and p95 in ms, bytes, status."""
    found: dict[str, Any] = {}
    for path in paths_of(visitor):
        taken: list[float] = []
        for _ in range(rounds):
            status, seconds, data = visitor.get(path)
            taken.append(1000 * seconds)
        found[path] = {
            "p50_ms": quantile(taken, 50),
            "p95_ms": quantile(taken, 95),
            "bytes": len(data),
            "status": status,
        }
        say(f"{path}: {found[path]}")
    return found


def quantile(values: Sequence[float], percent: int) -> float:
    ordered = sorted(values)
    return round(ordered[min(len(ordered) - 1, round(percent / 100 * (len(ordered) - 1)))], 1)


# --- all of it ---------------------------------------------------------------------------------------------------


def verdicts(result: dict[str, Any]) -> dict[str, bool]:
    """Which targets are met, of the parts that ran."""
    found = {}
    for key, row in result.get("ingest", {}).items():
        found[f"{key}: records/s"] = row["records_per_s"] >= TARGETS[f"{key.partition(',')[0]}_records_per_s"]
    if "load" in result:
        load = result["load"]
        exact = load["exactly_once"]
        found["lag p99"] = load["steady"]["lag_s"]["p99"] <= TARGETS["lag_p99_s"]
        found["server memory"] = load["steady"]["server_mb"]["rss"] <= TARGETS["rss_mb"]
        found["back after a broker restart"] = load["broker_restart"]["back_s"] <= TARGETS["back_s"]
        found["exactly once"] = exact["boots_that_differ"] == 0 and exact["roll_ups_agree"]
    if "rollout" in result:
        found |= rollout_verdicts(result["rollout"])
    for path, row in result.get("queries", {}).get("routes", {}).items():
        found[f"GET {path}"] = row["p95_ms"] <= TARGETS["query_p95_ms"] and row["status"] == 200
    return found


def machine() -> str:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few boards, a few seconds of each part")
    parser.add_argument("--part", action="append", choices=PARTS, help="only this one")
    parser.add_argument("--boards", type=int, help="of the parts `load` (10000) and `rollout` (2000)")
    parser.add_argument("--seconds", type=float, help="of the part `load`; 300")
    wanted = parser.parse_args()
    parts = wanted.part or PARTS
    result: dict[str, Any] = {
        "machine": machine(),
        "versions": {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
        | {name: version(name) for name in ("sqlalchemy", "paho-mqtt", "psycopg")},
        "targets": TARGETS,
    }
    if "ingest" in parts:
        result["ingest"] = measure_ingest(wanted.quick)
    if "load" in parts:
        boards = wanted.boards or (200 if wanted.quick else 10_000)
        seconds = wanted.seconds or (5.0 if wanted.quick else 300.0)
        result["load"] = measure_load(boards, seconds, 2.0 if wanted.quick else 10.0)
    if "queries" in parts:
        result["queries"] = measure_queries(wanted.quick)
    if "rollout" in parts:
        result["rollout"] = measure_rollout(wanted.boards or (60 if wanted.quick else 2_000), wanted.quick)
    result["met"] = verdicts(result)
    print(json.dumps(result))
    return int(not all(result["met"].values()))


if __name__ == "__main__":
    raise SystemExit(main())
