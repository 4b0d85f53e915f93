"""The socket the local API listens on: TCP on an address, or a Unix socket that replaces a stale one."""

from __future__ import annotations

import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from edgekit.agent.config import Api
from edgekit.core.errors import BadInput, WorldFailed, one_line

BACKLOG = 128


def listen(api: Api) -> socket.socket:
    """Bind and listen. Raises BadInput for a path that is no socket's, WorldFailed where the system refuses."""
    try:
        return _listen_tcp(api) if api.path is None else _listen_unix(api.path, api.socket_mode)
    except OSError as err:
        raise WorldFailed(f"{api.address} cannot be listened on: {err.strerror or one_line(err)}") from err


def try_listen(api: Api) -> None:
    """Whether `listen` could be done; a Unix socket is not made for that. Raises as it does."""
    if api.path is None:
        listen(api).close()
        return
    _refuse_what_lives(api.path)
    if not os.access(api.path.parent, os.W_OK | os.X_OK):
        raise WorldFailed(
            f"{api.address} cannot be listened on: {api.path.parent} is no folder one may write to"
        )


def _listen_tcp(api: Api) -> socket.socket:
    host = api.host or "127.0.0.1"
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio turns Nagle's algorithm off: else every answer waits 40 ms for the client's ACK.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, api.port))
        made.listen(BACKLOG)
    except BaseException:
        made.close()
        raise
    return made


def _listen_unix(path: Path, mode: int) -> socket.socket:
    """Bound under another name, given its permissions, then put in its place: nobody meets it half made."""
    _refuse_what_lives(path)
    fresh = path.with_name(f".{os.getpid()}")
    made = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with suppress(FileNotFoundError):
            fresh.unlink()
        made.bind(str(fresh))
        fresh.chmod(mode)
        made.listen(BACKLOG)
        fresh.replace(path)
    except BaseException:
        made.close()
        with suppress(OSError):
            fresh.unlink()
        raise
    return made


def _refuse_what_lives(path: Path) -> None:
    try:
        found = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise BadInput(f"unix:{path} is there and is no socket: take it away or name another path")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return  # left behind
        except OSError:  # somebody is there and does not answer at once
            pass
    raise WorldFailed(f"unix:{path} cannot be listened on: another process listens there")


def identity(path: Path) -> tuple[int, int] | None:
    """Which file stands at `path`; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
