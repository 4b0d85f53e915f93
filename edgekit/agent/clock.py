"""Which time may be believed on a board without a battery-backed clock. Asks the kernel, never the network."""

from __future__ import annotations

import ctypes
import time

EARLIEST = 1_735_689_600.0  # 2025: no edgekit runs before it was written
_SLACK_S = 3600.0  # what an honest clock may have been corrected backwards since
_TIMEX_BYTES = 512  # more than any struct timex
_NOT_SYNCHRONIZED = 5  # TIME_ERROR of adjtimex(2)


def trusted(now: float, good_time: float) -> float | None:
    """`now` (Unix seconds) where it can be true: not before edgekit, nor before a time already seen. Else None."""
    return now if now >= max(EARLIEST, good_time - _SLACK_S) else None


def late(expires: float, now: float, good_time: float, n: int, waited_s: float) -> bool:
    """Whether a job's time (Unix seconds) is over, also where the clock cannot be believed.

    n: its command's number, which the server draws from its own clock (ms). waited_s: how long the job is at work here.
    A board without a clock counts from the latest time that it can know.
    """
    believed = trusted(now, good_time)
    if believed is None:
        believed = max(EARLIEST, good_time, n / 1000) + waited_s
    return believed > expires


def trusted_now(good_time: float) -> float | None:
    """The clock's time where it can be believed."""
    return trusted(time.time(), good_time)


def synchronized() -> bool:
    """Whether the kernel's clock is disciplined by NTP, as adjtimex(2) says."""
    try:
        return int(ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(_TIMEX_BYTES))) not in (
            -1,
            _NOT_SYNCHRONIZED,
        )
    except (OSError, AttributeError):
        return False
