from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from agents import Site, make_site


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with make_site(tmp_path) as made:
        yield made
