"""Who may import whom, read from the source: every import, also in functions and under TYPE_CHECKING."""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "edgekit"

# A part of edgekit (a folder, a module, or a path inside one) -> the parts it may import besides itself.
# The longest matching entry holds. A new folder needs a line in both tables.
LAYERS: Mapping[str, frozenset[str]] = {
    "__init__": frozenset(),
    "__main__": frozenset({"cli"}),
    "core": frozenset(),
    "native": frozenset({"core"}),
    "runtime": frozenset({"core", "native"}),
    "agent": frozenset({"core", "runtime"}),
    "host": frozenset({"core", "native", "runtime"}),
    "repo": frozenset({"core"}),
    "fleet": frozenset({"__init__", "core", "repo"}),
    "client": frozenset({"core"}),
    "cli": frozenset({"__init__", "core", "runtime", "agent", "host", "repo", "fleet", "client"}),
    "cli/native": frozenset({"core", "native"}),
}

# The same keys -> the packages of others that may be imported there, besides the standard library.
_TUF = {"cryptography", "securesystemslib", "tuf"}
_NUMBERS = {"PIL", "numpy"}
_CLICK = {"click", "rich"}
_HOST = _NUMBERS | {"ai_edge_litert", "flatbuffers", "google", "onnx", "onnx_ir", "onnxruntime"}
THIRD_PARTY: Mapping[str, frozenset[str]] = {
    "__init__": frozenset(),
    "__main__": frozenset(),
    "core": frozenset({"tomli"}),
    "native": frozenset({"numpy"}),
    "runtime": frozenset(_NUMBERS),
    "runtime/backends": frozenset(_NUMBERS | {"ai_edge_litert", "pynq", "tflite_runtime"}),
    "runtime/overlay/board": frozenset({"numpy", "pynq"}),
    "runtime/quiet_ort": frozenset({"onnxruntime"}),
    "agent": frozenset(_NUMBERS | _TUF | {"paho", "urllib3"}),
    "agent/api/server": frozenset({"h11", "uvicorn"}),
    "agent/sources/camera": frozenset(_NUMBERS | {"cv2"}),
    "host": frozenset(_HOST),
    "host/train": frozenset(_HOST | {"torch"}),
    "repo": frozenset(_TUF),
    "fleet": frozenset(
        _TUF
        | {"alembic", "apprise", "fastapi", "nicegui", "paho", "prometheus_client", "psycopg", "pydantic"}
        | {"sqlalchemy", "starlette", "uvicorn"}
    ),
    "client": frozenset(),
    "cli": frozenset(_CLICK | _NUMBERS),
    "cli/native": frozenset(_CLICK),
    "cli/fleet/export": frozenset(_CLICK | {"pyarrow"}),
}


def rule_for(file: str, table: Mapping[str, frozenset[str]]) -> frozenset[str] | None:
    """The entry for a module path like `host/train/fit`: its own, else that of its nearest folder."""
    parts = file.split("/")
    for length in range(len(parts), 0, -1):
        rule = table.get("/".join(parts[:length]))
        if rule is not None:
            return rule
    return None


def imported_names(tree: ast.Module, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of each import; `from a import b` gives `a.b`, relative ones are resolved."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            base = importlib.util.resolve_name(relative, package) if node.level else relative
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = ast.unparse(node.func).rpartition(".")[2]
            name = node.args[0].value
            if called in {"import_module", "__import__"} and isinstance(name, str):
                yield node.lineno, importlib.util.resolve_name(name, package)


def violations(root: Path) -> list[str]:
    """One line per import under the folder `root` that its rule forbids, and per file without a rule."""
    found = []
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).with_suffix("").as_posix()
        is_package = path.name == "__init__.py"
        if is_package and file != "__init__":
            file = file.removesuffix("/__init__")
        may_import, may_use = rule_for(file, LAYERS), rule_for(file, THIRD_PARTY)
        if may_import is None or may_use is None:
            found.append(f"{file}: no rule in tests/test_layers.py")
            continue
        own = file.split("/")[0]
        module = "edgekit" if file == "__init__" else "edgekit." + file.replace("/", ".")
        tree = ast.parse(path.read_text("utf-8"))
        for line, name in imported_names(tree, module, is_package=is_package):
            top, *rest = name.split(".")
            if top == "edgekit":
                known = (root / rest[0]).is_dir() or (root / f"{rest[0]}.py").exists() if rest else False
                part = rest[0] if known else "__init__"
                if part != own and part not in may_import:
                    found.append(f"{file}:{line}: may not import edgekit.{part}")
            elif top not in sys.stdlib_module_names and top not in may_use:
                found.append(f"{file}:{line}: may not import {top}")
    return found


