"""Keep screens fresh without reloading, at a bounded cost however many are open. Knows no screen.

What several tabs show is read once for all of them. Reading all that is shown takes at most _SHARE of one core, and one
thing at most a tenth: what is slow, and what many look at, is read more rarely.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from nicegui import ui
from starlette.concurrency import run_in_threadpool

from edgekit.core.errors import EdgekitError, one_line
from edgekit.fleet.views import Unknown

log = logging.getLogger("edgekit.fleet.web")

T = TypeVar("T")
REFRESH_S = 2.0
_REST = 10  # one thing: at most a tenth of a core
_SHARE = 0.25  # all together, of one core
_FORGET_S = 60.0  # what nobody asked for so long is dropped
_MOST_KEPT = 500
_REDRAW_S = 10.0  # "3 s ago" grows although nothing was said


@dataclass
class _Kept:
    """One answer. cost_s: how long reading it took; task: a reading that is under way."""

    value: Any = None
    at: float = -1e9
    asked: float = 0.0
    cost_s: float = 0.0
    task: asyncio.Task[Any] | None = None


@dataclass
class Reader:
    """Reads for all screens of this process. clock: monotonic seconds."""

    clock: Callable[[], float] = time.monotonic
    run: Callable[[Callable[[], Any]], Awaitable[Any]] = run_in_threadpool
    _kept: dict[Hashable, _Kept] = field(default_factory=dict)
    _turn: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(2))

    async def read(self, key: Hashable, function: Callable[[], T], *, now: bool = False) -> T:
        """What `function` gives, or what it gave somebody else a moment ago. now: somebody waits for just this.

        key: what the answer depends on. Raises what `function` raises.
        """
        kept = self._kept.setdefault(key, _Kept())
        kept.asked = self.clock()
        if kept.task is None and (now or kept.at < -1 or self.clock() - kept.at >= self.rest_s(kept)):
            kept.task = asyncio.ensure_future(self._read(kept, function))
            kept.task.add_done_callback(_heard)
        if kept.task is not None:
            await asyncio.shield(kept.task)
        self._forget()
        value: T = kept.value
        return value

    def rest_s(self, kept: _Kept) -> float:
        """How old an answer may get before it is read again."""
        everything = sum(other.cost_s for other in self._kept.values())
        return max(REFRESH_S, _REST * kept.cost_s, everything / _SHARE)

    async def _read(self, kept: _Kept, function: Callable[[], Any]) -> None:
        try:
            async with self._turn:
                start = self.clock()
                try:
                    kept.value = await self.run(function)
                finally:
                    kept.at = self.clock()
                    kept.cost_s = kept.at - start
        except BaseException:
            kept.at = -1e9  # nothing to show: whoever asks next tries again
            raise
        finally:
            kept.task = None

    def _forget(self) -> None:
        old = self.clock() - _FORGET_S
        for key in [key for key, kept in self._kept.items() if kept.asked < old and kept.task is None]:
            del self._kept[key]
        while len(self._kept) > _MOST_KEPT:
            del self._kept[next(iter(self._kept))]


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()  # those who wait get it; nobody may be waiting any more


class Fresh(Generic[T]):
    """One screen's reading and showing. `key` and `read` are asked anew each time: filters may have changed.

    A failure is a line on the screen; what was shown stays. What is unknown is all that is shown then.
    """

    def __init__(
        self,
        reader: Reader,
        place: ui.column,
        key: Callable[[], Hashable],
        read: Callable[[], T],
        show: Callable[[T], None],
    ) -> None:
        self.reader, self.place, self.key, self.read, self.show = reader, place, key, read, show
        self.last: T | None = None
        self.shown_at = 0.0
        self.over = False
        with place:
            self.line = ui.label().classes("ek-problem").props("role=alert")
            self.line.set_visibility(False)
        self.line.move(target_index=0)

    async def start(self) -> None:
        """Show it now, and from now on."""
        await self.refresh(now=False, force=True)
        with self.place:
            ui.timer(REFRESH_S, self.refresh, immediate=False)

    async def refresh(self, *, now: bool = False, force: bool = False) -> None:
        """Read, and show what is new. now: somebody pressed something."""
        if self.over or self.place.is_deleted:
            return
        key = self.key()
        try:
            found = await self.reader.read(key, self.read, now=now)
        except Unknown as err:
            self.over = True
            self._clear(one_line(err))
            return
        except EdgekitError as err:
            self._say(one_line(err))
            return
        except Exception:
            log.exception("a screen's reading met a defect")
            self._say("This could not be read: the server's log says why.")
            return
        if self.place.is_deleted or key != self.key():
            return  # the tab is closed, or asks for something else by now
        self.line.set_visibility(False)
        tick = time.monotonic()
        if force or now or found != self.last or tick - self.shown_at >= _REDRAW_S:
            self.last, self.shown_at = found, tick
            with self.place:
                self.show(found)

    def _say(self, text: str) -> None:
        self.line.set_text(text)
        self.line.set_visibility(True)

    def _clear(self, text: str) -> None:
        self.place.clear()
        with self.place:
            ui.label(text).classes("ek-problem").props("role=alert")
            ui.link("Back to the overview", "/").classes("ek-link")
