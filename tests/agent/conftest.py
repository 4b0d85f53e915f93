from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Site, make_site

from edgekit.agent import volatile
from edgekit.agent.runner import Runner


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made


@pytest.fixture
def runner() -> Iterator[Runner]:
    made = Runner()
    made.start()
    yield made
    made.stop(5.0)


@pytest.fixture(autouse=True)
def own_shared_memory(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What outboxes that no test closes would leave in the machine's."""
    monkeypatch.setattr(volatile, "SHARED_MEMORY", tmp_path_factory.mktemp("shm"))
