"""One repository as the agent uses it: signed metadata and files over HTTP. Loaded no earlier than a job needs it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from edgekit.agent.config import Repository
from edgekit.agent.download import Downloader
from edgekit.agent.http import HttpFiles, open_pool
from edgekit.agent.metadata import MetadataClient
from edgekit.agent.remote import Found
from edgekit.agent.state import StateFile
from edgekit.agent.tls import Tls


class RepositoryClient:
    """Talks to one repository with the board's credentials."""

    def __init__(
        self,
        repository: Repository,
        root: bytes,
        folder: Path,
        state: StateFile,
        tls: Tls | None = None,
    ) -> None:
        """folder: the metadata client's cache; what must not be forgotten stands in `state`."""
        self._http = open_pool(repository, tls=tls)
        files = HttpFiles(self._http, repository.url)
        self._metadata = MetadataClient(files, root, folder, state)
        self._downloader = Downloader(files)

    def find(self, name: str, version: int, use: str = "run") -> Found:
        """As remote.Repository says."""
        return self._metadata.find(name, version, use)

    def standing(self, labels: Sequence[str]) -> Mapping[str, str | None]:
        """As remote.Repository says."""
        return self._metadata.standing(labels)

    def fetch(self, found: Found, part: Path, check: Callable[[], None]) -> None:
        """As remote.Repository says."""
        self._downloader.fetch(found, part, check)

    def close(self) -> None:
        """Let go of the connections."""
        self._http.clear()


def reachable(repository: Repository, tls: Tls | None = None) -> None:
    """Ask for the newest metadata and believe none of it. Raises NetworkFailed."""
    with HttpFiles(open_pool(repository, tls=tls), repository.url).open("metadata/timestamp.json"):
        pass
