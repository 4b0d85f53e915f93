"""MQTT 5 packets as bytes, as few as a board needs: QoS 1, a will, no properties of its own. Opens no connection.

Source: OASIS, MQTT Version 5.0, 7 March 2019.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

CONNACK, PUBLISH, PUBACK, SUBACK, PINGRESP, DISCONNECT = 2, 3, 4, 9, 13, 14
PINGREQ_PACKET = b"\xc0\x00"
DISCONNECT_PACKET = b"\xe0\x00"
FAILURE = 0x80  # reason codes from here on
_DEFAULT_RECEIVE_MAXIMUM = 65_535
_RECEIVE_MAXIMUM = 0x21
# what a CONNACK may say, by identifier: how many bytes its value has; 0: text, -1: a pair of texts
_CONNACK_PROPERTIES = {
    0x11: 4, 0x12: 0, 0x13: 2, 0x15: 0, 0x16: 0, 0x1A: 0, 0x1C: 0, 0x1F: 0, 0x21: 2, 0x22: 2, 0x24: 1,
    0x25: 1, 0x26: -1, 0x27: 4, 0x28: 1, 0x29: 1, 0x2A: 1,
}  # fmt: skip
_MAX_PACKET = 8 * 2**20


class ProtocolError(Exception):
    """The broker sent what is no MQTT 5."""


def _text(value: str) -> bytes:
    data = value.encode()
    return len(data).to_bytes(2, "big") + data


def _packet(first: int, body: bytes) -> bytes:
    length, head = len(body), bytearray([first])
    while True:
        length, low = length >> 7, length & 0x7F
        head.append(low | 0x80 if length else low)
        if not length:
            return bytes(head) + body


def connect(client_id: str, password: str, keepalive_s: int, will_topic: str, will: bytes) -> bytes:
    """CONNECT with a clean start, the client id as user name, and a retained will of QoS 1."""
    flags = 0x80 | 0x40 | 0x20 | 0x08 | 0x04 | 0x02  # user, password, will retained, of QoS 1, will, clean
    head = _text("MQTT") + bytes([5, flags]) + keepalive_s.to_bytes(2, "big") + b"\x00"
    payload = _text(client_id) + b"\x00" + _text(will_topic) + len(will).to_bytes(2, "big") + will
    return _packet(0x10, head + payload + _text(client_id) + _text(password))


def publish(topic: str, payload: bytes, number: int, *, retain: bool = False) -> bytes:
    """PUBLISH of QoS 1. number: 1 to 65535, of none that waits for its PUBACK."""
    return _packet(0x32 | retain, _text(topic) + number.to_bytes(2, "big") + b"\x00" + payload)


def puback(number: int) -> bytes:
    """PUBACK: it arrived."""
    return b"\x40\x02" + number.to_bytes(2, "big")


def subscribe(number: int, topics: Sequence[str]) -> bytes:
    """SUBSCRIBE with QoS 1."""
    return _packet(
        0x82, number.to_bytes(2, "big") + b"\x00" + b"".join(_text(topic) + b"\x01" for topic in topics)
    )


class Incoming:
    """Bytes of one connection, cut into packets."""

    __slots__ = ("_held",)

    def __init__(self) -> None:
        self._held = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Each whole packet's first byte and body. Raises ProtocolError."""
        data = self._held + data if self._held else data
        at, end = 0, len(data)
        while at + 2 <= end:
            length, shift, body = 0, 0, at + 1
            while True:
                if body >= end:
                    self._held = data[at:]
                    return
                byte = data[body]
                body += 1
                length |= (byte & 0x7F) << shift
                if byte < FAILURE:
                    break
                shift += 7
                if shift > 21:
                    raise ProtocolError("a length of more than four bytes")
            if length > _MAX_PACKET:
                raise ProtocolError(f"a packet of {length} bytes")
            if body + length > end:
                break
            yield data[at], data[body : body + length]
            at = body + length
        self._held = data[at:]


def read_connack(body: bytes) -> tuple[int, int]:
    """The reason code, and how many messages may wait for their PUBACK. Raises ProtocolError."""
    if len(body) < 3:
        raise ProtocolError("a CONNACK without properties")
    reason, maximum = body[1], _DEFAULT_RECEIVE_MAXIMUM
    length, at = _number(body, 2)
    end = at + length
    while at < end:
        key = body[at]
        size = _CONNACK_PROPERTIES.get(key)
        if size is None:
            raise ProtocolError(f"a CONNACK with property {key}")
        if key == _RECEIVE_MAXIMUM:
            maximum = int.from_bytes(body[at + 1 : at + 3], "big")
        at += 1
        for _ in range(2 if size < 0 else 1):
            at += size if size > 0 else 2 + int.from_bytes(body[at : at + 2], "big")
    return reason, maximum


def read_publish(first: int, body: bytes) -> tuple[str, bytes, int | None]:
    """Topic, payload, and the number to acknowledge; None for QoS 0. Raises ProtocolError."""
    at = 2 + int.from_bytes(body[:2], "big")
    try:
        topic = body[2:at].decode()
    except UnicodeDecodeError as err:
        raise ProtocolError("a topic that is no UTF-8") from err
    number = None
    if first & 0x06:
        number = int.from_bytes(body[at : at + 2], "big")
        at += 2
    length, at = _number(body, at)
    return topic, body[at + length :], number


def read_puback(body: bytes) -> tuple[int, int]:
    """Which message, and the reason code."""
    return int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0


def _number(body: bytes, at: int) -> tuple[int, int]:
    """A number of variable length, and where it ends. Raises ProtocolError."""
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(body):
            break
        byte = body[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < FAILURE:
            return value, at
    raise ProtocolError("a number that does not end")
