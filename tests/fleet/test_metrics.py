"""/metrics: what it says is what is in the store, and its labels do not grow with boards."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from big_store import SMALL, fill
from prometheus_client.parser import text_string_to_metric_families
from servers import NOW
from starlette.testclient import TestClient

from edgekit.fleet import metrics
from edgekit.fleet import schema as db
from edgekit.fleet.api import Context
from edgekit.fleet.store import count


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
