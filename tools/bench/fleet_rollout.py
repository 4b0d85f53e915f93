"""A rollout to 2,000 simulated boards over MQTT, of which some fail and some fall silent: stopped, and completed.

First a bundle that doubles p99 on one profile: the canary's gate must stop it and take every board back that took it,
and the audit log must say which figure of which profile did it. Then a healthy one: everybody takes it but those that
fail and those that are silent. Boards and their fates follow from a seed, so what must come out is known beforehand.
"""

from __future__ import annotations

import importlib
import json
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a script finds what lies beside it, mypy what lies below the project
    from tools.bench.fleet_site import PROFILES, compare, say, served, until
    from tools.simulated_behaviour import Scenario, parse_scenario
else:
    from fleet_site import PROFILES, compare, say, served, until
    from simulated_behaviour import Scenario, parse_scenario

from edgekit.cli.push import publish_bundle
from edgekit.client import Client
from edgekit.fleet.rollouts.states import OVER
from edgekit.fleet.rollouts.views import rollout_boards
from edgekit.fleet.store import open_store

bundles = importlib.import_module("bundles")

OLD, BAD, GOOD = "toy/1", "toy/2", "toy/3"
SLOW = PROFILES[1]
FAIL, SILENT = 0.05, 0.03
MINUTE_S = 60.0
INTERVAL_S = 5.0


def scenario_json() -> dict[str, Any]:
    """Boards that run OLD; BAD doubles the p99 of one profile, and leaves the rest as it was."""
    fates = {"fail": FAIL, "reason": "golden", "silent": SILENT}
    return {
        "bundle": OLD,
        "bundles": {BAD: {"on": {SLOW: {"tail": 2.0}}}},
        "jobs": [{"target": target, **fates} for target in (BAD, GOOD)],
    }


def plan_json(target: str, quick: bool) -> dict[str, Any]:
    """5 %, 25 %, all. 15 % of a wave may fail: 8 % are expected, and of a canary of 100 boards chance makes it 8 +- 3.

    With few boards a canary is small and chance larger: it is half of them, and a quarter may fail.
    """
    gate = {"max_failed_percent": 15.0, "before_s": 120.0, "soak_s": 12.0, "wait_s": 60.0}
    sizes: dict[str, Any] = {"canary": "5%", "waves": ["25%", "100%"]}
    if quick:
        gate |= {"max_failed_percent": 25.0}
        sizes = {"canary": "50%", "waves": ["100%"]}
    return {"target": target, "to": "all", "deadline_s": 25.0, "gate": gate, **sizes}