def make_tree(root: Path, files: Mapping[str, str]) -> Path:
    """A package with every folder of the table, and `files` written over it."""
    for part in LAYERS:
        path = (
            root / f"{part}.py"
            if part in {"__init__", "__main__", "client"} or "/" in part
            else root / part / "__init__.py"
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_every_import_in_edgekit_follows_the_layers() -> None:
    assert (PACKAGE / "core" / "errors.py").exists()
    assert violations(PACKAGE) == []


def test_both_tables_know_the_same_folders() -> None:
    tops = [{key.split("/")[0] for key in table} for table in (LAYERS, THIRD_PARTY)]
    assert tops[0] == tops[1]


def test_what_the_layers_allow_passes(tmp_path: Path) -> None:
    files = {
        "core/a.py": "import json\ntry:\n    import tomllib\nexcept ImportError:\n    import tomli\n",
        "runtime/b.py": "import numpy\nfrom edgekit.native import door\nfrom ..core import a\n",
        "runtime/c.py": "from . import b\n",
        "runtime/quiet_ort.py": "import onnxruntime\nfrom edgekit.runtime import b\n",
        "host/train/fit.py": "import torch\nimport edgekit.host.load\n",
        "cli/push.py": "import click\ndef f():\n    from edgekit import __version__, client, repo\n",
        "cli/native.py": "from edgekit.native import door\n",
    }
    assert violations(make_tree(tmp_path / "edgekit", files)) == []


BAD = [
    ("core/a.py", "import numpy", "core/a:1: may not import numpy"),
    ("core/a.py", "from edgekit.runtime import session", "core/a:1: may not import edgekit.runtime"),
    ("core/a.py", "from edgekit import host", "core/a:1: may not import edgekit.host"),
    ("core/a.py", "import edgekit.host", "core/a:1: may not import edgekit.host"),
    ("core/sub/a.py", "from ...fleet import api", "core/sub/a:1: may not import edgekit.fleet"),
    ("core/__init__.py", "from .. import client", "core:1: may not import edgekit.client"),
    ("core/a.py", "def f():\n    import onnx", "core/a:2: may not import onnx"),
    (
        "core/a.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from edgekit.agent import x",
        "core/a:3: may not import edgekit.agent",
    ),
    ("core/a.py", "import importlib\nimportlib.import_module('torch.nn')", "core/a:2: may not import torch"),
    ("agent/a.py", "from edgekit.host import load", "agent/a:1: may not import edgekit.host"),
    ("agent/a.py", "from edgekit.native import door", "agent/a:1: may not import edgekit.native"),
    ("agent/a.py", "import onnx", "agent/a:1: may not import onnx"),
    ("agent/a.py", "import torch", "agent/a:1: may not import torch"),
    ("agent/a.py", "import uvicorn", "agent/a:1: may not import uvicorn"),
    ("agent/api/app.py", "import h11", "agent/api/app:1: may not import h11"),
    ("agent/sources/a.py", "def f():\n    import cv2", "agent/sources/a:2: may not import cv2"),
    ("host/exits/a.py", "import torch", "host/exits/a:1: may not import torch"),
    ("agent/a.py", "from nicegui import ui", "agent/a:1: may not import nicegui"),
    ("agent/a.py", "import sqlalchemy as sa", "agent/a:1: may not import sqlalchemy"),
    ("agent/a.py", "import edgekit.fleet.store", "agent/a:1: may not import edgekit.fleet"),
    ("runtime/a.py", "import onnxruntime", "runtime/a:1: may not import onnxruntime"),
    ("runtime/a.py", "import edgekit.agent", "runtime/a:1: may not import edgekit.agent"),
    ("fleet/a.py", "import edgekit.runtime", "fleet/a:1: may not import edgekit.runtime"),
    ("fleet/a.py", "import edgekit.client", "fleet/a:1: may not import edgekit.client"),
    ("host/a.py", "import torch", "host/a:1: may not import torch"),
    ("host/a.py", "from edgekit.agent import x", "host/a:1: may not import edgekit.agent"),
    ("client.py", "from edgekit.repo import x", "client:1: may not import edgekit.repo"),
    ("client.py", "import httpx", "client:1: may not import httpx"),
    ("cli/push.py", "from edgekit.native import door", "cli/push:1: may not import edgekit.native"),
    ("core/a.py", "from edgekit.cli import main", "core/a:1: may not import edgekit.cli"),
    ("__init__.py", "from edgekit.core import errors", "__init__:1: may not import edgekit.core"),
    ("newpart/__init__.py", "", "newpart: no rule in tests/test_layers.py"),
    ("helpers.py", "", "helpers: no rule in tests/test_layers.py"),
]


@pytest.mark.parametrize(("file", "text", "said"), BAD)
def test_an_import_against_the_layers_is_named(tmp_path: Path, file: str, text: str, said: str) -> None:
    assert violations(make_tree(tmp_path / "edgekit", {file: text})) == [said]
