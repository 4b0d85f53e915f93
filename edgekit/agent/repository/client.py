"""One repository as the agent uses it: signed metadata, files. Loaded no earlier than a job needs it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from edgekit.agent.config import Repository
from edgekit.agent.repository.base import Files, Found, NetworkFailed
from edgekit.agent.repository.download import Downloader, Held, Throttle
from edgekit.agent.repository.http import HttpFiles, open_pool
from edgekit.agent.repository.metadata import MetadataClient
from edgekit.agent.repository.sticks import Sticks
from edgekit.agent.state import StateFile
from edgekit.agent.tls import Tls
from edgekit.core.errors import Refused, one_line

log = logging.getLogger(__name__)
T = TypeVar("T")


class RepositoryClient:
    """Talks to one repository with the board's credentials; where that is away, to a copy that somebody brought.

    A copy is never believed more than the server: what it says against a job (its metadata may just be old) does not
    end that job, which waits for the server or for a better copy.
    """

    def __init__(
        self,
        repository: Repository,
        root: bytes,
        folder: Path,
        state: StateFile,
        tls: Tls | None = None,
        held: Held = tuple,
        sticks: Sticks | None = None,
        rate: Callable[[], float | None] = lambda: None,
    ) -> None:
        """folder: the metadata client's cache; what must not be forgotten stands in `state`.

        held: bundles on this board, whole or not, whose members need not be fetched. rate: bytes a second at most.
        """
        self._http = open_pool(repository, rate(), tls)
        files = HttpFiles(self._http, repository.url)
        self._metadata = MetadataClient(files, root, folder, state)
        self._downloader = Downloader(files, held, Throttle(rate))
        self._sticks = sticks or Sticks()

    def find(self, name: str, version: int, use: str = "run") -> Found:
        """As base.Repository says."""
        return self._anywhere(lambda files: self._metadata.find(name, version, use, files))

    def standing(self, labels: Sequence[str]) -> Mapping[str, str | None]:
        """As base.Repository says."""
        return self._anywhere(lambda files: self._metadata.standing(labels, files))

    def _anywhere(self, ask: Callable[[Files | None], T]) -> T:
        """Ask the server, and only where that fails, every copy."""
        try:
            return ask(None)
        except NetworkFailed as err:
            said = [one_line(err)]
            for stick in self._sticks.present():
                try:
                    return ask(stick)
                except (NetworkFailed, Refused) as other:
                    said.append(f"{stick.folder}: {one_line(other)}")
            raise NetworkFailed("; ".join(said), err.status, err.retry_after_s) from err

    def fetch(self, found: Found, part: Path, check: Callable[[], None]) -> None:
        """As base.Repository says. A copy with the signed hash costs no network, and goes first."""
        for stick in self._sticks.present():
            if stick.holds(found, check):
                try:
                    Downloader(stick).fetch(found, part, check)
                except (NetworkFailed, Refused) as err:
                    log.warning("%s: %s", stick.folder, one_line(err))
                else:
                    return
        self._downloader.fetch(found, part, check)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.clear()


def reachable(repository: Repository, tls: Tls | None = None) -> None:
    """Ask for the newest metadata and believe none of it. Raises NetworkFailed."""
    with HttpFiles(open_pool(repository, tls=tls), repository.url).open("metadata/timestamp.json"):
        pass