class Site:
    """The server seen through its API, and what boards are bound to do."""

    def __init__(self, folder: Path, server: Any, fleet: Any) -> None:
        self.folder, self.server, self.fleet = folder, server, fleet
        self.client = Client(server.url, server.token)
        self.scenario: Scenario = parse_scenario(scenario_json())
        lines = (folder / "boards.jsonl").read_text().splitlines()
        self.boards = [json.loads(line)["name"] for line in lines]

    def publish(self) -> None:
        """All three versions, through the API."""
        for version in (1, 2, 3):
            path = self.folder / f"toy-{version}.edge"
            bundle = bundles.write_null_bundle(path, version=version, profiles=PROFILES)
            publish_bundle(self.client, bundle, self.folder / "repository" / "keys" / "targets.pem")

    def run(self, plan: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Start a rollout and wait until nothing happens by itself any more; how it stands then."""
        found = self.client.start_rollout(plan)
        said = ""
        begun = time.monotonic()
        while (found["state"] not in {*OVER, "paused"}) and time.monotonic() - begun < timeout_s:
            now = f"{found['state']}, {wave_of(found)}: {found['boards']}"
            if now != said:
                said = now
                say(f"{time.monotonic() - begun:5.1f} s {plan['target']}: {said}")
            time.sleep(1.0)
            found = self.client.rollout(found["rollout_id"])
        return found

    def boards_of(self, rollout_id: str) -> dict[str, str]:
        """Board -> what has become of it, of those that a rollout has asked."""
        store = open_store(self.server.config.database_url)
        with store.read() as connection:
            rows = rollout_boards(connection, rollout_id, limit=len(self.boards))["boards"]
        store.close()
        return {row["name"]: row["state"] for row in rows if row["state"] != "waiting"}

    def fate(self, name: str, target: str) -> str:
        """What the scenario has for a board that is asked to run a bundle."""
        path = self.scenario.path_of(name, target, present=False)
        return "silent" if path is None else "failed" if path[1] else "took"


def wave_of(rollout: Mapping[str, Any]) -> str:
    """The wave that a rollout is at, in words."""
    waves = rollout["waves"]
    return str(waves[min(rollout["wave"], len(waves) - 1)]["name"])


def moment(rollout: Mapping[str, Any], action: str) -> float:
    """When a line of the audit log was written first (Unix seconds)."""
    return float(min(line["at"] for line in rollout["audit"] if line["action"] == action))


def measure_rollout(boards: int, quick: bool) -> dict[str, Any]:
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        options = ("--interval-s", str(INTERVAL_S), "--ramp-s", str(boards / 500))
        with served(folder, boards, *options, scenario=scenario_json()) as (_broker, server, fleet):
            site = Site(folder, server, fleet)
            site.publish()
            until(lambda: fleet.progress.get("connected") == boards, 60, "all connections")
            said_s = until(lambda: running(site.client, OLD) == boards, 60, "what all boards run")
            say(f"{boards} boards run {OLD} after {said_s} s")
            wait_for_a_minute()
            bad = stopped(site, site.run(plan_json(BAD, quick), 150))
            gone = set(bad.pop("silent_boards"))
            say(f"stopped: {bad}")
            good = completed(site, site.run(plan_json(GOOD, quick), 200), gone)
            say(f"completed: {good}")
            fleet.do("set", making=False)
            silent = fleet.progress["gone_silent"]  # they were sent no ack for what they said last
            until(lambda: fleet.progress["held"] <= silent, 60, "the last acks")
            time.sleep(2.0)
            exact = compare(server.config, fleet, folder)
    return {
        "boards": boards,
        "fail": FAIL,
        "silent": SILENT,
        "slow_profile": SLOW,
        "stopped": bad,
        "completed": good,
        "exactly_once": exact,
        "took_s": round(time.monotonic() - begun, 1),
    }


def running(client: Client, label: str) -> int:
    """How many boards say that they run a bundle."""
    return sum(row["bundle"] == label for row in client.devices())


def wait_for_a_minute() -> None:
    """Until a whole minute of figures lies behind: a gate compares with whole minutes before the wave."""
    left = MINUTE_S - time.time() % MINUTE_S
    left += 0.0 if left > MINUTE_S / 2 else MINUTE_S
    say(f"{left:.0f} s until there is a minute to compare with")
    time.sleep(left + 1.0)


def stopped(site: Site, rollout: Mapping[str, Any]) -> dict[str, Any]:
    """The rollout that the canary's gate must have stopped."""
    verdict = rollout["waves"][0]["verdict"] or {"checks": [], "why": None, "at": 0.0}
    failed = [check for check in verdict["checks"] if check["verdict"] == "failed"]
    told = site.boards_of(rollout["rollout_id"])
    texts = [line["text"] for line in rollout["audit"] if line["action"] == "rollout.gate-failed"]
    begun = moment(rollout, "rollout.create")
    p99 = next((check for check in failed if check["scope"] == SLOW and check["figure"] == "p99"), None)
    return {
        "state": rollout["state"],
        "canary": rollout["waves"][0]["boards"],
        "asked": len(told),
        "states": rollout["waves"][0]["states"],
        "took": rollout["boards"]["took"],
        "taken_back": rollout["back"]["back"],
        "left": rollout["back"]["left"],
        "still_run_it": running(site.client, BAD),
        "decided_after_s": round(verdict["at"] - begun, 1),
        "back_after_s": round(max(line["at"] for line in rollout["audit"]) - begun, 1),
        "p99_before_ms": p99 and round(p99["before"], 2),
        "p99_after_ms": p99 and round(p99["after"], 2),
        "failed_checks": sorted({f"{check['scope']}: {check['figure']}" for check in failed}),
        "audit": texts,
        "explained": bool(texts) and p99 is not None and p99["text"] in texts[0],
        "silent_boards": [name for name in told if site.fate(name, BAD) == "silent"],
    }


def completed(site: Site, rollout: Mapping[str, Any], gone: set[str]) -> dict[str, Any]:
    """The rollout that must have reached everybody but those that fail, are silent or were gone before."""
    ended = moment(rollout, "rollout.create")
    after_s = round(max(line["at"] for line in rollout["audit"]) - ended, 1)
    rollout_id = rollout["rollout_id"]
    until(
        lambda: site.client.rollout(rollout_id)["boards"]["open"] == 0, 90, "the deadline of the silent ones"
    )
    expected = Counter("silent" if name in gone else site.fate(name, GOOD) for name in site.boards)
    return {
        "state": rollout["state"],
        "after_s": after_s,
        "waves": [
            {key: wave[key] for key in ("name", "state", "boards", "states")} for wave in rollout["waves"]
        ],
        "boards": dict(Counter(site.boards_of(rollout_id).values())),
        "expected": dict(expected),
        "run_it": running(site.client, GOOD),
    }


def rollout_verdicts(found: Mapping[str, Any]) -> dict[str, bool]:
    """What must hold of a run."""
    bad, good = found["stopped"], found["completed"]
    exact = found["exactly_once"]
    return {
        "rollout: the canary's gate stops it and it goes back": bad["state"] == "rolled_back",
        "rollout: only the canary was asked": bad["asked"] == bad["canary"],
        "rollout: every board that took it is back": bad["taken_back"] == bad["took"] > 0
        and bad["still_run_it"] == 0,
        "rollout: the audit log explains it": bad["explained"],
        "rollout: no other profile is blamed": {check.partition(":")[0] for check in bad["failed_checks"]}
        <= {SLOW, "all"},
        "rollout: the healthy one completes": good["state"] == "completed",
        "rollout: everybody took it but the failing and silent ones": good["boards"] == good["expected"]
        and good["run_it"] == good["expected"].get("took"),
        "rollout: exactly once": exact["boots_that_differ"] == 0 and exact["roll_ups_agree"],
    }
