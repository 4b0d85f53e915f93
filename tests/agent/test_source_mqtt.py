"""Inputs by message: what is refused and why, what is acknowledged when, and the whole way over a real broker."""

from __future__ import annotations

import contextlib
import io
import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import paho.mqtt.client as mqtt
import pytest
from agents import FLEET, Site, until
from bundles import write_null_bundle
from hypothesis import given, settings
from hypothesis import strategies as st
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from PIL import Image
from taking import Running, Take, png, text

from edgekit.agent.sources import mqtt as mqtt_source
from edgekit.agent.sources.mqtt import Message, MqttSource
from edgekit.core import messages
from edgekit.core.errors import EdgekitError
from edgekit.core.manifest import Manifest

LIMIT = 20_000
KEYS = ["v", "id", "image", "data", "shape", "dtype", "tensors", "policy", "deadline_ms", "label"]


class Sent:
    """Messages to a source, and which were acknowledged."""

    def __init__(self, source: MqttSource) -> None:
        self.source = source
        self.acknowledged: list[int] = []
        self.count = 0

    def send(self, payload: bytes, name: str | None = None) -> None:
        number, self.count = self.count, self.count + 1
        self.source.receive(
            Message(payload, name, lambda: self.acknowledged.append(number), time.monotonic())
        )


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt_source, "LOOK_S", 0.01)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    return write_null_bundle(tmp_path_factory.mktemp("toy") / "toy.edge").manifest


@pytest.fixture
def take(manifest: Manifest) -> Take:
    return Take(manifest)


@pytest.fixture
def sent(take: Take) -> Iterator[Sent]:
    source = MqttSource(LIMIT, 4)
    with Running(source, take):
        yield Sent(source)


def packed(**fields: Any) -> bytes:
    return messages.encode(fields)


def tensor(values: np.ndarray[Any, Any], **more: Any) -> dict[str, Any]:
    return {"shape": list(values.shape), "dtype": str(values.dtype), "data": text(values.tobytes()), **more}


PIXELS = np.full((4, 4), 51, np.uint8)
FLOATS = np.full((1, 4, 4), 0.2, np.float32)

GOOD = {
    "a PNG": png(51),
    "a PNG in an object": packed(id="a", image=text(png(51))),
    "grey pixels": packed(id="a", **tensor(PIXELS)),
    "a tensor without the batch": packed(id="a", **tensor(FLOATS)),
    "a tensor with the batch": packed(id="a", **tensor(FLOATS[None])),
    "a tensor of the model's own dtype": packed(id="a", shape=[1, 4, 4], data=text(FLOATS.tobytes())),
    "tensors by name": packed(id="a", tensors={"x": tensor(FLOATS)}),
    "doubles": packed(id="a", **tensor(FLOATS.astype(np.float64).astype(np.float16))),
}


@pytest.mark.parametrize("payload", GOOD.values(), ids=GOOD.keys())
def test_every_form_of_one_image_is_the_same_input(payload: bytes, sent: Sent, take: Take) -> None:
    sent.send(payload)
    until(lambda: take.samples, "the input")
    assert take.errors == []
    assert take.pixels == [51]
    assert sent.acknowledged == [0]


