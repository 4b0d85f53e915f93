#!/usr/bin/env python3
"""Simulate a fleet: up to 10,000 boards in one process, each with its own connection, client id, will and outbox.

    python tools/simulated_fleet.py --credentials boards.jsonl --port 1883 --control-key server/control.pub

A program that is told what to do by lines of JSON on stdin and answers by lines of JSON on stdout; where stdin ends,
it ends. Boards share with real ones what goes over the wire (edgekit.core); they keep what they made until the server
acknowledged it, come back by themselves, and walk through jobs. No network is run: Records are made up, by a seed.

boards.jsonl: a line {"name": ..., "password": ..., "profile": ...} for each board; without a profile the scenario
shares them out. Every second it says {"progress": {...}}: boards connected, made, acked and held items, lag in seconds
from making an item to its ack (of this second, and of all since the last `mark`), connections, its own CPU share.

Commands, each answered by {"answer": NAME, ...}:

    {"do": "made", "file": F}           write, a line a board, [boot, last, records, events, job events] of its starts
    {"do": "board", "name": N}          what one board runs and holds
    {"do": "set", ...}                  change the scenario (its keys), interval_s, or making (false: no new Records)
    {"do": "hang_up", "share": 0.5}     that share of the boards loses its connection (`names`: these)
    {"do": "reboot", "share": 0.5}      and starts anew
    {"do": "event", "name": N, "kind": K, "detail": {}}
    {"do": "mark"}                      begin a new account of lag
    {"do": "stop"}

A scenario (--scenario FILE, JSON; every key may be left out):

    {"seed": 1, "requests_per_s": 10, "profiles": {"raspberrypi5": 0.7, "raspberrypi4b": 0.3}, "bundle": "demo/1",
     "speed": {"raspberrypi4b": 2.2}, "step_s": 0.2,
     "bundles": {"demo/2": {"latency_ms": 3, "spread": 0.25, "energy_mj": 5, "exits": {"exit1": 0.8, "exit2": 0.2},
                            "on": {"raspberrypi4b": {"tail": 2.0, "latency": 1.0, "energy": 1.0}}}},
     "jobs": [{"target": "demo/2", "fail": 0.05, "reason": "golden", "silent": 0.03, "mute": 0}]}

`tail` is a factor on the slowest twentieth of requests: 2.0 doubles p99 and leaves p50. `silent` boards are gone from
the network once they are told, `mute` ones stay and say nothing of the job.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import gc
import json
import os
import random
import resource
import ssl
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from edgekit.core import checks
from edgekit.core.errors import BadInput, EdgekitError, one_line
from edgekit.core.histogram import Histogram, bucket_of

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools.simulated_behaviour import Intervals, Scenario, parse_scenario, read_scenario
    from tools.simulated_board import EVENT, JOB, RECORD, Board, World
else:
    from simulated_behaviour import Intervals, Scenario, parse_scenario, read_scenario
    from simulated_board import EVENT, JOB, RECORD, Board, World

_SPARE_DESCRIPTORS = 64
_LINE_LIMIT = 2**24
_FLEET_KEYS = ("interval_s", "making")


class Lags:
    """How long acks took, of items of one kind and of all; in buckets of core.histogram, in milliseconds there."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._sum = 0.0
        self._max = 0.0

    def add(self, seconds: float) -> None:
        bucket = bucket_of(seconds * 1000)
        self._counts[bucket] = self._counts.get(bucket, 0) + 1
        self._sum += seconds
        self._max = max(self._max, seconds)

    def to_json(self) -> dict[str, Any]:
        """count, mean, p50, p99, max in seconds; null of nothing."""
        found = Histogram(self._counts, self._sum * 1000)
        p50, p99 = found.percentile_ms(50), found.percentile_ms(99)
        return {
            "count": found.count,
            "mean": None if found.mean_ms is None else round(found.mean_ms / 1000, 4),
            "p50": None if p50 is None else round(p50 / 1000, 4),
            "p99": None if p99 is None else round(p99 / 1000, 4),
            "max": round(self._max, 4) if found.count else None,
        }


