from __future__ import annotations

from typing import Any

import pytest
from servers import NOW

from edgekit.core.figure import Figure
from edgekit.core.histogram import Histogram, histogram
from edgekit.core.messages import Event, Status, encode
from edgekit.core.record import Record
from edgekit.fleet import charts, shown, views
from edgekit.fleet.commit import commit_batch
from edgekit.fleet.intake import Received, read_message
from edgekit.fleet.store import Store

pytestmark = pytest.mark.both_databases


def record(seq: int, latencies: list[float], **fields: Any) -> Record:
    usual = {"uptime_s": 1.0, "time": NOW - 100 + seq, "clock_synced": True, "interval_s": 1.0}
    usual |= {
        "bundle": "toy/1",
        "policy": "full",
        "requests": len(latencies),
        "latency": histogram(latencies),
    }
    return Record(seq=seq, **(usual | fields))


def send(store: Store, *records: Record, device: str = "pi5-a", now: float = NOW) -> None:
    status = Received(device, "status", "b1", status=Status(True, "b1"))
    reported = Received(device, "reported", state={"bundle": "toy/1", "interval_s": 1.0, "rev": 1})
    with store.write() as connection:
        telemetry = Received(device, "telemetry", "b1", 1, records=records)
        commit_batch(connection, [status, reported, telemetry], [], now)


def row(store: Store, name: str = "pi5-a", now: float = NOW, window_s: float = 3600) -> dict[str, Any]:
    with store.read() as connection:
        return views.device_rows(connection, now, window_s, [name])[0]


@pytest.fixture(autouse=True)
def _enrolled(boards: object) -> None:
    del boards


def test_percentiles_come_from_added_buckets_and_not_from_averaged_percentiles(store: Store) -> None:
    fast, slow = [1.0] * 99, [100.0] * 1
    send(store, record(1, fast), record(2, fast), record(3, slow * 50))
    latency = row(store)["latency_ms"]
    added = histogram(fast + fast + slow * 50)
    assert latency["p95"] == added.percentile_ms(95)
    assert latency["p95"] == pytest.approx(100, rel=0.13)
    assert latency["mean"] == pytest.approx((198 + 5000) / 248)


def test_counts_add_up_and_accuracy_is_of_the_labelled_alone(store: Store) -> None:
    mixed = {"exit_counts": {"exit1": 3, "exit2": 1}, "labelled": 4, "correct": 3, "deadline_missed": 1}
    send(store, record(1, [1.0] * 4, **mixed), record(2, [1.0] * 4, exit_counts={"exit1": 4}, errors=2))
    found = row(store)
    assert found["requests"] == 8
    assert found["exit_counts"] == {"exit1": 7, "exit2": 1}
    assert (found["accuracy"], found["labelled"]) == (0.75, 4)
    assert (found["errors"], found["deadline_missed"]) == (2, 1)


def test_exits_are_in_their_order_wherever_they_are_shown(store: Store) -> None:
    names = [f"exit{index}" for index in range(1, 12)]
    for seq, some in enumerate(
        (names[8:], names[:3], names), 1
    ):  # what a board's first interval lacks comes later
        one = record(seq, [1.0] * len(some), exit_counts=dict.fromkeys(some, 1))
        payload = {"boot_id": "b1", "floor": 1, "records": [one.to_json()]}
        message = read_message("demo", "edgekit/v1/demo/pi5-a/telemetry", encode(payload))
        with store.write() as connection:
            commit_batch(connection, [message], [], NOW)
    with store.read() as connection:
        found = views.device_detail(connection, "pi5-a", NOW)
    assert list(found["exit_counts"]) == names
    assert [entry["name"] for entry in shown.exit_mix(dict(sorted(found["exit_counts"].items())))] == names
    assert [line["name"] for line in charts.exit_chart(found["series"])["series"]] == names


def test_what_nobody_knows_is_null_and_never_zero(store: Store) -> None:
    send(store, record(1, [], energy_why="no power sensor"))
    found = row(store)
    assert found["latency_ms"] == {"mean": None, "p50": None, "p95": None, "p99": None}
    assert found["accuracy"] is None
    assert found["energy_mj"]["mean"] is None
    assert row(store, "orin")["last_seen"] is None


def energy(value: float, provenance: Any = "measured") -> Figure:
    return Figure(value, "mJ", provenance, None, "raspberrypi5")


def test_energy_per_request_is_that_of_intervals_which_know_over_their_requests(store: Store) -> None:
    send(
        store,
        record(1, [1.0] * 10, energy=energy(50.0)),
        record(2, [1.0] * 10, energy_why="the sensor vanished"),
        record(3, [], energy=energy(500.0)),
        record(4, [1.0] * 30, energy=energy(110.0)),
    )
    found = row(store)["energy_mj"]
    assert found["mean"] == pytest.approx(4.0)
    assert (found["provenance"], found["requests"], found["on"]) == ("measured", 40, "raspberrypi5")


