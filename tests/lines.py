"""The line between boards and server, to be slowed and cut: network namespaces, or proxies on loopback."""

from __future__ import annotations

import contextlib
import ctypes
import os
import selectors
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

T = TypeVar("T")
CLONE_NEWNET = 0x40000000
TBF = ("tbf", "burst", "16kb", "latency", "400ms")


class Lines(Protocol):
    """One line per board. host: where the server is told to be reached."""

    host: str
    listen: str

    def on_server(self) -> Sequence[str]:
        """What stands before a command that runs beside the server."""

    def on_board(self, board: str) -> Sequence[str]:
        """The same for a board."""

    def ask(self, question: Callable[[], T]) -> T:
        """Call a function where the server is reached."""

    def port(self, board: str, port: int) -> int:
        """What a board calls a port of the server."""

    def slow(self, rate: int, delay_s: float, loss: float) -> None:
        """rate: bytes a second and board; loss: a share of the packets, where there are packets."""

    def cut(self) -> None: ...

    def mend(self) -> None: ...

    def close(self) -> None: ...


# --- network namespaces ---


def may_make_namespaces() -> str | None:
    """Why not; None where they can be made and slowed."""
    for program in ("ip", "tc"):
        if shutil.which(program, path=os.environ["PATH"] + ":/usr/sbin:/sbin") is None:
            return f"{program} is not here: apt-get install iproute2"
    if os.geteuid() != 0:
        return "network namespaces want root"
    name = f"edgekit-{os.getpid()}-try"
    try:
        run("ip", "netns", "add", name)
        run("ip", "-n", name, "link", "add", "x", "type", "veth", "peer", "name", "y")
        run("tc", "-n", name, "qdisc", "add", "dev", "x", "root", *TBF, "rate", "8mbit")
    except subprocess.CalledProcessError as err:
        return f"network namespaces cannot be made here: {err.stderr.strip()}"
    finally:
        subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return None


def run(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True, text=True)


class Namespaces:
    """The server in one network, each board in one of its own, a cable to each."""

    host = "10.213.0.1"
    listen = "0.0.0.0"

    def __init__(self, boards: Sequence[str]) -> None:
        self.prefix = f"edgekit-{os.getpid()}"
        self.boards = list(boards)
        self.made: list[str] = []
        self._there = ThreadPoolExecutor(1)
        try:
            self._make()
        except BaseException:
            self.close()
            raise

    def _make(self) -> None:
        server = self._add("server")
        run("ip", "-n", server, "addr", "add", f"{self.host}/32", "dev", "lo")
        for number, board in enumerate(self.boards, 1):
            own, cable, net = self._add(board), f"to-{number}", f"10.213.{number}"
            run(
                "ip", "-n", server, "link", "add", cable, "type", "veth", "peer", "name", "line", "netns", own
            )
            run("ip", "-n", server, "addr", "add", f"{net}.1/24", "dev", cable)
            run("ip", "-n", own, "addr", "add", f"{net}.2/24", "dev", "line")
            run("ip", "-n", server, "link", "set", cable, "up")
            run("ip", "-n", own, "link", "set", "line", "up")
            run("ip", "-n", own, "route", "add", "default", "via", f"{net}.1")
        self._there.submit(self._enter, server).result()

    def _add(self, name: str) -> str:
        name = f"{self.prefix}-{name}"
        run("ip", "netns", "add", name)
        self.made.append(name)
        run("ip", "-n", name, "link", "set", "lo", "up")
        return name

    @staticmethod
    def _enter(name: str) -> None:
        """The calling thread's new sockets belong to that network."""
        with Path(f"/run/netns/{name}").open("rb") as file:
            if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")

    def on_server(self) -> Sequence[str]:
        return ("ip", "netns", "exec", f"{self.prefix}-server")

    def on_board(self, board: str) -> Sequence[str]:
        return ("ip", "netns", "exec", f"{self.prefix}-{board}")

    def ask(self, question: Callable[[], T]) -> T:
        return self._there.submit(question).result()

    def port(self, board: str, port: int) -> int:
        return port

    def slow(self, rate: int, delay_s: float, loss: float) -> None:
        bits = ("rate", f"{8 * rate}bit")
        netem = ("netem", *bits, "delay", f"{delay_s * 1000:g}ms", "loss", f"{100 * loss:g}%")
        for name, device in self._ends():
            shape = ("tc", "-n", name, "qdisc", "replace", "dev", device, "root")
            try:
                run(*shape, *netem)
            except subprocess.CalledProcessError:  # a kernel without it: the rate alone
                run(*shape, *TBF, *bits)

    def _ends(self) -> list[tuple[str, str]]:
        cables = [(f"{self.prefix}-server", f"to-{number}") for number in range(1, len(self.boards) + 1)]
        return cables + [(f"{self.prefix}-{board}", "line") for board in self.boards]

    def cut(self) -> None:
        for name, device in self._ends()[: len(self.boards)]:
            run("ip", "-n", name, "link", "set", device, "down")

    def mend(self) -> None:
        for name, device in self._ends()[: len(self.boards)]:
            run("ip", "-n", name, "link", "set", device, "up")

    def close(self) -> None:
        self._there.shutdown()
        for name in self.made:
            subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)


