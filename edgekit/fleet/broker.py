"""What Mosquitto needs to know: `passwd` and `acl`, written from the store, and a SIGHUP. Talks to no broker.

In mosquitto.conf: password_file and acl_file name the two files, allow_anonymous is false, use_username_as_clientid is
true (else one board could take another's session), and max_inflight_messages is 1000 (its default of 20 slows ingest).
"""

from __future__ import annotations

import base64
import hashlib
import os
import signal
from collections.abc import Mapping
from pathlib import Path

from edgekit.core.files import write_atomic
from edgekit.core.messages import FROM_BOARD, ROOT, TO_BOARD

_ITERATIONS = 101  # mosquitto_passwd's own; the passwords are 256 random bits, so stretching adds nothing
_SALT_BYTES = 12
_BOARD_WRITES = (*FROM_BOARD, "answer")
_BOARD_READS = (*TO_BOARD, "input")


def password_hash(password: str) -> str:
    """A password in Mosquitto's format 7: PBKDF2-HMAC-SHA512."""
    salt = os.urandom(_SALT_BYTES)
    digest = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, _ITERATIONS)
    return f"$7${_ITERATIONS}${base64.b64encode(salt).decode()}${base64.b64encode(digest).decode()}"


def write_passwd(folder: Path, hashes: Mapping[str, str]) -> None:
    """Replace `passwd`: user name -> password hash. Raises WorldFailed."""
    lines = (f"{user}:{hashes[user]}\n" for user in sorted(hashes))
    write_atomic(folder / "passwd", "".join(lines).encode(), 0o640)


def write_acl(folder: Path, fleet: str, server: str) -> None:
    """Replace `acl`: the server's topics by name, a board's by its own user name `fleet/device`. Raises WorldFailed."""
    lines = [f"user {server}"]
    lines += [f"topic read {ROOT}/{fleet}/+/{kind}" for kind in FROM_BOARD]
    lines += [f"topic write {ROOT}/{fleet}/+/{kind}" for kind in TO_BOARD]
    lines.append("")
    lines += [f"pattern write {ROOT}/%u/{kind}" for kind in _BOARD_WRITES]
    lines += [f"pattern read {ROOT}/%u/{kind}" for kind in _BOARD_READS]
    write_atomic(folder / "acl", ("\n".join(lines) + "\n").encode(), 0o640)


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