BAD = {
    "nothing": (b"", "cut short"),
    "no JSON": (b"{", "JSON"),
    "a list": (b"[]", "JSON"),
    "no version": (b'{"id":"a"}', "input.v must be 1"),
    "no way": (packed(id="a"), "an object with one of image, data, tensors"),
    "two ways": (packed(id="a", image="", data=""), "an object with one of"),
    "a file of the board": (packed(id="a", file="/etc/passwd"), "an object with one of image, data, tensors"),
    "no base64": (packed(id="a", image="%%%"), "image must be a base64 text"),
    "no image": (packed(id="a", image=text(b"hello")), "not an image"),
    "half a PNG": (png(51)[:40], "not an image"),
    "a GIF": (
        packed(id="a", image=text(b"GIF89a" + bytes(40))),
        "not an image that can be read: no PNG or JPEG",
    ),
    "too few bytes": (packed(id="a", shape=[4, 4], dtype="uint8", data=text(b"12")), "must hold 16 bytes"),
    "a huge shape": (packed(id="a", shape=[2**31] * 8, dtype="uint8", data=text(b"12")), "must hold"),
    "too many axes": (packed(id="a", shape=[1] * 9, data=text(b"1234")), "at most 8 axes"),
    "a negative axis": (packed(id="a", shape=[-1], data=""), "whole number"),
    "an unknown dtype": (packed(id="a", shape=[1], dtype="object", data=""), "dtype must be one of"),
    "another shape": (packed(id="a", **tensor(np.zeros((2, 3, 4), np.float32))), "must be float32"),
    "an empty image": (packed(id="a", **tensor(np.zeros((0, 4), np.uint8))), "must be"),
    "another input": (packed(id="a", tensors={"y": tensor(FLOATS)}), "needs an array 'x', has y"),
    "two policies": (packed(id="a", image="", deadline_ms=1, policy={"kind": "full"}), "not both"),
    "an unknown policy": (packed(id="a", image="", policy={"kind": "fast"}), "policy.kind must be one of"),
    "a label beyond": (packed(id="a", **tensor(FLOATS, label=3)), "label must be a whole number from 0 to 2"),
    "a bomb": (zlib.compress(b'{"v":1,"x":"' + b"a" * 10**7), f"larger than {LIMIT} bytes"),
    "deep nesting": (b'{"v":1,"x":' + b"[" * 15_000, "JSON"),
}


@pytest.mark.parametrize(("payload", "said"), BAD.values(), ids=BAD.keys())
def test_what_cannot_be_used_is_answered_with_what_is_wrong_and_acknowledged(
    payload: bytes, said: str, sent: Sent, take: Take
) -> None:
    sent.send(payload)
    until(lambda: take.samples, "the input")
    assert len(take.errors) == 1
    assert said in take.errors[0]
    assert "\n" not in take.errors[0]
    assert sent.acknowledged == [0]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(sent: Sent, take: Take) -> None:
    bomb = io.BytesIO()
    Image.new("1", (6000, 6000)).save(bomb, "PNG")
    sent.send(bomb.getvalue())
    until(lambda: take.samples, "the input")
    assert "an image may have 25000000 pixels, got 6000x6000" in take.errors[0]


def test_an_id_comes_from_the_payload_else_from_the_message_else_it_is_a_number(
    sent: Sent, take: Take
) -> None:
    sent.send(packed(id="mine", image=text(png(1))), "properties")
    sent.send(packed(image=text(png(2))), "properties")
    sent.send(png(3))
    sent.send(packed(id=7, image=text(png(4))))
    until(lambda: len(take.ids) == 4, "the inputs")
    sent.send(packed(id="x" * 129, image=text(png(5))))
    sent.send(packed(id="a\nb", image=text(png(5))))
    until(lambda: len(take.ids) == 6, "the inputs")
    assert take.ids == ["mine", "properties", "3", "7", "5", "6"]
    assert len(take.errors) == 2


def test_an_inputs_own_deadline_policy_and_label_go_with_it(sent: Sent, take: Take) -> None:
    sent.send(packed(image=text(png(1)), deadline_ms=2.5, label="two"))
    sent.send(packed(image=text(png(1)), policy={"kind": "budget", "budget": "40%"}, label=1))
    until(lambda: len(take.ids) == 2, "the inputs")
    assert [str(given.policy) for given in take.inputs] == ["anytime 2.5ms", "budget 40%"]
    assert [label for _, label in take.samples] == [2, 1]
    assert all(given.arrived_s is not None for given in take.inputs)


def test_a_payload_above_the_limit_is_refused_unread(sent: Sent, take: Take) -> None:
    sent.send(bytes(LIMIT + 1), "large")
    assert take.refused == [("large", f"an input may have {LIMIT} bytes, got {LIMIT + 1}")]
    assert sent.acknowledged == [0]
    assert take.samples == []


