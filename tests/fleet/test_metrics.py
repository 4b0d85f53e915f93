"""/metrics: what it says is what is in the store, and its labels do not grow with boards."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from big_store import SMALL, fill
from prometheus_client.parser import text_string_to_metric_families
from servers import NOW, write_config
from starlette.testclient import TestClient

from edgekit.fleet import metrics
from edgekit.fleet import schema as db
from edgekit.fleet.api import Context
from edgekit.fleet.certificates import read_pair
from edgekit.fleet.enroll import prepare
from edgekit.fleet.metrics_server import server_metrics
from edgekit.fleet.store import count, insert_new, open_store
from edgekit.repo.metadata import read_current

MANUAL = Path(__file__).parents[2] / "docs" / "monitoring.md"


def scraped(web: TestClient) -> dict[str, list[Any]]:
    answer = web.get("/metrics")
    assert answer.status_code == 200, answer.text
    found: dict[str, list[Any]] = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def test_metrics_say_what_is_in_the_store_and_name_no_board(context: Context, web: TestClient) -> None:
    fill(context.store, NOW, SMALL)
    found = scraped(web)
    with context.store.read() as connection:
        total = connection.scalar(sa.select(sa.func.sum(db.fleet_totals.c.requests)))
    assert sum(sample.value for sample in found["edgekit_requests_total"]) == total
    assert sum(sample.value for sample in found["edgekit_latency_seconds_count"]) == total
    boards = {sample.labels["state"]: sample.value for sample in found["edgekit_boards"]}
    assert boards["enrolled"] == SMALL.boards
    assert found["edgekit_rollup_backlog_records"][0].value == SMALL.records
    labels = {value for samples in found.values() for sample in samples for value in sample.labels.values()}
    assert not [value for value in labels if value.startswith(("b0", "job-"))]


def test_what_was_dropped_is_said(context: Context, web: TestClient) -> None:
    with context.store.write() as connection:
        count(connection, "messages on foreign topics", 3)
    (sample,) = scraped(web)["edgekit_dropped_total"]
    assert (sample.labels, sample.value) == ({"what": "messages on foreign topics"}, 3)
    assert web.get("/api/v1/status").json()["dropped"] == {"messages on foreign topics": 3}


def test_buckets_are_cumulative_and_end_with_all(context: Context, web: TestClient) -> None:
    fill(context.store, NOW, SMALL)
    found = scraped(web)
    one = [s for s in found["edgekit_latency_seconds_bucket"] if s.labels["bundle"] == "toy/1"]
    profile = one[0].labels["profile"]
    counts = [s.value for s in one if s.labels["profile"] == profile]
    assert counts == sorted(counts)
    assert 10 < len(counts) < 60
    assert counts[0] < counts[-1]


def test_bundles_beyond_the_bound_are_counted_together(
    context: Context, web: TestClient, monkeypatch: Any
) -> None:
    monkeypatch.setattr(metrics, "MOST_BUNDLES", 1)
    fill(context.store, NOW, SMALL)
    labels = {sample.labels["bundle"] for sample in scraped(web)["edgekit_requests_total"]}
    assert len(labels) == 2
    assert metrics.OTHER in labels


def test_metrics_want_a_token(web: TestClient) -> None:
    assert web.get("/metrics", headers={"authorization": ""}).status_code == 401


def test_exits_alerts_rollouts_and_what_ends_are_told(context: Context, web: TestClient) -> None:
    fill(context.store, NOW, SMALL)
    with context.store.write() as connection:
        firing = {"rule": "slow", "subject": "board:b00001", "state": "firing", "kind": "p99",
                  "severity": "critical", "grouped": "", "text": "slow", "since": NOW, "updated": NOW}  # fmt: skip
        insert_new(connection, db.alerts, [firing, firing | {"state": "resolved", "subject": "board:b00002"}])
        paused = {"rollout_id": "r1", "created": NOW, "created_by": "anna", "target": "toy/2", "selector": "all",
                  "plan": "{}", "state": "paused", "wave": 0, "turn": 0, "since": NOW, "updated": NOW}  # fmt: skip
        insert_new(connection, db.rollouts, [paused])
        connection.execute(sa.update(db.records).values(received=context.clock() - 100))
    found = scraped(web)
    assert {s.labels["exit"] for s in found["edgekit_exits_total"]} == {"exit1", "exit3"}
    exits = sum(sample.value for sample in found["edgekit_exits_total"])
    assert exits == sum(sample.value for sample in found["edgekit_requests_total"])
    assert _nonzero(found["edgekit_alerts"]) == {("critical", "firing"): 1}
    assert _nonzero(found["edgekit_rollouts"]) == {("paused",): 1}
    assert 100 <= found["edgekit_rollup_lag_seconds"][0].value < 200
    ends = {s.labels["role"]: s.value for s in found["edgekit_metadata_expires_timestamp_seconds"]}
    in_force = read_current(context.config.repository)
    assert ends["targets"] == in_force.targets.signed.expires.timestamp()
    assert set(ends) == {"root", "targets", "snapshot", "timestamp"}
    assert "edgekit_certificate_expires_timestamp_seconds" not in found, "it speaks no TLS"


def _nonzero(samples: list[Any]) -> dict[tuple[str, ...], float]:
    return {tuple(sample.labels.values()): sample.value for sample in samples if sample.value}


def test_a_servers_certificates_are_told_of(tmp_path: Path) -> None:
    config = write_config(tmp_path, 1, tls=True)
    prepare(config)
    store = open_store(config.database_url)
    with store.read() as connection:
        families = {family.name: family for family in server_metrics(connection, config, NOW)}
    store.close()
    certificates = families["edgekit_certificate_expires_timestamp_seconds"].samples
    assert {sample.labels["server"] for sample in certificates} == {"web", "broker"}
    web = read_pair(config.tls_dir / "web.pem")[1].not_valid_after_utc.timestamp()
    assert web in [sample.value for sample in certificates]


def test_what_cannot_be_read_leaves_the_other_metrics(context: Context, web: TestClient) -> None:
    (context.config.repository / "metadata" / "timestamp.json").unlink()
    found = scraped(web)
    assert "edgekit_metadata_expires_timestamp_seconds" not in found
    assert "edgekit_boards" in found


def test_the_manual_lists_the_metrics_that_there_are(web: TestClient) -> None:
    lines = web.get("/metrics").text.splitlines()
    given = {line.split()[2] for line in lines if line.startswith("# TYPE ")}
    rows = re.findall(r"^\| `(edgekit_\w+)` \|", MANUAL.read_text("utf-8"), re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert given == set(rows)


def test_the_manual_names_the_labels_of_each_metric(context: Context, web: TestClient) -> None:
    fill(context.store, NOW, SMALL)
    manual = dict(
        re.findall(r"^\| `(edgekit_\w+)` \|[^|]*\|([^|]*)\|", MANUAL.read_text("utf-8"), re.MULTILINE)
    )
    for name, samples in scraped(web).items():
        row = manual.get(name) or manual[re.sub(r"_(bucket|count|sum|created)$", "", name)]
        labels = {label for sample in samples for label in sample.labels}
        assert labels <= set(row.replace(" ", "").split(",")), name
