"""Tell the service manager how the agent is: sd_notify(3) over a datagram socket. Sends nothing where nobody asked.

What listens is systemd or our own supervisor; both end an agent that says WATCHDOG=1 no more.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import threading
from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass

from edgekit.agent.threads import Pulse

log = logging.getLogger(__name__)
_SHARE = 4  # beats in what the watchdog waits for
_USUAL_S = 60.0


class Notifier:
    """address: of the socket, "@" for an abstract one; "" or something else: nobody listens."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        self.address = address if address.startswith(("/", "@")) else ""
        self.watchdog_s = watchdog_s if self.address else None

    def say(self, *lines: str) -> None:
        """One message. Nothing is raised where nobody takes it: a full or broken socket must not stop the agent."""
        if not self.address:
            return
        address = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        text = "\n".join(" ".join(line.split()) for line in lines)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:
            out.setblocking(False)
            out.sendto(text.encode(), address)

    def status(self, text: str) -> None:
        """A sentence for `systemctl status`, and for the supervisor's verdict."""
        self.say(f"STATUS={text}")


def notifier(environ: MutableMapping[str, str], pid: int | None = None) -> Notifier:
    """What the service manager asked of this process. Taken out of `environ`: no child of ours is meant."""
    address = environ.pop("NOTIFY_SOCKET", "")
    usec, meant = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
    mine = meant in ("", str(os.getpid() if pid is None else pid))
    return Notifier(address, int(usec) / 1e6 if usec.isdecimal() and int(usec) and mine else None)


@dataclass(frozen=True)
class Watched:
    """A thread that must get on. poke: has it show that it does. limit_s: how long it may be busy without a beat."""

    pulse: Pulse
    poke: Callable[[], None]
    limit_s: float = _USUAL_S


class Guard(threading.Thread):
    """Says WATCHDOG=1 for as long as every watched thread gets on, and says which one does not."""

    def __init__(self, notifier: Notifier, watched: Mapping[str, Watched]) -> None:
        super().__init__(name="guard", daemon=True)
        self._notifier = notifier
        self._watched = watched
        self._ended = threading.Event()
        self._complained: str | None = None

    def run(self) -> None:
        """The thread; over at once where nobody waits for it."""
        period_s = self._notifier.watchdog_s
        while period_s is not None and not self._ended.is_set():
            self.step()
            self._ended.wait(period_s / _SHARE)

    def step(self) -> None:
        """One round."""
        why = self.unhealthy()
        if why is None:
            self._notifier.say("WATCHDOG=1")
        elif why != self._complained:
            log.error("%s: the watchdog is told no more", why)
            self._notifier.status(why)
        self._complained = why

    def unhealthy(self) -> str | None:
        """Which thread shows no progress, None where all do. Pokes them; what they show counts the next time."""
        hung = [
            f"{name} has not got on for {watched.pulse.silent_s:.0f} s"
            for name, watched in self._watched.items()
            if watched.pulse.silent_s > watched.limit_s
        ]
        for watched in self._watched.values():
            watched.poke()
        return "; ".join(hung) or None

    def stop(self) -> None:
        """No more beats."""
        self._ended.set()
