"""tools/grafana/fleet.json: what Grafana wants of a dashboard, and every query asked of a real Prometheus."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
import sqlalchemy as sa
import uvicorn
from agents import free_port, until
from big_store import SMALL, fill
from servers import write_config

from edgekit.fleet import accounts, metrics
from edgekit.fleet import schema as db
from edgekit.fleet.api import Context, make_app
from edgekit.fleet.config import read_config, read_secret
from edgekit.fleet.enroll import prepare
from edgekit.fleet.store import Store, count, open_store

DASHBOARD = Path(__file__).parents[2] / "tools" / "grafana" / "fleet.json"


def dashboard() -> dict[str, Any]:
    return dict(json.loads(DASHBOARD.read_text("utf-8")))


def panels() -> list[dict[str, Any]]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    """(panel, query) with Grafana's variables in place."""
    known = {"$__rate_interval": "1m", "$profile": ".*", "$bundle": ".*"}
    found = []
    for panel in panels():
        for target in panel["targets"]:
            query = target["expr"]
            for name, value in known.items():
                query = query.replace(name, value)
            assert "$" not in query, query
            found.append((panel["title"], query))
    return found


def test_the_dashboard_can_be_imported_and_every_panel_says_what_it_shows() -> None:
    whole = dashboard()
    assert whole["uid"] and whole["title"] and whole["schemaVersion"] >= 36  # noqa: PT018
    assert "id" not in whole, "Grafana would take it for one of its own"
    variables = {entry["name"]: entry for entry in whole["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert {"profile", "bundle"} <= set(variables)
    assert [row["title"] for row in whole["panels"] if row["type"] == "row"] == [
        "Fleet",
        "Latency",
        "Energy and exits",
        "Problems",
    ]
    assert len({panel["id"] for panel in whole["panels"]}) == len(whole["panels"])
    for panel in panels():
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"]["uid"] == "${datasource}", panel["title"]
        assert all(target["datasource"]["uid"] == "${datasource}" for target in panel["targets"])


def test_panels_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in dashboard()["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert (x, y) not in taken, (panel["title"], taken[x, y])
                taken[x, y] = panel["title"]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    config = write_config(tmp_path, 1, tls=True)
    prepare(config)
    store = open_store(config.database_url)
    fill(store, time.time(), SMALL)
    with store.write() as connection:
        count(connection, "messages on foreign topics", 3)
    yield store
    store.close()


@pytest.fixture
def served(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[int, str]]:
    """The port of the app on a real server, and a viewer's token."""
    monkeypatch.setattr(metrics, "KEPT_S", 0.0)
    config = read_config(tmp_path / "fleet.toml")
    with store.write() as connection:
        token = accounts.add_token(connection, "prometheus", "viewer", time.time(), None)
    context = Context(config, store, read_secret(config.token_file), lambda: "http://127.0.0.1")
    port = free_port()
    server = uvicorn.Server(
        uvicorn.Config(make_app(context), port=port, log_level="warning", access_log=False)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    until(lambda: server.started, "the server's start")
    yield port, token
    server.should_exit = True
    thread.join(20)


@pytest.fixture
def prometheus(tmp_path: Path, served: tuple[int, str]) -> Iterator[Any]:
    """Asks a Prometheus that scrapes the server every second: query -> its answer's result."""
    found = shutil.which("prometheus")
    if found is None:
        pytest.skip("prometheus is not installed")
    port, token = served
    (tmp_path / "token").write_text(token)
    (tmp_path / "prometheus.yml").write_text(
        "global: {scrape_interval: 1s}\n"
        "scrape_configs:\n"
        "  - job_name: edgekit\n"
        f"    authorization: {{credentials_file: {tmp_path / 'token'}}}\n"
        f"    static_configs: [{{targets: ['127.0.0.1:{port}']}}]\n"
    )
    own = free_port()
    log = tmp_path / "prometheus.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            [
                found,
                f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address=127.0.0.1:{own}",
            ],
            stdout=file,
            stderr=file,
        )

    def ask(query: str) -> list[dict[str, Any]]:
        address = f"http://127.0.0.1:{own}/api/v1/query?{urlencode({'query': query})}"
        try:
            with urlopen(address, timeout=10) as answer:
                body = json.load(answer)
        except ConnectionError:
            return []
        except OSError as err:
            if getattr(err, "code", 503) == 503 or isinstance(getattr(err, "reason", None), ConnectionError):
                return []  # it starts
            raise AssertionError(f"{query}: {err.read().decode()}") from err  # type: ignore[attr-defined]
        assert body["status"] == "success", (query, body)
        return list(body["data"]["result"])

    try:
        until(lambda: ask("up == 1"), f"the first scrape ({log})", 20)
        yield ask
    finally:
        process.terminate()
        process.wait(20)


def test_every_panels_query_is_answered_by_prometheus(store: Store, prometheus: Any) -> None:
    total = "sum(edgekit_requests_total)"
    before = float(prometheus(total)[0]["value"][1])
    table = db.fleet_totals
    with store.write() as connection:
        again = [{**row, "at": 1} for row in connection.execute(sa.select(table)).mappings()]
        connection.execute(sa.insert(table), again)
        count(connection, "messages on foreign topics", 5)
    until(lambda: float(prometheus(total)[0]["value"][1]) == 2 * before, "the next scrape")
    for title, query in expressions():
        result = prometheus(query)
        assert result, f"{title}: {query} finds nothing"
        values = [float(one["value"][1]) for one in result]
        assert all(map(math.isfinite, values)), (title, query, values)
    (rate,) = prometheus("sum(rate(edgekit_requests_total[1m]))")
    assert float(rate["value"][1]) > 0
    (missed,) = prometheus(
        "sum(increase(edgekit_deadline_missed_total[1m])) / sum(increase(edgekit_requests_total[1m]))"
    )
    assert 0 < float(missed["value"][1]) < 0.01
