"""Links that let a browser in once: what `edgekit demo` prints in place of the server's token. In memory only."""

from __future__ import annotations

import secrets
import threading

from edgekit.fleet.accounts import sha256

LIFE_S = 600.0
MAX_LINKS = 100


class Links:
    """The links that were not used yet."""

    life_s = LIFE_S

    def __init__(self) -> None:
        self._ends: dict[str, float] = {}
        self._lock = threading.Lock()

    def make(self, now: float) -> str:
        """A new link's code, good once until `now` + LIFE_S."""
        code = secrets.token_urlsafe(32)
        with self._lock:
            self._forget(now)
            while len(self._ends) >= MAX_LINKS:
                del self._ends[next(iter(self._ends))]
            self._ends[sha256(code)] = now + LIFE_S
        return code

    def take(self, code: str, now: float) -> bool:
        """Whether a code is good; never again after this."""
        with self._lock:
            self._forget(now)
            return self._ends.pop(sha256(code), None) is not None

    def _forget(self, now: float) -> None:
        self._ends = {key: end for key, end in self._ends.items() if end > now}
