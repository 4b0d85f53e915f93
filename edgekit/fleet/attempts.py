"""How long one who guesses passwords must wait. In memory, bounded; no clock of its own, no I/O.

Counted per user and per address. The wait grows to a minute and no further, it is never a lock; and an address from
which a user has logged in before is counted apart, so that a stranger who guesses at a name does not keep its owner
out.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass

FREE_OF_USER, FREE_OF_ADDRESS = 5, 20  # failures that cost nothing
MAX_WAIT_S = 60.0
FORGET_S = 900.0  # without a failure
MAX_KEYS = 20_000
NOTES_PER_HOUR = 100

_Key = tuple[str, ...]


@dataclass
class _Count:
    failures: int
    last: float


def wait_s(failures: int, free: int) -> float:
    """Seconds to wait after so many failures."""
    return 0.0 if failures < free else min(MAX_WAIT_S, 2.0 ** min(failures - free, 16))


class Attempts:
    """What is remembered of failed logins. One thread at a time may use it."""

    def __init__(self) -> None:
        self._counts: OrderedDict[_Key, _Count] = OrderedDict()
        self._homes: OrderedDict[_Key, None] = OrderedDict()  # (user, address) of good logins
        self._hour, self._notes = 0, 0

    def must_wait_s(self, user: str | None, address: str, now: float) -> float:
        """Seconds until the next attempt is looked at; 0: now. user: None where only a token is shown."""
        waits = [0.0]
        for key, free in self._keys(user, address):
            count = self._count(key, now)
            if count is not None:
                waits.append(count.last + wait_s(count.failures, free) - now)
        return max(waits)

    def failed(self, user: str | None, address: str, now: float) -> int:
        """Count a failure; how many there were, where that number is worth a line in the audit log, else 0.

        It is counted before the password is compared, so that attempts at the same time count as well; `succeeded`
        takes it back.
        """
        numbers = []
        for key, _free in self._keys(user, address):
            count = self._count(key, now) or _Count(0, now)
            self._counts[key] = _Count(count.failures + 1, now)
            self._counts.move_to_end(key)
            numbers.append(count.failures + 1)
        while len(self._counts) > MAX_KEYS:
            self._counts.popitem(last=False)
        worth = max((number for number in numbers if _is_landmark(number)), default=0)
        return worth if worth and self._may_note(now) else 0

    def succeeded(self, user: str, address: str, now: float) -> int:
        """Take the attempt back, forget a user's failures and remember where it is at home; how many there were."""
        key = self._user_key(user, address)
        count = self._count(key, now)
        self._counts.pop(key, None)
        self._take_back(("address", _network(address)), now)
        self._homes[(user, _network(address))] = None
        self._homes.move_to_end((user, _network(address)))
        while len(self._homes) > MAX_KEYS:
            self._homes.popitem(last=False)
        return 0 if count is None else count.failures - 1

    def _take_back(self, key: _Key, now: float) -> None:
        count = self._count(key, now)
        if count is not None:
            self._counts[key] = _Count(count.failures - 1, count.last)

    def _keys(self, user: str | None, address: str) -> list[tuple[_Key, int]]:
        keys: list[tuple[_Key, int]] = [(("address", _network(address)), FREE_OF_ADDRESS)]
        if user is not None:
            keys.append((self._user_key(user, address), FREE_OF_USER))
        return keys

    def _user_key(self, user: str, address: str) -> _Key:
        home = (user, _network(address))
        return ("home", *home) if home in self._homes else ("user", user)

    def _count(self, key: _Key, now: float) -> _Count | None:
        count = self._counts.get(key)
        return None if count is None or now - count.last > FORGET_S else count

    def _may_note(self, now: float) -> bool:
        hour = int(now // 3600)
        if hour != self._hour:
            self._hour, self._notes = hour, 0
        self._notes += 1
        return self._notes <= NOTES_PER_HOUR


def _is_landmark(failures: int) -> bool:
    """3, 6, 12, 24, ...: guessing grows the log by its logarithm only."""
    quotient, rest = divmod(failures, 3)
    return rest == 0 and quotient & (quotient - 1) == 0


def _network(address: str) -> str:
    """An IPv6 user has 2**64 addresses: they count as one."""
    try:
        known = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if known.version == 4:
        return str(known)
    mapped = ipaddress.IPv6Address(known).ipv4_mapped
    return str(mapped) if mapped else str(ipaddress.ip_network(f"{known}/64", strict=False))
