"""What Mosquitto needs, written from config and store: conf, `passwd` and `acl`, and a SIGHUP. Talks to no broker."""

from __future__ import annotations

import base64
import hashlib
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.core.files import write_atomic
from edgekit.core.messages import ANSWER, FROM_BOARD, INPUT, ROOT, TO_BOARD

_ITERATIONS = 101  # mosquitto_passwd's own; the passwords are 256 random bits, so stretching adds nothing
_SALT_BYTES = 12
_MAX_INFLIGHT = 1000  # what ingest takes at once; Mosquitto's default of 20 slows it
# What waits for ingest while it waits for the disk. Mosquitto's default is 1000 messages, one second of 10,000 boards;
# it drops what is beyond, and boards send that again much later. The bytes are what bounds it.
_MAX_QUEUED, _MAX_QUEUED_BYTES = 100_000, 64 * 2**20
CA, SERVER, REVOKED = "ca.pem", "server.pem", "revoked.pem"  # what TLS needs, beside `passwd` and `acl`
_AGAIN_AFTER_S = 1.0  # reading 10,000 boards' passwords takes hundredths of a second
_BOARD_WRITES = (*FROM_BOARD, ANSWER)
_BOARD_READS = (*TO_BOARD, INPUT)


def password_hash(password: str) -> str:
    """A password in Mosquitto's format 7: PBKDF2-HMAC-SHA512."""
    salt = os.urandom(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def write_passwd(folder: Path, hashes: Mapping[str, str]) -> None:
    """Replace `passwd`: user name -> password hash. Raises WorldFailed."""
    lines = (f"{user}:{hashes[user]}\n" for user in sorted(hashes))
    write_atomic(folder / "passwd", "".join(lines).encode(), 0o640)


def write_acl(folder: Path, fleet: str, servers: Sequence[str]) -> None:
    """Replace `acl`: the server's topics by name, a board's by its own user name `fleet/device`. Raises WorldFailed.

    servers: an account for each ingester. They may also send inputs to boards and hear their answers, though the
    server itself does neither: whoever operates the fleet can try a board with one.
    """
    lines = []
    for server in servers:
        lines.append(f"user {server}")
        lines += [f"topic read {ROOT}/{fleet}/+/{kind}" for kind in _BOARD_WRITES]
        lines += [f"topic write {ROOT}/{fleet}/+/{kind}" for kind in _BOARD_READS]
        lines.append("")
    lines += [f"pattern write {ROOT}/%u/{kind}" for kind in _BOARD_WRITES]
    lines += [f"pattern read {ROOT}/%u/{kind}" for kind in _BOARD_READS]
    write_atomic(folder / "acl", ("\n".join(lines) + "\n").encode(), 0o640)


def write_conf(
    folder: Path, host: str, port: int, pid_file: Path | None, *, as_root: bool, tls: bool = True
) -> None:
    """Replace `mosquitto.conf`, with which Mosquitto works when the server's own user starts it. Raises WorldFailed.

    as_root: the server is root, and Mosquitto stays it: as another user it could read neither our files nor a folder
    above them that is closed. A client's id is its user name, else one board could take another's session.

    tls: a client must show a certificate of the fleet's authority that is not revoked, and then, as without TLS, its
    user name and password. The name is not taken from the certificate: Mosquitto checks certificates when a connection
    begins, passwords again at each SIGHUP, and so hangs up at once on a board whose line in `passwd` is gone.
    """
    encrypted = [
        f"cafile {folder / CA}",
        f"certfile {folder / SERVER}",
        f"keyfile {folder / SERVER}",
        f"crlfile {folder / REVOKED}",
        "require_certificate true",
        "tls_version tlsv1.2",  # at least
    ]
    lines = [
        "# Written by `edgekit fleet serve` at each start: changes do not last. Run it as the server's user.",
        f"listener {port} {host}",
        *(encrypted if tls else []),
        "allow_anonymous false",
        f"password_file {folder / 'passwd'}",
        f"acl_file {folder / 'acl'}",
        "use_username_as_clientid true",
        f"max_inflight_messages {_MAX_INFLIGHT}",
        f"max_queued_messages {_MAX_QUEUED}",
        f"max_queued_bytes {_MAX_QUEUED_BYTES}",
        "persistence false",
        *([] if pid_file is None else [f"pid_file {pid_file}"]),
        *(["user root"] if as_root else []),
    ]
    write_atomic(folder / "mosquitto.conf", ("\n".join(lines) + "\n").encode())


def reload_broker(pid_file: Path | None) -> bool:
    """Let Mosquitto read both files again; False where it cannot be told (no such process, not ours to signal)."""
    if pid_file is None:
        return False
    try:
        pid = int(pid_file.read_text())
        if Path(f"/proc/{pid}/comm").read_text().strip() != "mosquitto":  # the file outlived its broker
            return False
        os.kill(pid, signal.SIGHUP)
    except (OSError, ValueError):
        return False
    return True


class Reminder:
    """Tells Mosquitto once more, a little after `passwd` was last written.

    It forgets a SIGHUP that comes while it still reads its files for the one before: without this the second of two
    quick changes would hold only from the next one on, and a board that was revoked be let in until then.
    """

    def __init__(self, passwd: Path, tell: Callable[[], object]) -> None:
        self._passwd, self._tell = passwd, tell
        self._seen = self._told = self._changed()
        self._since = 0.0

    def look(self, now: float) -> None:
        """Call again and again. now: seconds on a clock that only rises."""
        found = self._changed()
        if found != self._seen:
            self._seen, self._since = found, now
        elif found != self._told and now - self._since >= _AGAIN_AFTER_S:
            self._told = found
            self._tell()

    def _changed(self) -> int | None:
        try:
            return self._passwd.stat().st_mtime_ns
        except OSError:
            return None