class Fleet:
    """The boards, and what is said of them."""

    def __init__(
        self, wanted: argparse.Namespace, boards: list[Mapping[str, Any]], scenario: Scenario
    ) -> None:
        self._wanted = wanted
        self._rng = random.Random(scenario.seed)
        self._second, self._all = Lags(), Lags()
        self._started, self._cpu = time.monotonic(), time.process_time()
        self._ended = asyncio.Event()
        self.world = World(
            fleet=wanted.fleet,
            host=wanted.host,
            port=wanted.port,
            tls=_tls(wanted),
            control_key=_control_key(wanted.control_key),
            scenario=scenario,
            intervals=Intervals(scenario),
            interval_s=wanted.interval_s,
            batch=wanted.batch,
            keepalive_s=wanted.keepalive_s,
            resend_s=wanted.resend_s,
            rng=self._rng.random,
            loop=asyncio.get_running_loop(),
            lag=self._lag,
        )
        self.boards = {
            board["name"]: Board(
                self.world,
                board["name"],
                board["password"],
                board.get("profile") or scenario.profile_of(board["name"]),
            )
            for board in boards
        }

    def _lag(self, seconds: float, kind: str) -> None:
        self._second.add(seconds)
        self._all.add(seconds)

    async def run(self) -> None:
        """Until `stop` or the end of stdin."""
        loop = self.world.loop
        for place, board in enumerate(self.boards.values()):
            board.start(self._wanted.ramp_s * place / len(self.boards))
        reader = loop.create_task(self._listen())
        watcher = loop.create_task(self._watch())
        await self._ended.wait()
        for task in (reader, watcher):
            task.cancel()
        for board in self.boards.values():
            board.stop()
        await asyncio.sleep(0.2)  # what was written goes out
        self._say_progress()

    async def _watch(self) -> None:
        """Look after the boards a slice at a time, and say how they are."""
        boards, slices, due = list(self.boards.values()), 10, time.monotonic() + self._wanted.report_s
        while True:
            for part in range(slices):
                now = self.world.loop.time()
                for board in boards[part::slices]:
                    board.look(now)
                await asyncio.sleep(1 / slices)
                if time.monotonic() >= due:
                    due = time.monotonic() + self._wanted.report_s
                    self._say_progress()

    def _say_progress(self) -> None:
        counts = self.world.counts
        cpu, now = time.process_time(), time.monotonic()
        share = (cpu - self._cpu) / max(1e-9, now - self._started)
        self._cpu, self._started = cpu, now
        second, self._second = self._second, Lags()
        _say(
            {
                "progress": {
                    "at": round(time.time(), 3),
                    "boards": len(self.boards),
                    "connected": counts["connected"],
                    "made": counts["made"],
                    "records": counts[f"made {RECORD}"],
                    "acked": counts["acked"],
                    "held": counts["made"] - counts["acked"],
                    "connections": counts["connections"],
                    "lost": counts["lost"],
                    "refused": counts["refused"],
                    "sent": counts["sent"],
                    "sent_bytes": counts["sent bytes"],
                    "sent_again": counts["sent again"],
                    "bad_messages": counts["bad messages"]
                    + counts["refused messages"]
                    + counts["protocol errors"],
                    "gone_silent": counts["gone silent"],
                    "jobs": dict(self.world.job_states),
                    "lag_s": second.to_json(),
                    "lag_since_mark_s": self._all.to_json(),
                    "cpu_share": round(share, 3),
                    "rss_mb": round(_rss_mb(), 1),
                }
            }
        )

    # --- commands ------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        reader = asyncio.StreamReader(_LINE_LIMIT)
        protocol = asyncio.StreamReaderProtocol(reader)
        await self.world.loop.connect_read_pipe(lambda: protocol, sys.stdin)
        while line := await reader.readline():
            name = "?"
            try:
                said = checks.table(checks.parse_json(line, "command"), "command")
                name = checks.choice(said.get("do"), "do", list(self._commands))
                _say({"answer": name, **self._commands[name](said)})
            except EdgekitError as err:
                _say({"answer": name, "error": one_line(err)})
        self._ended.set()

    @property
    def _commands(self) -> Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Any]]]:
        return {
            "made": self._made,
            "board": self._board,
            "set": self._set,
            "hang_up": self._hang_up,
            "reboot": self._reboot,
            "event": self._event,
            "mark": self._mark,
            "stop": self._stop,
        }

    def _made(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        path = Path(checks.text(said.get("file"), "file"))
        with path.open("w") as file:
            for name, board in self.boards.items():
                boots = [
                    [boot.id, boot.last, boot.made[RECORD], boot.made[EVENT], boot.made[JOB]]
                    for boot in board.past
                    if boot.last
                ]
                file.write(json.dumps({"name": name, "boots": boots}) + "\n")
        return {"file": str(path), "made": self.world.counts["made"], "acked": self.world.counts["acked"]}

    def _board(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        board = self._named(said.get("name"))
        return {
            "name": board.name,
            "profile": board.profile,
            "bundle": board.bundle,
            "interval_s": board.interval_s,
            "connected": board.up,
            "held": board.held,
        }

    def _set(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        changes = {key: value for key, value in said.items() if key not in {"do", *_FLEET_KEYS}}
        parsed = parse_scenario(changes)
        changed = dataclasses.replace(self.world.scenario, **{key: getattr(parsed, key) for key in changes})
        if "making" in said:
            self.world.making = checks.flag(said["making"], "making")
        if "interval_s" in said:
            self.world.interval_s = checks.number(said["interval_s"], "interval_s", 0.01, 86_400)
            for board in self.boards.values():
                board.interval_s = self.world.interval_s
        if changes:
            self.world.scenario, self.world.intervals = changed, Intervals(changed)
        return {}

    def _hang_up(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = self._chosen(said)
        for board in chosen:
            board.hang_up()
        return {"boards": len(chosen)}

    def _reboot(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        chosen = self._chosen(said)
        for board in chosen:
            board.reboot()
        return {"boards": len(chosen)}

    def _event(self, said: Mapping[str, Any]) -> Mapping[str, Any]:
        detail = checks.table(said.get("detail", {}), "detail")
        self._named(said.get("name")).event(checks.name(said.get("kind"), "kind"), detail)
        return {}

    def _mark(self, _said: Mapping[str, Any]) -> Mapping[str, Any]:
        self._all = Lags()
        return {}

    def _stop(self, _said: Mapping[str, Any]) -> Mapping[str, Any]:
        self._ended.set()
        return {}

    def _named(self, name: object) -> Board:
        if not isinstance(name, str) or name not in self.boards:
            raise checks.wrong("name", "a simulated board's", name)
        return self.boards[name]

    def _chosen(self, said: Mapping[str, Any]) -> list[Board]:
        if "names" in said:
            return [self._named(name) for name in checks.rows(said["names"], "names", checks.name)]
        share = checks.number(said.get("share", 1.0), "share", 0.0, 1.0)
        return self._rng.sample(list(self.boards.values()), round(share * len(self.boards)))


# --- start -------------------------------------------------------------------------------------------------------


def read_credentials(path: Path, most: int | None) -> list[Mapping[str, Any]]:
    """Boards from lines of JSON. Raises BadInput."""
    try:
        lines = path.read_text().splitlines()
    except OSError as err:
        raise BadInput(f"{path}: must hold boards' credentials: {err.strerror or err}") from err
    found = []
    for number, line in enumerate(lines[:most], 1):
        where = f"{path}, line {number}"
        row = checks.table(checks.parse_json(line.encode(), where), where)
        checks.name(row.get("name"), f"{where}: name")
        checks.text(row.get("password"), f"{where}: password")
        checks.optional(row.get("profile"), f"{where}: profile", checks.name)
        found.append(row)
    if not found:
        raise BadInput(f"{path}: must hold a line for each board, and holds none")
    return found


def raise_descriptors(wanted: int) -> int:
    """Let this process open so many files, as far as it may; how many it may now."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((wanted, max(wanted, hard)), (min(wanted, hard), hard)):
        if soft >= wanted:
            break
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        except (OSError, ValueError):  # more than the system lets one process have, or than this user may
            continue
        soft = limits[0]
    return soft


def _control_key(path: Path | None) -> Ed25519PublicKey | None:
    if path is None:
        return None
    try:
        key = load_pem_public_key(path.read_bytes())
    except (OSError, ValueError) as err:
        raise BadInput(f"{path}: must be the server's control.pub: {err}") from err
    if not isinstance(key, Ed25519PublicKey):
        raise BadInput(f"{path}: must be an Ed25519 key")
    return key


def _tls(wanted: argparse.Namespace) -> ssl.SSLContext | None:
    """One certificate for all boards: Mosquitto tells them apart by their user names."""
    if wanted.ca is None:
        return None
    context = ssl.create_default_context(cafile=str(wanted.ca))
    if wanted.certificate is not None:
        context.load_cert_chain(str(wanted.certificate))
    return context


def _rss_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def _say(line: Mapping[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


async def simulate(wanted: argparse.Namespace) -> None:
    boards = read_credentials(wanted.credentials, wanted.boards)
    changes = {} if wanted.seed is None else {"seed": wanted.seed}
    scenario = read_scenario(wanted.scenario, changes)
    needed = len(boards) + _SPARE_DESCRIPTORS
    descriptors = raise_descriptors(needed)
    if descriptors < needed:
        raise BadInput(
            f"{len(boards)} boards need {needed} file descriptors, and this process may have {descriptors}"
        )
    fleet = Fleet(wanted, boards, scenario)
    gc.collect()
    gc.freeze()  # boards live as long as the process: nobody needs to look through them again and again
    _say({"ready": {"boards": len(boards), "descriptors": descriptors, "seed": scenario.seed}})
    await fleet.run()


def main(arguments: Iterable[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--credentials", type=Path, required=True, help="lines of JSON: name, password, profile"
    )
    parser.add_argument("--boards", type=int, help="only so many of them")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=1883)
    parser.add_argument("--ca", type=Path, help="speak TLS, and check the broker against this certificate")
    parser.add_argument("--certificate", type=Path, help="certificate and key (PEM) that boards show")
    parser.add_argument("--fleet", default="demo")
    parser.add_argument(
        "--control-key", type=Path, help="control.pub: commands without its signature are ignored"
    )
    parser.add_argument("--interval-s", type=float, default=10.0, help="between two batches of a board")
    parser.add_argument("--batch", type=int, default=1, help="Records in a batch")
    parser.add_argument(
        "--ramp-s", type=float, default=10.0, help="over which the first connections are spread"
    )
    parser.add_argument("--keepalive-s", type=int, default=60)
    parser.add_argument("--resend-s", type=float, default=20.0)
    parser.add_argument("--report-s", type=float, default=1.0)
    parser.add_argument("--scenario", type=Path)
    parser.add_argument("--seed", type=int)
    wanted = parser.parse_args(None if arguments is None else list(arguments))
    try:
        asyncio.run(simulate(wanted))
    except EdgekitError as err:
        print(f"simulated_fleet: {one_line(err)}", file=sys.stderr)
        return err.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
