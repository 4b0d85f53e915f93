"""Exports: every row once and by name, in slices that hold nothing, resumable, harmless in a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import resource
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from big_store import SMALL, Size, fill, name_of
from servers import NOW

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.exported import COLUMNS
from edgekit.fleet import schema as db
from edgekit.fleet.api import Context
from edgekit.fleet.export import AT_ONCE, FORMATS, Export, Places, as_csv, export_slices
from edgekit.fleet.store import Store

LITTLE = Size(boards=60, hours=5, minute_boards=4, minutes=20, records=130, events=80, jobs=1)


def rows(store: Store, what: str, slice_rows: int = 7, **wanted: Any) -> list[dict[str, Any]]:
    asked = Export(what, **{"since": 0, "until": NOW + 1e6, **wanted})
    return [row for part in export_slices(store, asked, slice_rows) for row in part]


@pytest.mark.both_databases
def test_every_row_comes_once_and_goes_on_after_any_cursor(store: Store) -> None:
    fill(store, NOW, LITTLE)
    for what, table in (
        ("records", db.records),
        ("hours", db.hours),
        ("minutes", db.minutes),
        ("events", db.events),
    ):
        with store.read() as connection:
            count = connection.scalar(sa.select(sa.func.count()).select_from(table))
        found = rows(store, what)
        assert len(found) == len({row["cursor"] for row in found}) == count
        assert [list(row) for row in found] == [list(COLUMNS[what])] * len(found)
        assert rows(store, what, slice_rows=1000) == found
        for place in (0, len(found) // 2, len(found) - 1):
            assert rows(store, what, cursor=found[place]["cursor"]) == found[place + 1 :]


@pytest.mark.both_databases
def test_boards_and_times_choose_the_rows(store: Store) -> None:
    fill(store, NOW, LITTLE)
    some = rows(store, "hours", to="name=b0000*")
    assert {row["board"] for row in some} == {name_of(board) for board in range(1, 11)}
    of_one = rows(store, "records", to="name=b00003")
    assert {row["board"] for row in of_one} == {"b00003"}
    hour = NOW // 3600 * 3600
    last = rows(store, "hours", since=hour, until=hour + 1)
    assert len(last) == LITTLE.boards
    assert {row["at"] for row in last} == {some[LITTLE.hours - 1]["at"]}
    assert rows(store, "hours", to="name=nobody") == []


def test_values_are_those_of_the_store_with_their_names(store: Store) -> None:
    fill(store, NOW, LITTLE)
    row = rows(store, "hours", to="name=b00002")[0]
    with store.read() as connection:
        kept = connection.execute(sa.select(db.hours).where(db.hours.c.device == 3)).first()
    assert kept is not None
    assert (row["bundle"], row["profile"], row["requests"]) == ("other/7", "pynq-z2", kept.requests)
    assert (row["energy_mj"], row["energy_provenance"], row["energy_on"]) == (
        kept.energy_mj,
        "measured",
        "raspberrypi5",
    )
    assert sum(json.loads(row["exits"]).values()) == row["requests"]
    buckets = [part.split(":") for part in row["latency_histogram_ms"].split()]
    counted = sum(int(count) for _, count in buckets)
    assert row["latency_mean_ms"] == pytest.approx(kept.latency_sum_ms / counted)
    edges = [float(edge) for edge, _ in buckets]
    assert edges == sorted(edges)
    assert edges[0] < row["latency_p50_ms"] < row["latency_p99_ms"] <= edges[-1]


def test_a_cell_that_begins_like_a_formula_is_made_harmless_and_numbers_stay() -> None:
    bad = ["=1+1", "+1", "-1", "@x", "\tx", "a=b", "a,\nb"]
    parts = [[dict.fromkeys(COLUMNS["events"]) | {"text": text, "at": -5} for text in bad]]
    text = b"".join(as_csv("events", iter(parts))).decode()
    found = list(csv.DictReader(io.StringIO(text)))
    assert [row["text"] for row in found] == ["'=1+1", "'+1", "'-1", "'@x", "'\tx", "a=b", "a,\nb"]
    assert {row["at"] for row in found} == {"-5"}


def test_between_two_slices_nothing_is_held_and_the_log_is_taken_in(store: Store) -> None:
    fill(store, NOW, LITTLE)
    reading = export_slices(store, Export("hours", 0, NOW + 1), 7)
    next(reading)
    assert store.engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with store.write() as connection:
        connection.execute(sa.update(db.devices).values(malformed=7))
    with store.engine.connect() as connection:
        busy, log, done = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()
    assert (busy, log, done) == (0, 0, 0)
    assert len(list(reading)) > 1


@pytest.mark.parametrize(
    "wrong",
    [{"what": "users"}, {"since": 5, "until": 5}, {"to": "x"}, {"cursor": "1"}, {"cursor": "1:a:nan"}],
)
def test_what_cannot_be_exported_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadInput):
        Export(**{"what": "hours", "since": 0, "until": 1, **wrong})


def test_the_api_streams_both_formats_and_refuses_in_one_line(web: Any, context: Context) -> None:
    fill(context.store, NOW, LITTLE)
    asked = {"what": "hours", "since": 1, "until": NOW + 1}
    answer = web.get("/api/v1/export", params=asked)
    assert answer.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert len(lines) == LITTLE.boards * LITTLE.hours
    answer = web.get("/api/v1/export", params={**asked, "format": "csv"})
    found = list(csv.DictReader(io.StringIO(answer.text)))
    assert [row["cursor"] for row in found] == [row["cursor"] for row in lines]
    for wrong in ({"what": "users"}, {"what": "hours", "cursor": "x"}, {"what": "hours", "to": "y"}):
        answer = web.get("/api/v1/export", params=wrong)
        assert answer.status_code == 400
        assert "\n" not in answer.json()["error"]
    for _ in range(AT_ONCE + 1):  # each gave its place back
        assert web.get("/api/v1/export", params=asked).status_code == 200


def test_so_many_run_at_once_and_no_more() -> None:
    places = Places(2)
    places.take()
    places.take()
    with pytest.raises(WorldFailed, match="2 exports run already"):
        places.take()
    places.give_back()
    places.take()


@pytest.mark.parametrize("hours", [25, pytest.param(150, marks=pytest.mark.slow)])
def test_a_hundred_thousand_rows_take_no_more_memory_than_a_few(store: Store, hours: int) -> None:
    fill(store, NOW, replace(SMALL, boards=700, hours=hours, minute_boards=0, records=0, events=0))
    asked = Export("hours", 0, NOW + 1)
    parts = FORMATS["ndjson"][1]("hours", export_slices(store, asked))

    def lines() -> Iterator[int]:
        for part in parts:
            yield part.count(b"\n")

    seen = sum(next(lines()) for _ in range(5))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seen += sum(lines())
    assert seen == 700 * hours
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 8  # 17,500 of them are 15 MB as text, and several times that as rows
