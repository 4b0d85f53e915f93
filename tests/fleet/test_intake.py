"""Whatever a board sends, reading it ends in a message or in Malformed."""

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgekit.core.messages import FROM_BOARD, encode
from edgekit.fleet.intake import Malformed, Received, read_message

RECORD: dict[str, Any] = {
    "seq": 1,
    "uptime": 1.0,
    "time": None,
    "clock_synced": False,
    "interval_s": 1.0,
    "bundle": "toy/1",
    "policy": "full",
    "latency": {"buckets": [[60, 3]], "sum_ms": 3.0},
}


def topic(kind: str, device: str = "pi5") -> str:
    return f"edgekit/v1/demo/{device}/{kind}"


def telemetry(*records: Any, boot_id: str = "b", floor: int = 1) -> bytes:
    return encode({"boot_id": boot_id, "floor": floor, "records": list(records)})


def test_a_batch_of_records_is_read() -> None:
    found = read_message("demo", topic("telemetry"), telemetry(RECORD, RECORD | {"seq": 2}))
    assert (found.device, found.boot_id, found.floor) == ("pi5", "b", 1)
    assert [record.seq for record in found.records] == [1, 2]
    assert found.malformed is None


@pytest.mark.parametrize(
    "name",
    [
        "edgekit/v1/other/pi5/telemetry",
        "edgekit/v1/demo/pi5/desired",
        "edgekit/v1/demo/pi5/nonsense",
        "edgekit/v2/demo/pi5/telemetry",
        "edgekit/v1/demo//telemetry",
        "edgekit/v1/demo/../telemetry",
        "$SYS/broker",
        "",
    ],
)
def test_a_foreign_topic_is_malformed_and_blames_no_board(name: str) -> None:
    with pytest.raises(Malformed) as raised:
        read_message("demo", name, telemetry(RECORD))
    assert raised.value.device is None


BOMB = zlib.compress(b" " * (64 * 2**20), 9)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"garbage",
        b"{",
        b"null",
        b"[]",
        b'{"v": 2}',
        b'{"v": 1}',
        b"\xff" * 100,
        BOMB,
        zlib.compress(b'{"v":1}')[:-3],
        b"{" + b" " * 2**21 + b"}",
        b'{"v":1,"a":' + b"[" * 200_000,
        b'{"v":1,"boot_id":"b","floor":1,"records":' + b"9" * 5000 + b"}",
        telemetry(RECORD, boot_id="a b"),
        telemetry(RECORD, floor=0),
        encode({"boot_id": "b", "floor": 1, "records": "many"}),
        encode({"boot_id": "b", "floor": 1, "records": [1] * 10_001}),
    ],
    ids=lambda data: f"{len(data)} bytes {data[:12]!r}",
)
@pytest.mark.parametrize("kind", FROM_BOARD)
def test_a_payload_that_cannot_be_read_is_malformed_and_blames_its_board(kind: str, data: bytes) -> None:
    device, why = dropped(kind, data)
    assert device == "pi5"
    assert 0 < len(why) <= 200


def dropped(kind: str, data: bytes) -> tuple[str | None, str]:
    """Who sent what was dropped whole, and why it was."""
    try:
        found = read_message("demo", topic(kind), data)
    except Malformed as err:
        return err.device, str(err)
    assert not any(
        (found.records, found.events, found.job_events, found.unreadable, found.status, found.state)
    )
    return found.device, found.malformed or ""


@pytest.mark.parametrize(
    "change",
    [
        {"requests": -1},
        {"requests": "many"},
        {"requests": 2**60},
        {"energy_mj": 1.0},
        {"exit_counts": {"a b": 1}},
        {"exit_counts": {f"e{i}": 1 for i in range(65)}},
        {"latency": {"buckets": [[161, 1]], "sum_ms": 0}},
        {"latency": None},
        {"bundle": "x" * 5000},
        {"bundle": "a\u0000b"},
        {"clock_synced": 1},
        {"time": -5},
    ],
)
def test_a_bad_record_leaves_its_number_and_does_not_take_the_good_ones_with_it(
    change: dict[str, Any],
) -> None:
    found = read_message(
        "demo", topic("telemetry"), telemetry(RECORD, RECORD | {"seq": 2} | change, RECORD | {"seq": 3})
    )
    assert [record.seq for record in found.records] == [1, 3]
    assert [left.seq for left in found.unreadable] == [2]
    assert found.malformed
    assert len(found.malformed) <= 200


