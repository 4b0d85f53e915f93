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


@pytest.mark.parametrize(
    "module", ["edgekit.runtime.backends.onnxruntime", "edgekit.host.passes.quantize_static"]
)
def test_loading_onnxruntime_leaves_no_trace_of_the_vendors_telemetry(tmp_path: Path, module: str) -> None:
    pytest.importorskip("onnx_ir")
    code = f"import {module}, os; print(os.environ['ORT_DISABLE_TELEMETRY'])"
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


def test_only_the_door_imports_onnxruntime_and_the_converter_behind_it() -> None:
    """host/__init__.py goes through the door before any module of the converter is loaded."""
    others = []
    for path in set(PACKAGE.rglob("*.py")) - set((PACKAGE / "host").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            if any(name.split(".")[0] == "onnxruntime" for name in names) and path != DOOR:
                others.append(str(path.relative_to(PACKAGE)))
    assert others == [], "take it from edgekit.runtime.quiet_ort"
