"""Small bundles for tests: three exits on the null backend, packed by the real packer."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgekit.core.bundle import Bundle, members_of, open_bundle, pack
from edgekit.core.cost import Work
from edgekit.core.manifest import (
    BoardLimits,
    Exit,
    Golden,
    GoldenOutput,
    Input,
    Manifest,
    OperatingPoint,
    Part,
    Preprocess,
    Stage,
    Tensor,
)

SHAPE = (1, 1, 4, 4)
CLASSES = 3
GOLDEN_CASES = 16
X = Tensor("x", "float32", SHAPE)
# What each stage does to the image's first pixels: later exits are surer of the same class.
SHARPNESS = (1.0, 2.0, 4.0)
NO_LIMITS = BoardLimits()


def npy(array: np.ndarray[Any, Any]) -> bytes:
    """An array as the bytes of an .npy file."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def null_files(*, golden_error: float = 0.0, delay_ms: float = 0.0) -> tuple[dict[str, bytes], list[Part]]:
    """The stages' programs and golden cases. golden_error: how far the golden outputs are off the truth."""
    files: dict[str, bytes] = {}
    parts = []
    for index, sharpness in enumerate(SHARPNESS):
        logits, confidence = f"exit{index + 1}", f"exit{index + 1}/confidence"
        program = {
            "delay_ms": delay_ms,
            "outputs": {
                logits: {"op": "affine", "from": "x", "scale": sharpness},
                confidence: {"op": "softmax_max", "from": logits},
            },
        }
        files[f"stages/{index}.json"] = json.dumps(program).encode()
        outputs = (Tensor(logits, "float32", (1, CLASSES)), Tensor(confidence, "float32", (1,)))
        digest = hashlib.sha256(files[f"stages/{index}.json"]).hexdigest()
        parts.append(Part("null", f"stages/{index}.json", digest, (X,), outputs))
    cases = np.random.default_rng(7).uniform(0, 1, (GOLDEN_CASES, *SHAPE)).astype(np.float32)
    files["golden/in.x.npy"] = npy(cases)
    for index, sharpness in enumerate(SHARPNESS):
        wanted = (cases.reshape(GOLDEN_CASES, 1, -1)[:, :, :CLASSES] * np.float32(sharpness)).astype(
            np.float32
        )
        files[f"golden/{index}.exit{index + 1}.npy"] = npy(wanted + np.float32(golden_error))
    files["recipe.toml"] = b'kind = "null"\n'
    return files, parts


def null_manifest(
    files: Mapping[str, bytes],
    parts: list[Part],
    *,
    name: str = "toy",
    version: int = 1,
    profiles: tuple[str, ...] = ("host",),
    limits: BoardLimits = NO_LIMITS,
) -> Manifest:
    """A manifest of three exits at 25 %, 50 % and 100 % of the cost."""
    macs = (100, 100, 200)
    return Manifest(
        name=name,
        version=version,
        profiles=profiles,
        inputs=(Input(X, "NCHW", Preprocess(channels="L", scale=1 / 255)),),
        labels=("zero", "one", "two"),
        stages=tuple(
            Stage((part,), (Work("Conv", "float32", count, 4 * count, 1),))
            for part, count in zip(parts, macs, strict=True)
        ),
        exits=tuple(
            Exit(f"exit{index + 1}", index, f"exit{index + 1}", f"exit{index + 1}/confidence", share)
            for index, share in enumerate((0.25, 0.5, 1.0))
        ),
        quality_metric="agreement",
        operating_points=(
            OperatingPoint((0.0, 0.0), 0.25, (1.0, 0.0, 0.0), 0.9),
            OperatingPoint((0.4, 0.0), 0.375, (0.5, 0.5, 0.0), 0.95),
            OperatingPoint((0.5, 0.5), 0.6, (0.3, 0.2, 0.5), 0.99),
            OperatingPoint((2.0, 2.0), 1.0, (0.0, 0.0, 1.0), 1.0),
        ),
        golden=Golden(
            GOLDEN_CASES,
            {"x": "golden/in.x.npy"},
            tuple(GoldenOutput(f"exit{i + 1}", i, f"golden/{i}.exit{i + 1}.npy", 1e-4) for i in range(3)),
        ),
        recipe="recipe.toml",
        files=members_of(files),
        limits=limits,
    )


def null_bundle(
    *,
    name: str = "toy",
    version: int = 1,
    profiles: tuple[str, ...] = ("host",),
    golden_error: float = 0.0,
    delay_ms: float = 0.0,
    padding: int = 0,
    limits: BoardLimits = NO_LIMITS,
) -> bytes:
    """A packed bundle. golden_error > 1e-4: its golden cases fail. padding: bytes of an extra member, for downloads."""
    files, parts = null_files(golden_error=golden_error, delay_ms=delay_ms)
    files["notes/version.txt"] = f"{name} {version}\n".encode() + bytes(padding)
    manifest = null_manifest(files, parts, name=name, version=version, profiles=profiles, limits=limits)
    return pack(manifest, files, {"v": 1})


def write_null_bundle(path: Path, **options: Any) -> Bundle:
    """`null_bundle` written to `path` and opened."""
    path.write_bytes(null_bundle(**options))
    return open_bundle(path)
