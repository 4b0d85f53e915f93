"""The memory that a limit asks for: measured in a child, unknown where the runtime is not here."""

from __future__ import annotations

from dataclasses import replace

import pytest
from bundles import null_files, null_manifest

from edgekit.host import memory
from edgekit.host.limits import Limits
from edgekit.host.memory import memory_mb
from edgekit.host.pack import Finished

ASKED = Limits(max_memory_mb=64.0)


def finished(backend: str = "null") -> Finished:
    files, parts = null_files()
    return Finished(null_manifest(files, [replace(part, backend=backend) for part in parts]), files)


def test_the_open_bundles_own_memory_is_measured_and_its_runtimes_is_not() -> None:
    found = memory_mb(finished(), ASKED)
    assert found is not None
    assert 0 <= found < 8


def test_nothing_is_opened_where_no_limit_asks_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "measure_memory", None)
    assert memory_mb(finished(), Limits(max_size_kb=1.0)) is None


def test_what_cannot_be_opened_here_is_unknown() -> None:
    assert memory_mb(finished("elsewhere"), ASKED) is None
