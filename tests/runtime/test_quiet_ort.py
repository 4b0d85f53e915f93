"""onnxruntime is loaded through one door, and says nothing to anybody."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgekit

pytest.importorskip("onnxruntime")
PACKAGE = Path(edgekit.__file__).parent
DOOR = PACKAGE / "runtime/quiet_ort.py"


def test_loading_the_backend_leaves_no_trace_of_the_vendors_telemetry(tmp_path: Path) -> None:
    code = "import edgekit.runtime.backends.onnxruntime, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    environment = {key: value for key, value in os.environ.items() if key != "ORT_DISABLE_TELEMETRY"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "TMPDIR": str(tmp_path), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "1"
    assert list(tmp_path.rglob("*")) == []


def test_only_the_door_imports_onnxruntime() -> None:
    others = []
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.split(".")[0] == "onnxruntime" for name in names) and path != DOOR:
                others.append(str(path.relative_to(PACKAGE)))
    assert others == [], "take it from edgekit.runtime.quiet_ort"
