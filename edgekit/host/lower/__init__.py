"""A stage becomes part files a backend runs: one backend a file, found by name. The other half is runtime/backends/."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend, Profile
from edgekit.host.graph import Graph
from edgekit.host.lower import litert, onnxruntime
from edgekit.host.lower.base import LoweredPart
from edgekit.host.split import Stage

__all__ = ["LOWERINGS", "LoweredPart", "backend_for", "check_holds", "problems"]

# (stage, the profile's limits) -> the parts to run in order
Lower = Callable[[Stage, Backend], tuple[LoweredPart, ...]]
LOWERINGS: Mapping[str, Lower] = {
    "onnxruntime": onnxruntime.lower,
    "litert": litert.lower,
    "tflite-runtime": litert.lower,
}
PLANS = ("native", "overlay", "overlay-sim")  # what runs binary networks' plans: pack_plan makes these parts
_UNSUPPORTED: Mapping[str, Callable[[Graph], tuple[str, ...]]] = {
    "litert": litert.unsupported,
    "tflite-runtime": litert.unsupported,
}


def problems(graph: Graph, backend: Backend) -> tuple[str, ...]:
    """What keeps the graph from being lowered to a backend: a line for each node. Lowers nothing."""
    return _UNSUPPORTED.get(backend.name, _nothing)(graph)


def check_holds(graph: Graph, backend: Backend) -> None:
    """Raises BadInput naming the nodes that a backend has no operator for, before any long work."""
    found = problems(graph, backend)
    if found:
        raise BadInput(litert.refusal(found))


def _nothing(graph: Graph) -> tuple[str, ...]:
    del graph
    return ()


def backend_for(profile: Profile, name: str | None = None) -> Backend:
    """The backend called `name`, or the first of the profile's that we can lower to. Raises BadInput for what is not.

    name: None lets the profile choose.
    """
    if name is not None and name not in (*LOWERINGS, *PLANS):
        raise BadInput(f"unknown backend {name!r}; convert knows {', '.join((*LOWERINGS, *PLANS))}")
    for backend in profile.backends:
        if backend.name == name or (name is None and backend.name in LOWERINGS):
            return backend
    has = ", ".join(backend.name for backend in profile.backends)
    wanted = f"the backend {name}" if name is not None else f"one of the backends {', '.join(LOWERINGS)}"
    if name is None and any(backend.name in PLANS for backend in profile.backends):
        raise BadInput(
            f"profile {profile.name} runs binary networks only: another one needs {wanted}, this board has {has}"
        )
    raise BadInput(f"profile {profile.name}: convert needs {wanted}, this board has {has}")
