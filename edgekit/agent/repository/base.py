"""What the repository is to the agent: nouns only, so that python-tuf is loaded no earlier than a job needs it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.core.errors import WorldFailed
from edgekit.core.target import Target

CHUNK = 1 << 16


class NetworkFailed(WorldFailed):
    """The repository did not answer, or broke off: worth another try.

    status: of HTTP, where there was one. retry_after_s: how long the server asks us to wait. progressed: so much
    came before it failed that another try at once is worth it.
    """

    def __init__(self, message: str, status: int | None = None, retry_after_s: float | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s
        self.progressed = False


class Body(Protocol):
    """Bytes of a file on their way, from byte `start` of it on."""

    start: int

    def __enter__(self) -> Body: ...

    def __exit__(self, *_: object) -> None: ...

    def chunks(self, size: int = CHUNK) -> Iterator[bytes]:
        """Pieces of at most `size` bytes. Raises NetworkFailed when they break off or crawl."""


class Files(Protocol):
    """One copy of a repository: over HTTP (http.py), or in a folder (sticks.py)."""

    def open(self, path: str, start: int = 0, end: int | None = None) -> Body:
        """The bytes from `start` to `end` (not included; None: to the end) of `metadata/...` or `targets/...`.

        What comes may begin before `start`, and go on behind `end`. Raises NetworkFailed.
        """


@dataclass(frozen=True)
class Found:
    """A target as the signed metadata describes it, and its file."""

    target: Target
    path: str
    length: int
    sha256: str


class Repository(Protocol):
    """Where bundles come from; client.py is one."""

    def find(self, name: str, version: int, use: str = "run") -> Found:
        """Look a target up in fresh, verified metadata. Raises Refused, NetworkFailed, WorldFailed (disk)."""

    def standing(self, labels: Sequence[str]) -> Mapping[str, str | None]:
        """The state of each bundle in fresh metadata; None: not named there. Raises as `find` does."""

    def fetch(self, found: Found, part: Path, check: Callable[[], None]) -> None:
        """Bring its file to `part`, checked and on disk; go on with what is there.

        check: called between chunks; whatever it raises ends the download. Raises as `find` does.
        """
