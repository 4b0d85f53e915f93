"""What the repository is to the agent: nouns only, so that python-tuf is loaded no earlier than a job needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from edgekit.core.errors import WorldFailed
from edgekit.core.target import Target


class NetworkFailed(WorldFailed):
    """The repository did not answer, or broke off: worth another try. status: of HTTP, where there was one."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Found:
    """A target as the signed metadata describes it, and its file."""

    target: Target
    path: str
    length: int
    sha256: str


class Repository(Protocol):
    """Where bundles come from; update.py talks to one over HTTP."""

    def find(self, name: str, version: int, use: str = "run") -> Found:
        """Look a target up in fresh, verified metadata. Raises Refused, NetworkFailed, WorldFailed (disk)."""

    def standing(self, labels: Sequence[str]) -> Mapping[str, str | None]:
        """The state of each bundle in fresh metadata; None: not named there. Raises as `find` does."""

    def fetch(self, found: Found, part: Path, check: Callable[[], None]) -> None:
        """Bring its file to `part`, checked and on disk; go on with what is there.

        check: called between chunks; whatever it raises ends the download. Raises as `find` does.
        """