def test_energy_that_came_about_in_two_ways_is_called_mixed_and_says_which(store: Store) -> None:
    send(store, record(1, [1.0], energy=energy(5.0)), record(2, [1.0], energy=energy(5.0, "simulated")))
    found = row(store)["energy_mj"]
    assert (found["provenance"], found["provenances"]) == ("mixed", ["measured", "simulated"])
    assert shown.energy_source(found) == "mixed: measured, simulated"


def test_unknown_energy_says_why(store: Store) -> None:
    send(store, record(1, [1.0], energy_why="no permission to read the sensor"))
    found = row(store)["energy_mj"]
    assert (found["mean"], found["provenance"], found["why"]) == (
        None,
        None,
        "no permission to read the sensor",
    )
    assert shown.energy(found) == shown.UNKNOWN


def test_a_boards_figures_are_those_of_the_bundle_in_force(store: Store) -> None:
    send(store, record(1, [9.0] * 5, bundle="toy/0"), record(2, [1.0] * 3), record(3, [], bundle=None))
    assert row(store)["requests"] == 3
    with store.read() as connection:
        detail = views.device_detail(connection, "pi5-a", NOW, 3600)
    assert {b["bundle"]: b["requests"] for b in detail["bundles"]} == {"toy/0": 5, "toy/1": 3}
    assert row(store)["records"] == 3


def test_only_the_window_counts(store: Store) -> None:
    send(store, record(1, [1.0], time=NOW - 5000), record(2, [1.0, 1.0]))
    assert row(store)["requests"] == 2
    assert row(store, window_s=10_000)["requests"] == 3


def test_a_board_that_fell_silent_is_not_online_whatever_its_status_says(store: Store) -> None:
    send(store, record(1, [1.0]))
    assert row(store, now=NOW + 14)["online"]
    assert not row(store, now=NOW + 16)["online"]


def test_a_series_holds_everything_once(store: Store) -> None:
    send(store, *(record(seq, [1.0] * 2, throttled=seq > 40) for seq in range(1, 81)))
    with store.read() as connection:
        series = views.device_detail(connection, "pi5-a", NOW, 3600)["series"]
    assert len(series) <= views.SERIES_POINTS
    assert sum(point["requests"] for point in series) == 160
    assert [point["at"] for point in series] == sorted(point["at"] for point in series)
    area = charts.latency_chart(series)["series"][0]["markArea"]["data"]
    assert len(area) == 1
    assert charts.exit_chart(series)["series"] == []


def test_the_fleet_adds_boards_up(store: Store) -> None:
    send(store, record(1, [1.0] * 3, energy=energy(6.0)))
    send(store, record(1, [4.0] * 1, energy=energy(6.0, "simulated")), device="pi5-b")
    with store.read() as connection:
        found = views.fleet_status(connection, NOW, 3600)
    assert {"enrolled": 3, "revoked": 0, "online": 2}.items() <= found["boards"].items()
    assert (found["requests"], found["records"]) == (4, 2)
    assert found["energy_mj"]["mean"] == pytest.approx(3.0)
    assert found["energy_mj"]["provenance"] == "mixed"


def test_events_come_newest_first(store: Store) -> None:
    send(store, record(1, [1.0]))
    events = tuple(Event("b1", seq, kind, NOW + seq) for seq, kind in ((2, "throttle"), (3, "rollback")))
    with store.write() as connection:
        commit_batch(connection, [Received("pi5-a", "event", "b1", events=events)], [], NOW)
        found = views.device_detail(connection, "pi5-a", NOW, 3600)["events"]
    assert [event["kind"] for event in found] == ["rollback", "throttle"]


def test_a_board_or_job_that_is_not_there_is_said(store: Store) -> None:
    with store.read() as connection:
        with pytest.raises(views.Unknown, match="there is no board called 'x'"):
            views.device_detail(connection, "x", NOW)
        with pytest.raises(views.Unknown, match="there is no job 'x'"):
            views.job_detail(connection, "x")


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.01234, "0.0123 ms"), (0.5, "0.50 ms"), (12.34, "12.3 ms"), (1234.5, "1234 ms")],
)
def test_a_latency_is_written_with_three_digits(value: float | None, text: str) -> None:
    assert shown.ms(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s ago"), (89, "89 s ago"), (600, "10 min ago"), (9000, "2 h ago"), (900_000, "10 days ago")],
)
def test_how_long_ago_is_written_in_one_unit(seconds: float, text: str) -> None:
    assert shown.ago(NOW - seconds, NOW) == text


def test_an_empty_histogram_is_stored_and_read(store: Store) -> None:
    send(store, record(1, [], latency=Histogram()))
    assert row(store)["latency_ms"]["p50"] is None
