"""What `run` and `bench` open here: no bundle that brings code of its own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from bundles import null_files, null_manifest, write_null_bundle

from edgekit.cli.session import open_here
from edgekit.core.errors import BadInput


def test_a_bundle_that_brings_code_is_for_an_agent(tmp_path: Path) -> None:
    bundle = write_null_bundle(tmp_path / "toy.edge")
    open_here(bundle).close()
    files, parts = null_files()
    manifest = null_manifest(files, [replace(part, executes_code=True) for part in parts])
    coded = replace(bundle, manifest=manifest)
    with pytest.raises(BadInput, match=r"brings code of its own .* accepts_code = true"):
        open_here(coded)
