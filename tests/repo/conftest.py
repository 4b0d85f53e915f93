from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import write_null_bundle
from repositories import NOW, BoardClient

from edgekit.core.bundle import Bundle
from edgekit.repo.init import init


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    init(folder, NOW)
    return folder


@pytest.fixture
def board(repository: Path, tmp_path: Path) -> BoardClient:
    return BoardClient(repository, tmp_path / "cache")


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Bundle]:
    def make(file: str = "", **options: object) -> Bundle:
        name = file or f"{options.get('name', 'toy')}-{options.get('version', 1)}.edge"
        return write_null_bundle(tmp_path / name, **options)

    return make
