"""tools/mqtt_packets.py, against what paho makes and reads of the same packets."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "tools" / "mqtt_packets.py"


def imported():
    spec = importlib.util.spec_from_file_location("mqtt_packets", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mqtt = imported()


@pytest.mark.parametrize("length", [0, 1, 100, 127, 128, 16_383, 16_384, 300_000])
@pytest.mark.parametrize("step", [1, 7, 1_000_000])
def test_packets_come_out_whole_however_their_bytes_arrive(length, step):
    if length > 20_000 and step == 1:
        step = 997
    packets = [mqtt.publish("a/b", b"x" * length, 9), mqtt.puback(7), mqtt.PINGREQ_PACKET]
    stream, incoming, found = b"".join(packets), mqtt.Incoming(), []
    for at in range(0, len(stream), step):
        found += incoming.feed(stream[at : at + step])
    assert [first for first, _ in found] == [0x32, 0x40, 0xC0]
    assert mqtt.read_publish(*found[0]) == ("a/b", b"x" * length, 9)
    assert mqtt.read_puback(found[1][1]) == (7, 0)


def test_a_retained_publication_says_so():
    ((first, body),) = mqtt.Incoming().feed(mqtt.publish("t", b"{}", 65_535, retain=True))
    assert (first, mqtt.read_publish(first, body)) == (0x33, ("t", b"{}", 65_535))


def test_a_connack_is_read_past_properties_that_do_not_matter():
    properties = b"\x12\x00\x03abc" + b"\x26\x00\x01k\x00\x01v" + b"\x21\x00\x14" + b"\x22\x00\x0a"
    body = b"\x00\x00" + bytes([len(properties)]) + properties
    assert mqtt.read_connack(body) == (0, 20)
    assert mqtt.read_connack(b"\x00\x87\x00") == (0x87, 65_535)


@pytest.mark.parametrize("data", [b"\x30\xff\xff\xff\xff\x01", b"\x30\xff\xff\xff\x7f" + b"x" * 10])
def test_a_length_that_no_packet_has_is_an_error(data):
    with pytest.raises(mqtt.ProtocolError):
        list(mqtt.Incoming().feed(data))


def test_a_connack_with_an_unknown_property_is_an_error():
    with pytest.raises(mqtt.ProtocolError, match="property 127"):
        mqtt.read_connack(b"\x00\x00\x02\x7f\x00")