@pytest.mark.parametrize("entry", [None, 7, "x", [], {}, {"seq": 0}, {"seq": 1.5}, {"seq": 2**54}])
def test_an_entry_without_a_number_is_counted_and_leaves_nothing(entry: Any) -> None:
    found = read_message("demo", topic("telemetry"), telemetry(RECORD, entry))
    assert (len(found.records), found.unreadable) == (1, ())
    assert found.malformed


def test_an_infinity_that_json_smuggles_in_is_refused() -> None:
    data = telemetry(RECORD).replace(b'"uptime":1.0', b'"uptime":1e999')
    assert read_message("demo", topic("telemetry"), data).unreadable[0].seq == 1


@pytest.mark.parametrize(
    "detail", [b'{"a":1e999}', b'"text"', b'{"a":"' + b"x" * 5000 + b'"}'], ids=["infinite", "text", "large"]
)
def test_an_event_with_a_detail_that_cannot_be_kept_leaves_its_number(detail: bytes) -> None:
    data = b'{"v":1,"boot_id":"b","seq":4,"kind":"throttle","time":null,"detail":' + detail + b"}"
    found = read_message("demo", topic("event"), data)
    assert (found.events, found.unreadable[0].seq) == ((), 4)


LEAF = st.sampled_from(
    [None, True, 0, 1, -1, 2**60, 0.5, 1e300, float("nan"), "", "b", "active", "\0", "\ud800"]
)
JSON = LEAF | st.lists(LEAF, max_size=3) | st.dictionaries(st.sampled_from(["seq", "a"]), LEAF, max_size=2)
FIELDS = (
    "v",
    "boot_id",
    "seq",
    "floor",
    "records",
    "online",
    "job_id",
    "state",
    "kind",
    "detail",
    "rev",
    "profile",
)


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.sampled_from(FROM_BOARD), st.dictionaries(st.sampled_from(FIELDS), JSON))
def test_any_json_is_read_or_malformed_and_nothing_else(kind: str, payload: dict[str, Any]) -> None:
    data = json.dumps({"v": 1, "boot_id": "b", "seq": 1, "floor": 1, **payload}).encode()
    try:
        assert isinstance(read_message("demo", topic(kind), data), Received)
    except Malformed as err:
        assert err.device == "pi5"  # noqa: PT017


@given(st.sampled_from(FROM_BOARD), st.binary(max_size=200))
def test_any_bytes_are_malformed(kind: str, data: bytes) -> None:
    with pytest.raises(Malformed):
        read_message("demo", topic(kind), data)


REPORTED: dict[str, Any] = {"rev": 0, "interval_s": 1.0}
INFO: dict[str, Any] = {"profile": "pi5", "agent": "1", "boot_id": "b"}


def nested(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        ("info", INFO | {"new": nested(500)}),
        ("info", INFO | {"new": "\ud800"}),
        ("reported", REPORTED | {"new": {"\udfff": 1}}),
        ("reported", REPORTED | {"config": {"log.verbose": "\ud800"}}),
        ("reported", REPORTED | {"config": {"log.verbose": 10**400}}),
        ("reported", REPORTED | {"config": {"log.verbose": "x" * 5000}}),
    ],
)
def test_what_would_fail_later_where_it_is_shown_is_not_taken(kind: str, payload: dict[str, Any]) -> None:
    with pytest.raises(Malformed):
        read_message("demo", topic(kind), json.dumps({"v": 1} | payload).encode())


def test_what_a_newer_board_says_is_taken_if_it_is_plain() -> None:
    payload = INFO | {"new": nested(10), "name": "\U0001f600"}
    assert read_message("demo", topic("info"), json.dumps({"v": 1} | payload).encode()).state is not None


@pytest.mark.parametrize("detail", [nested(100), ["\ud800"]])
def test_an_event_whose_detail_would_fail_later_leaves_its_number_alone(detail: Any) -> None:
    event = {
        "v": 1,
        "boot_id": "b",
        "seq": 4,
        "kind": "stop",
        "uptime": 1.0,
        "time": None,
        "detail": {"a": detail},
    }
    found = read_message("demo", topic("event"), json.dumps(event).encode())
    assert not found.events
    assert [entry.seq for entry in found.unreadable] == [4]
