"""Fetch exactly the file that was signed: beside its slot, resumed after a break, safe on disk before it is believed.

Decides nothing about what may be fetched: metadata.py found it, core/trust.py allowed it.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

from edgekit.agent.remote import CHUNK, Files, Found, NetworkFailed
from edgekit.core.errors import WorldFailed
from edgekit.core.trust import refusal

log = logging.getLogger(__name__)
_SYNC_EVERY = 8 << 20


class Downloader:
    """Brings files from one repository."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def fetch(self, found: Found, part: Path, check: Callable[[], None]) -> None:
        """Bring the file of `found` to `part`, whole, synced and with the signed hash; go on with what is there.

        check: called between chunks; whatever it raises ends the download. Raises Refused (tampered), NetworkFailed,
        WorldFailed (disk).
        """
        try:
            resumed = part.exists()
            digest = self._complete(found, part, check)
            if digest != found.sha256 and resumed:
                log.warning(
                    "%s: what was kept of an earlier download is no good, fetching all of it", found.path
                )
                part.unlink()
                digest = self._complete(found, part, check)
            if digest != found.sha256:
                part.unlink()
                raise refusal(
                    "tampered", f"{found.path}: sha256 {digest[:12]}…, signed is {found.sha256[:12]}…"
                )
        except OSError as err:
            raise WorldFailed(f"{part}: could not be written: {err.strerror or err}") from err

    def _complete(self, found: Found, part: Path, check: Callable[[], None]) -> str:
        """Fetch what is missing of the file; the sha256 of all of it."""
        digest = hashlib.sha256()
        with part.open("a+b") as file:
            file.seek(0)
            while chunk := file.read(CHUNK):
                digest.update(chunk)
            have = file.tell()
            if have > found.length:
                have, digest = _restart(file.fileno())
            if have < found.length:
                with self._files.open(f"targets/{found.path}", have) as body:
                    if body.start != have:
                        have, digest = _restart(file.fileno())
                    for chunk in body.chunks():
                        check()
                        have += len(chunk)
                        if have > found.length:
                            break
                        file.write(chunk)
                        digest.update(chunk)
                        if have // _SYNC_EVERY != (have - len(chunk)) // _SYNC_EVERY:
                            _sync(file.fileno(), file.flush)
            _sync(file.fileno(), file.flush)
        if have > found.length:
            part.unlink()
            raise refusal("tampered", f"{found.path}: longer than the {found.length} bytes that were signed")
        if have < found.length:
            raise NetworkFailed(
                f"{found.path}: the repository broke off after {have} of {found.length} bytes"
            )
        return digest.hexdigest()


def _restart(descriptor: int) -> tuple[int, hashlib._Hash]:
    os.ftruncate(descriptor, 0)
    return 0, hashlib.sha256()


def _sync(descriptor: int, flush: Callable[[], None]) -> None:
    flush()
    os.fsync(descriptor)
