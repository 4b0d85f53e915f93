"""Messages: what one side encodes the other reads, and nothing hostile gets through."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any, Protocol

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekit.core import messages as m
from edgekit.core.bench import BenchReport
from edgekit.core.errors import BadInput
from edgekit.core.figure import Figure
from edgekit.core.histogram import histogram
from edgekit.core.policy import PolicySpec, parse_budget
from edgekit.core.record import Record

RECORD = Record(
    seq=4,
    uptime_s=12.5,
    time=1.7e9,
    clock_synced=True,
    interval_s=5.0,
    bundle="cnn/2",
    policy="budget 40%",
    requests=3,
    exit_counts={"exit1": 2, "exit3": 1},
    latency=histogram([1.0, 2.0, 3.0]),
    energy=Figure(5.5, "mJ", "simulated", on="raspberrypi5"),
    throttled=False,
    inputs_dropped=5,
    answers_lost=6,
    cancelled=7,
    nan_confidences=8,
)


class Message(Protocol):
    def to_json(self) -> dict[str, Any]: ...


MESSAGES: list[Message] = [
    m.Status(True, "b1"),
    m.Info(
        "raspberrypi5",
        "0.1",
        "b1",
        {"onnxruntime": "1.32"},
        ("rpi5_pmic",),
        True,
        ("cnn/1",),
        {"root": 1},
        True,
    ),
    m.Desired("demo/pi", 3, 7, "j1", "cnn/2", PolicySpec("budget", parse_budget("3ms")), 10.0, 1.7e9),
    m.Desired("demo/pi", 3, 7, "j1", None, None, None, 1.7e9),
    m.Reported(3, "j1", "active", "cnn/2", "a" * 64, PolicySpec("full"), 60.0, None),
    m.JobEvent("b1", 2, "j1", "refused", "cnn/2", None, "older", "version 3 runs"),
    m.JobEvent("b1", 2, "j1", "done", "pi/2", None, reports=(BenchReport("a" * 64, turns_ms=(1.5, 2.0)),)),
    m.OneShot("demo/pi", 9, "j2", "measure", "pi/2", 1.7e9),
    m.Event("b1", 3, "throttle", 1.7e9, {"on": True}),
    m.Telemetry("b1", 4, (RECORD,)),
    m.Ack("b1", 4),
]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_a_message_survives_the_wire(message: Any) -> None:
    payload = m.decode(m.encode(message.to_json()))
    assert payload["v"] == 1
    again = type(message).parse(payload)
    assert again.to_json() == message.to_json()


def test_a_desired_state_is_no_one_shot_and_a_one_shot_no_desired_state() -> None:
    """Both are signed by one key: neither may be played back on the other's topic."""
    for payload in (message.to_json() for message in MESSAGES if isinstance(message, m.Desired)):
        with pytest.raises(BadInput):
            m.OneShot.parse(payload)
    shot = next(message for message in MESSAGES if isinstance(message, m.OneShot))
    with pytest.raises(BadInput, match="rev"):
        m.Desired.parse(shot.to_json())


def test_a_record_keeps_unknown_apart_from_zero() -> None:
    silent = Record(1, 0.0, None, False, 5.0, None, None)
    again = Record.parse(silent.to_json())
    assert again.energy.value is None
    assert again.throttled is None
    assert again.time is None
    assert again.requests == 0


def test_counts_that_an_older_board_does_not_send_are_zero() -> None:
    counts = ("inputs_dropped", "answers_lost", "cancelled", "nan_confidences")
    older = {key: value for key, value in RECORD.to_json().items() if key not in counts}
    again = Record.parse(older)
    assert [getattr(again, name) for name in counts] == [0] * 4
    assert again.to_json() == RECORD.to_json() | dict.fromkeys(counts, 0)


def test_energy_without_provenance_is_refused() -> None:
    data = RECORD.to_json() | {"energy_provenance": None}
    with pytest.raises(BadInput, match="energy_provenance"):
        Record.parse(data)


def test_unknown_fields_are_ignored() -> None:
    assert m.Ack.parse({"v": 1, "boot_id": "b1", "upto": 3, "new": []}) == m.Ack("b1", 3)


def test_large_payloads_are_compressed_and_readers_tell_by_the_first_byte() -> None:
    small, large = m.encode({"a": 1}), m.encode({"a": ["long text"] * 1000})
    assert small[:1] == b"{"
    assert large[:1] != b"{"
    assert len(large) < 1000
    assert len(m.decode(large)["a"]) == 1000


def test_a_bomb_is_refused_before_it_is_unpacked() -> None:
    with pytest.raises(BadInput, match="larger than"):
        m.decode(zlib.compress(b'{"v":1,"a":"' + b"0" * (m.MAX_PAYLOAD + 1) + b'"}'))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"null",
        b"{",
        b'{"v":2}',
        b"{}",
        b'{"v":1,"x":NaN}',
        b'{"v":1,"x":Infinity}',
        b"\xff\xfe",
        b'{"v":1,' + b'"a":[' * 100_000,
        zlib.compress(b"{}")[:-3],
    ],
)
def test_what_is_not_a_message_is_bad_input(data: bytes) -> None:
    with pytest.raises(BadInput) as caught:
        m.decode(data)
    assert "\n" not in str(caught.value)


@given(st.binary(max_size=200))
def test_random_bytes_never_raise_anything_else(data: bytes) -> None:
    try:
        payload = m.decode(data)
    except BadInput:
        return
    assert isinstance(payload, Mapping)


def test_topics_name_fleet_device_and_kind() -> None:
    assert m.topic("site-a", "pi5", "job/event") == "edgekit/v1/site-a/pi5/job/event"
    assert m.parse_topic("edgekit/v1/site-a/pi5/job/event") == ("site-a", "pi5", "job/event")


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "edgekit/v1",
        "edgekit/v2/f/d/status",
        "edgekit/v1/f/d/other",
        "edgekit/v1/f/#/status",
        "x/y/f/d/ack",
    ],
)
def test_foreign_topics_are_refused(topic: str) -> None:
    with pytest.raises(BadInput):
        m.parse_topic(topic)


def test_a_signature_covers_every_field_but_itself() -> None:
    payload = {"to": "f/d", "rev": 1}
    assert m.signed_bytes(payload) == m.signed_bytes({**payload, "sig": "x", "v": 1})
    assert m.signed_bytes(payload) != m.signed_bytes({**payload, "rev": 2})


def test_a_telemetry_message_has_a_limit_of_records() -> None:
    with pytest.raises(BadInput, match="at most"):
        m.Telemetry.parse({"boot_id": "b", "floor": 1, "records": [{}] * 10_001})
