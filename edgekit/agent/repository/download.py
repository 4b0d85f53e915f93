"""Fetch exactly the file that was signed: beside its slot, resumed after a break, safe on disk before it is believed.

A bundle is put together from its members: the manifest, which comes first, says which ones a slot holds already; those
are copied, the others are fetched, in spans of neighbours, and the zip's directory follows from their checksums. The
part grows only at its end, so whatever interrupts it, the next attempt hashes what is there and goes on. Whether the
server told the truth about members, and whether the slots were whole, does not matter: if the file does not have the
signed hash in the end, it is fetched once more, all of it.

Decides nothing about what may be fetched: metadata.py found it, core/trust.py allowed it.
"""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from edgekit.agent.repository.base import CHUNK, Files, Found, NetworkFailed
from edgekit.agent.repository.members import (
    FIRST,
    Key,
    Source,
    listed,
    manifest_size,
    members_held,
    missing_until,
    usual_head,
)
from edgekit.core.errors import BadInput, Refused, WorldFailed, one_line
from edgekit.core.layout import Piece, directory, header, pieces, read_header
from edgekit.core.trust import refusal

log = logging.getLogger(__name__)
_SYNC_EVERY = 8 << 20
_GAP = 512  # bytes that a board has already and that cost less to fetch than a request does
_WORTH_A_HURRY = 1 << 14  # each attempt hashes all that is there: not at once again for every crumb
_SMALLEST_CHUNK = 1 << 10
_SHORTEST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.25  # how long a download that is throttled does not look whether it should go on

Check = Callable[[], None]
Held = Callable[[], Sequence[Path]]