# --- a proxy ---


class Proxies:
    """All on loopback; a proxy per board and port, which hands bytes on slowly and hangs up when it is cut."""

    host = listen = "127.0.0.1"

    def __init__(self, boards: Sequence[str]) -> None:
        del boards
        self._proxies: dict[tuple[str, int], Proxy] = {}
        self._budgets: dict[str, Budget] = {}

    def on_server(self) -> Sequence[str]:
        return ()

    def on_board(self, board: str) -> Sequence[str]:
        return ()

    def ask(self, question: Callable[[], T]) -> T:
        return question()

    def port(self, board: str, port: int) -> int:
        if (board, port) not in self._proxies:
            budget = self._budgets.setdefault(board, Budget())
            self._proxies[board, port] = Proxy(port, budget)
        return self._proxies[board, port].port

    def slow(self, rate: int, delay_s: float, loss: float) -> None:
        del loss  # TCP makes up for it
        for budget in self._budgets.values():
            budget.rate, budget.delay_s = rate, delay_s

    def cut(self) -> None:
        for proxy in self._proxies.values():
            proxy.cut()

    def mend(self) -> None:
        for proxy in self._proxies.values():
            proxy.is_cut = False

    def close(self) -> None:
        for proxy in self._proxies.values():
            proxy.close()


class Budget:
    """What one line may carry. rate: bytes a second; None: all there is."""

    def __init__(self) -> None:
        self.rate: int | None = None
        self.delay_s = 0.0
        self._free_at = 0.0
        self._lock = threading.Lock()

    def take(self, size: int) -> None:
        """Wait until `size` bytes are through."""
        if self.rate is None:
            return
        with self._lock:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + size / self.rate
            wait = self._free_at + self.delay_s - now
        time.sleep(wait)


class Proxy:
    """From a port of its own to a port of this machine."""

    def __init__(self, target: int, budget: Budget) -> None:
        self.target, self.budget, self.is_cut = target, budget, False
        self._open: set[socket.socket] = set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.is_cut:
                near.close()
                continue
            threading.Thread(target=self._carry, args=(near,), daemon=True).start()

    def _carry(self, near: socket.socket) -> None:
        with (
            near,
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.target), 5) as far,
        ):
            ends = {near: far, far: near}
            self._open |= set(ends)
            try:
                with selectors.DefaultSelector() as ready:
                    for end in ends:
                        ready.register(end, selectors.EVENT_READ)
                    while True:
                        for key, _ in ready.select():
                            end: Any = key.fileobj
                            data = end.recv(16_384)
                            if not data:
                                return
                            self.budget.take(len(data))
                            ends[end].sendall(data)
            finally:
                self._open -= set(ends)

    def cut(self) -> None:
        """Hang up on everybody, in the middle of a word, and let nobody in."""
        self.is_cut = True
        for end in list(self._open):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()
        self.cut()
