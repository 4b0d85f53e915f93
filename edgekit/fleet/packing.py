"""Counts by number (a histogram's buckets, exits) as a few bytes: pairs of varints (numbers skipped, count)."""

from __future__ import annotations

from collections.abc import Mapping

from edgekit.core.histogram import BUCKETS


def pack_counts(counts: Mapping[int, int]) -> bytes:
    """Counts by number, each above zero."""
    data: list[int] = []
    last = -1
    for number, count in sorted(counts.items()):
        skipped, last = number - last - 1, number
        if skipped < 0x80 and count < 0x80:  # nearly all are: a byte each
            data += (skipped, count)
        else:
            _add_varint(data, skipped)
            _add_varint(data, count)
    return bytes(data)


def _add_varint(data: list[int], value: int) -> None:
    while value >= 0x80:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    data.append(value)


def unpack_counts(data: bytes, limit: int = BUCKETS) -> dict[int, int]:
    """The inverse of pack_counts, for numbers below `limit`. Raises ValueError where the bytes are none of its."""
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            values.append(value)
            value = shift = 0
    if shift or len(values) % 2:
        raise ValueError("histogram column: cut short")
    counts, last = {}, -1
    for skipped, count in zip(values[::2], values[1::2], strict=True):
        last += skipped + 1
        counts[last] = count
    if last >= limit:
        raise ValueError("histogram column: more buckets than there are")
    return counts


def add_counts(into: dict[int, int], data: bytes) -> None:
    """Add packed counts to others: what unpack_counts gives, without its checks. For what this server packed."""
    number, value, shift, is_count = -1, 0, 0, False
    for byte in data:
        if byte >= 0x80:
            value |= (byte & 0x7F) << shift
            shift += 7
            continue
        value |= byte << shift
        if is_count:
            into[number] = into.get(number, 0) + value
        else:
            number += value + 1
        is_count = not is_count
        value = shift = 0