class Throttle:
    """A token bucket: bytes may come at a rate, and what one second brings may come at once."""

    def __init__(
        self,
        rate: Callable[[], float | None],
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """rate: bytes a second, asked anew each time; None: as fast as they come. clock: seconds, never goes back."""
        self._rate, self._clock, self._pause = rate, clock, pause
        self._tokens, self._filled = rate() or 0.0, clock()

    @property
    def chunk(self) -> int:
        """How many bytes to read at a time."""
        rate = self._rate()
        return CHUNK if rate is None else max(_SMALLEST_CHUNK, min(CHUNK, int(rate / 4)))

    def take(self, count: int, check: Check) -> None:
        """Wait until `count` bytes may have come. check: called meanwhile; whatever it raises ends the wait."""
        owed = float(count)
        while (rate := self._rate()) is not None:
            self._fill(rate)
            self._tokens, owed = self._tokens - owed, 0.0
            if self._tokens >= 0:
                return
            self._pause(max(_SHORTEST_PAUSE_S, min(_LONGEST_PAUSE_S, -self._tokens / rate)))
            check()
        self._tokens = 0.0

    def _fill(self, rate: float) -> None:
        now = self._clock()
        self._tokens = min(rate, self._tokens + (now - self._filled) * rate)
        self._filled = now


class Downloader:
    """Brings files from one copy of a repository."""

    def __init__(self, files: Files, held: Held = tuple, throttle: Throttle | None = None) -> None:
        """held: bundles on this board, whole or not, whose members need not be fetched; the one in force first."""
        self._files = files
        self._held = held
        self._throttle = throttle or Throttle(lambda: None)
        self._plain: set[str] = set()  # hashes of files that once came out wrong: nothing is reused for them

    def fetch(self, found: Found, part: Path, check: Check) -> None:
        """Bring the file of `found` to `part`, whole, synced and with the signed hash; go on with what is there.

        check: called between chunks; whatever it raises ends the download. Raises Refused (tampered), NetworkFailed,
        WorldFailed (disk).
        """
        try:
            before = part.stat().st_size if part.exists() else 0
            digest, alone = self._complete(found, part, check)
            if digest != found.sha256 and not alone:
                log.warning("%s: what was on this board already is no good, fetching all of it", found.path)
                self._plain.add(found.sha256)
                part.unlink()
                digest, _ = self._complete(found, part, check)
            self._plain.discard(found.sha256)
            if digest != found.sha256:
                raise refusal(
                    "tampered", f"{found.path}: sha256 {digest[:12]}…, signed is {found.sha256[:12]}…"
                )
        except NetworkFailed as err:
            err.progressed = part.stat().st_size >= before + _WORTH_A_HURRY
            raise
        except Refused:
            with suppress(OSError):
                part.unlink()
            raise
        except OSError as err:
            raise WorldFailed(f"{part}: could not be written: {err.strerror or err}") from err

    def _complete(self, found: Found, part: Path, check: Check) -> tuple[str, bool]:
        """Put the file together; its sha256, and whether every byte of it came from this repository's file."""
        plain = found.sha256 in self._plain
        with part.open("a+b") as file:
            growing = _Part(file, found, check)
            alone = plain or growing.have == 0
            if not plain and found.target.use == "run" and growing.have < found.length:
                paths = [path for path in self._held() if path != part]
                held = members_held(paths)
                if held:
                    reused = self._by_members(growing, found, held, usual_head(paths))
                    alone = alone and not reused
            self._get(growing, found, found.length)
            growing.sync()
        return growing.digest.hexdigest(), alone

    def _by_members(self, part: _Part, found: Found, held: Mapping[Key, Source], head: int) -> int:
        """Bring the part as far as members and directory reach; how many bytes of it were on this board.

        head: how long the manifest may be, with what stands before it. Where the file is no bundle, little has come.
        """
        reused = 0
        try:
            self._get(part, found, min(head, found.length))
            size = manifest_size(part.read(0, FIRST))
            self._get(part, found, min(FIRST + size, found.length))
            plan = pieces(size, listed(part.read(FIRST, size), found.path), found.length)
            good = dict(held)
            for index, piece in enumerate(plan):
                if piece.end <= part.have:
                    continue
                key = (piece.sha256 or "", piece.size)
                source = good.get(key)
                if source is not None and not source.holds(key[0], part.check):
                    del good[key]
                    source = None
                if source is not None:
                    reused += part.copy(piece, source)
                if part.have < piece.end:
                    self._get(part, found, missing_until(plan[index:], good, _GAP))
            if part.have < found.length:
                part.add(part.directory(plan)[part.have - plan[-1].end :])
        except BadInput as err:
            log.warning("%s: fetched as it comes, for %s", found.path, one_line(err))
        if reused:
            log.info("%s: %d of %d bytes were on this board", found.path, reused, found.length)
        return reused

    def _get(self, part: _Part, found: Found, end: int) -> None:
        """Fetch from where the part ends up to `end`. A server that knows no spans sends, and gives, all of it."""
        if part.have >= end:
            return
        with self._files.open(
            f"targets/{found.path}", part.have, end if end < found.length else None
        ) as body:
            skip = part.have - body.start
            if body.start == 0 and skip:
                end = found.length
            for chunk in body.chunks(self._throttle.chunk):
                part.check()
                self._throttle.take(len(chunk), part.check)
                new, skip = chunk[skip:], max(0, skip - len(chunk))
                if part.have + len(new) > end == found.length:
                    raise refusal("tampered", f"{found.path}: longer than the {end} bytes that were signed")
                part.add(new[: end - part.have])
                if part.have == end < found.length:
                    return
        if part.have < end:
            part.sync()
            raise NetworkFailed(
                f"{found.path}: the repository broke off after {part.have} of {found.length} bytes"
            )


class _Part:
    """The file that grows, and its hash. It is synced often enough that a power cut takes little of it."""

    def __init__(self, file: IO[bytes], found: Found, check: Check) -> None:
        self._file = file
        self.check = check
        self.digest = hashlib.sha256()
        self.have = 0
        file.seek(0)
        while chunk := file.read(CHUNK):
            check()
            self.digest.update(chunk)
            self.have += len(chunk)
            if self.have > found.length:
                self.discard()
                break

    def discard(self) -> None:
        """Begin anew."""
        self._file.flush()
        os.ftruncate(self._file.fileno(), 0)
        self.digest, self.have = hashlib.sha256(), 0

    def add(self, data: bytes) -> None:
        """Append."""
        self._file.write(data)
        self.digest.update(data)
        before, self.have = self.have, self.have + len(data)
        if self.have // _SYNC_EVERY != before // _SYNC_EVERY:
            self.sync()

    def read(self, at: int, count: int) -> bytes:
        """Bytes that are there already."""
        self._file.flush()
        return os.pread(self._file.fileno(), count, at)

    def copy(self, piece: Piece, source: Source) -> int:
        """Append what is missing of a member from a bundle on this board, as far as that can be read; how much."""
        before = self.have
        if self.have < piece.content:
            self.add(header(piece.name, source.crc, piece.size)[self.have - piece.at :])
        try:
            file = source.path.open("rb")
        except OSError:
            return self.have - before
        with file:
            while self.have < piece.end:
                self.check()
                try:
                    file.seek(source.at + self.have - piece.content)
                    chunk = file.read(min(CHUNK, piece.end - self.have))
                except OSError:
                    break
                if not chunk:
                    break
                self.add(chunk)
        return self.have - before

    def directory(self, plan: Sequence[Piece]) -> bytes:
        """The end of the file, from the members that are there. Raises BadBundle where they are not those of `plan`."""
        found = []
        for piece in plan:
            crc, size = read_header(self.read(piece.at, piece.content - piece.at), piece.name)
            found.append((piece.name, crc, size))
        return directory(found)

    def sync(self) -> None:
        """What is there survives a power cut."""
        self._file.flush()
        os.fsync(self._file.fileno())
