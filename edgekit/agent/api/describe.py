"""What the protocol tells about server and models: metadata, configuration, repository index, statistics. No I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from edgekit.agent.api import tensors
from edgekit.agent.api.calls import Signature
from edgekit.core.manifest import Manifest, Tensor

EXTENSIONS = ("binary_tensor_data", "classification", "model_configuration", "model_repository", "statistics")
_MAX_BUNDLES = 8  # whose statistics are kept
_ACTIONS = ("success", "fail", "queue", "compute_infer")


def server_metadata(version: str) -> dict[str, Any]:
    """`GET /v2`."""
    return {"name": "edgekit", "version": version, "extensions": list(EXTENSIONS)}


def model_metadata(signature: Signature) -> dict[str, Any]:
    """`GET /v2/models/{name}`: full shapes, the batch of one included."""
    manifest = signature.manifest
    return {
        "name": manifest.name,
        "versions": [str(manifest.version)],
        "platform": _platform(manifest),
        "inputs": [_tensor(entry.tensor) for entry in signature.inputs.values()],
        "outputs": [_tensor(tensor) for tensor in signature.outputs],
    }


def model_config(signature: Signature) -> dict[str, Any]:
    """`GET /v2/models/{name}/config`: one sample a request (max_batch_size 0); our exits as parameters."""
    manifest = signature.manifest
    exits = ",".join(leaving.name for leaving in manifest.exits)
    return {
        "name": manifest.name,
        "platform": _platform(manifest),
        "backend": _platform(manifest),
        "version_policy": {"specific": {"versions": [manifest.version]}},
        "max_batch_size": 0,
        "input": [_configured(entry.tensor) for entry in signature.inputs.values()],
        "output": [_configured(tensor) for tensor in signature.outputs],
        "instance_group": [{"name": manifest.name, "kind": "KIND_CPU", "count": 1}],
        "parameters": {"exits": {"string_value": exits}},
    }


def repository_index(manifest: Manifest | None) -> list[dict[str, str]]:
    """`POST /v2/repository/index`: the bundle that serves."""
    if manifest is None:
        return []
    return [{"name": manifest.name, "version": str(manifest.version), "state": "READY", "reason": ""}]


def _platform(manifest: Manifest) -> str:
    backends = {part.backend for stage in manifest.stages for part in stage.parts}
    return "edgekit_" + "_".join(sorted(backends))


def _tensor(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensors.DATATYPES[tensor.dtype], "shape": list(tensor.shape)}


def _configured(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "data_type": f"TYPE_{tensors.DATATYPES[tensor.dtype]}",
        "dims": list(tensor.shape),
    }


@dataclass
class _Total:
    count: int = 0
    seconds: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": round(self.seconds * 1e9)}


@dataclass
class _Bundle:
    last: float = 0.0
    cancelled: int = 0
    totals: Mapping[str, _Total] = field(default_factory=lambda: {action: _Total() for action in _ACTIONS})


class Statistics:
    """What came through the API since the agent's start, by bundle; requests of sources are not among it."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._bundles: dict[tuple[str, int], _Bundle] = {}

    def _of(self, manifest: Manifest) -> _Bundle:
        key = (manifest.name, manifest.version)
        if key not in self._bundles:
            if len(self._bundles) >= _MAX_BUNDLES:
                del self._bundles[next(iter(self._bundles))]
            self._bundles[key] = _Bundle()
        return self._bundles[key]

    def answered(self, manifest: Manifest, total_s: float, queue_s: float, infer_s: float) -> None:
        """One request was answered."""
        found = self._of(manifest)
        found.last = self._clock()
        for action, seconds in (("success", total_s), ("queue", queue_s), ("compute_infer", infer_s)):
            found.totals[action].add(seconds)

    def failed(self, manifest: Manifest, total_s: float) -> None:
        """One request for this bundle was refused or failed."""
        self._of(manifest).totals["fail"].add(total_s)

    def cancelled(self, manifest: Manifest) -> None:
        """One client hung up before its answer."""
        self._of(manifest).cancelled += 1

    def to_json(self, name: str | None, version: str | None) -> dict[str, Any]:
        """`GET /v2/models[/{name}[/versions/{version}]]/stats`."""
        rows = [
            _statistics(bundle_name, bundle_version, bundle)
            for (bundle_name, bundle_version), bundle in self._bundles.items()
            if name in (None, bundle_name) and version in (None, str(bundle_version))
        ]
        return {"model_stats": rows}


def _statistics(name: str, version: int, bundle: _Bundle) -> dict[str, Any]:
    answered = bundle.totals["success"].count
    totals = {action: total.to_json() for action, total in bundle.totals.items()}
    nothing = {
        action: _Total().to_json()
        for action in ("compute_input", "compute_output", "cache_hit", "cache_miss")
    }
    return {
        "name": name,
        "version": str(version),
        "last_inference": round(bundle.last * 1e3),
        "inference_count": answered,
        "execution_count": answered,
        "inference_stats": {**totals, **nothing, "cancel": {"count": bundle.cancelled, "ns": 0}},
        "batch_stats": [],
    }
