"""Wait out a repository that does not answer. Knows no job."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from edgekit.agent.repository.base import NetworkFailed
from edgekit.core.errors import one_line

T = TypeVar("T")
_FIRST_RETRY_S, MAX_RETRY_S = 0.5, 60.0
_LOOK_S = 5.0  # how long nobody looks whether it should still go on


def patiently(
    action: Callable[[], T],
    check: Callable[[], None],
    waits: Callable[[str | None], None],
    pause: Callable[[float], object],
) -> T:
    """Try until it works: whatever a server answers, for it may be being repaired; only `check` ends that.

    check: raises where it must not go on. waits: told why it failed; None once it worked. pause: waits, and gives
    something true where another try is worth it now. Each wait is twice as long as the one before, unless something
    came meanwhile, and partly by chance; a server that says how long to wait (Retry-After) is heard.
    """
    delay = _FIRST_RETRY_S
    while True:
        check()
        try:
            result = action()
        except NetworkFailed as err:
            waits(one_line(err))
            delay = _FIRST_RETRY_S if err.progressed else delay
            left = max(delay * (0.5 + random.random() / 2), err.retry_after_s or 0.0)
        else:
            waits(None)
            return result
        while left > 0 and not pause(min(left, _LOOK_S)):
            left -= _LOOK_S
            check()
        delay = min(2 * delay, MAX_RETRY_S)