def test_an_input_too_many_is_refused_as_busy_under_its_own_id_and_the_others_are_answered(
    sent: Sent, take: Take
) -> None:
    take.room.clear()
    for number in range(6):
        sent.send(packed(id=f"in-{number}", image=text(png(number))))
    until(lambda: take.begun, "the first one's waiting")
    assert sent.acknowledged == []
    take.room.set()
    until(lambda: len(sent.acknowledged) == 6, "all acknowledgements")
    assert take.ids == ["in-0", "in-1", "in-2", "in-3"]
    assert [name for name, _ in take.refused] == ["in-4", "in-5"]
    assert all(why.startswith("busy: 4 inputs wait already") for _, why in take.refused)
    sent.send(png(9))
    until(lambda: len(take.ids) == 5, "room again")


def test_a_flood_is_refused_by_the_network_thread_and_holds_no_memory(sent: Sent, take: Take) -> None:
    take.room.clear()  # whoever waited for room here would wait for ever
    for _ in range(1000):
        sent.send(png(1), "flood")
    assert len(sent.acknowledged) == 1000 - 6, "no more than 4 and 2 hold a place in the broker's window"
    assert sent.source._held <= 6 * len(png(1))
    take.room.set()
    until(lambda: len(sent.acknowledged) == 1000, "all acknowledgements")
    assert len(take.refused) + len(take.ids) == 1000
    until(lambda: (sent.source._kept, sent.source._held) == (0, 0))


def test_without_a_bundle_it_says_so_at_once(sent: Sent, take: Take) -> None:
    take.serves = False
    sent.send(png(1), "early")
    until(lambda: take.refused)
    assert take.refused == [("early", "busy: no bundle serves yet")]
    assert sent.acknowledged == [0]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.dictionaries(
            st.sampled_from(KEYS),
            st.recursive(
                st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
                lambda inner: (
                    st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
                ),
                max_leaves=5,
            ),
        ).map(lambda entry: json.dumps({"v": 1, **entry}).encode()),
    )
)
def test_no_payload_is_more_than_a_broken_input(manifest: Manifest, payload: bytes) -> None:
    given_ = MqttSource(LIMIT, 4)._input(Message(payload, None, lambda: None))
    with contextlib.suppress(EdgekitError):
        given_.read(manifest)
    assert given_.id()


# --- over a broker ---


class Sender:
    """An application: sends inputs to the board and hears its answers."""

    def __init__(self, port: int, protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5) -> None:
        self.answers: list[dict[str, Any]] = []
        ready = threading.Event()
        self.client = mqtt.Client(CallbackAPIVersion.VERSION2, "sender", protocol=protocol)
        self.client.on_connect = lambda client, *_: client.subscribe(
            messages.topic(FLEET, "pi5", "answer"), 1
        )
        self.client.on_subscribe = lambda *_: ready.set()
        self.client.on_message = lambda _c, _d, message: self.answers.append(
            dict(messages.decode(bytes(message.payload)))
        )
        self.client.connect("127.0.0.1", port)
        self.client.loop_start()
        assert ready.wait(10)

    def send(self, payload: bytes, name: str | None = None, *, retain: bool = False) -> None:
        properties = None
        if name is not None:
            properties = Properties(PacketTypes.PUBLISH)
            properties.UserProperty = ("id", name)
        topic = messages.topic(FLEET, "pi5", "input")
        self.client.publish(topic, payload, 1, retain, properties)

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()


@pytest.fixture
def sender(site: Site) -> Iterator[Sender]:
    made = Sender(site.broker.port)
    yield made
    made.close()


@pytest.fixture
def serving(site: Site) -> Callable[..., Site]:
    def start(source: dict[str, Any] | None = None, sink: dict[str, Any] | None = None) -> Site:
        site.board.write(source={"kind": "mqtt", **(source or {})}, sink={"kind": "mqtt", **(sink or {})})
        site.board.start()
        assert site.run(site.add(version=1), 1)["state"] == "active"
        return site

    return start


