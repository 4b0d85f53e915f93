"""Wait out a repository that does not answer. Knows no job."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import TypeVar

from edgekit.agent.remote import NetworkFailed
from edgekit.core.errors import one_line

T = TypeVar("T")
_FIRST_RETRY_S, MAX_RETRY_S = 0.5, 60.0


def patiently(
    action: Callable[[], T],
    check: Callable[[], None],
    waits: Callable[[str | None], None],
    pause: Callable[[float], object],
) -> T:
    """Try until it works. check: raises where it must not go on. waits: told why it failed; None once it worked."""
    delay = _FIRST_RETRY_S
    while True:
        check()
        try:
            result = action()
        except NetworkFailed as err:
            waits(one_line(err))
        else:
            waits(None)
            return result
        pause(delay * (0.5 + random.random() / 2))
        delay = min(2 * delay, MAX_RETRY_S)