def test_fifty_images_bring_fifty_answers_and_the_broken_one_is_counted(
    serving: Callable[..., Site], sender: Sender
) -> None:
    site = serving({"max_waiting": 64}, {"qos": 1})
    for number in range(50):
        pixels = np.zeros((4, 4), np.uint8)
        pixels.flat[number % 3] = 200
        data = png(pixels)
        if number == 17:
            sender.send(data[:50], f"in-{number}")
        elif number % 2:
            sender.send(data, f"in-{number}")
        else:
            sender.send(packed(id=f"in-{number}", image=text(data), label=number % 3))
    until(lambda: len(sender.answers) == 50, "fifty answers")
    answers = {entry["id"]: entry for entry in sender.answers}
    assert set(answers) == {f"in-{number}" for number in range(50)}
    for number in set(range(50)) - {17}:
        answer = answers[f"in-{number}"]
        assert (answer["class"], answer["label"]) == (number % 3, ("zero", "one", "two")[number % 3])
        assert (answer["exit"], answer["bundle"]) == ("exit3", "toy/1")
        assert answer["latency_ms"] > 0
        assert "error" not in answer
    assert "not an image" in answers["in-17"]["error"]
    assert answers["in-17"]["class"] is None

    def counts() -> tuple[int, int, int, int]:
        records = site.server.records()
        keys = ("requests", "errors", "labelled", "correct")
        return tuple(sum(int(record[key]) for record in records) for key in keys)  # type: ignore[return-value]

    until(lambda: counts() == (49, 1, 25, 25), "the records")


def test_a_board_that_serves_nothing_answers_so_and_still_takes_its_bundle(
    site: Site, sender: Sender
) -> None:
    site.board.write(source={"kind": "mqtt"}, sink={"kind": "mqtt"})
    site.board.start()
    until(lambda: site.server.last("status"))
    for number in range(40):
        sender.send(png(1), str(number))
    until(lambda: len(sender.answers) == 40, "the answers")
    assert all(entry["error"].startswith("busy") for entry in sender.answers)
    assert site.run(site.add(version=1), 1)["state"] == "active"
    until(lambda: sum(record["inputs_dropped"] for record in site.server.records()) == 40, "their count")


def test_without_the_source_nobody_listens_to_inputs(site: Site, sender: Sender) -> None:
    site.board.write(sink={"kind": "mqtt"})
    site.board.start()
    sender.send(png(1))
    assert site.run(site.add(version=1), 1)["state"] == "active"
    assert sender.answers == []


def test_a_retained_message_is_no_input(serving: Callable[..., Site], sender: Sender) -> None:
    sender.send(png(1), "old", retain=True)
    serving()
    sender.send(png(2), "new")
    until(lambda: sender.answers)
    assert [entry["id"] for entry in sender.answers] == ["new"]


def test_a_message_larger_than_the_board_takes_does_not_reach_it_and_its_line_goes_on(
    serving: Callable[..., Site], sender: Sender
) -> None:
    site = serving({"max_input_bytes": 2048})
    sender.send(bytes(3000), "refused")
    sender.send(bytes(messages.MAX_PAYLOAD + 2**17), "never sent")
    sender.send(png(2), "small")
    until(lambda: len(sender.answers) == 2)
    assert [(entry["id"], entry.get("error", "")[:35]) for entry in sender.answers] == [
        ("refused", "an input may have 2048 bytes, got 3"),
        ("small", ""),
    ]
    statuses = [payload for kind, payload in site.server.heard if kind == "status"]
    assert [payload["online"] for payload in statuses] == [True]


def test_mqtt_3_1_1_carries_inputs_and_answers_too(site: Site, tmp_path: Path) -> None:
    site.board.write(broker={"protocol": "3.1.1"}, source={"kind": "mqtt"}, sink={"kind": "mqtt"})
    site.board.start()
    assert site.run(site.add(version=1), 1)["state"] == "active"
    sender = Sender(site.broker.port, MQTTProtocolVersion.MQTTv311)
    sender.send(packed(id="a", image=text(png(1))))
    sender.send(png(1))
    until(lambda: len(sender.answers) == 2)
    assert [entry["id"] for entry in sender.answers] == ["a", "2"]
    sender.close()
