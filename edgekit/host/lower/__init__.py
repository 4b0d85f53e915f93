"""A stage becomes part files a backend runs: one backend a file, found by name. The other half is runtime/backends/."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from edgekit.core.errors import BadInput
from edgekit.core.profile import Backend, Profile
from edgekit.host.lower import onnxruntime
from edgekit.host.lower.base import LoweredPart
from edgekit.host.split import Stage

__all__ = ["LOWERINGS", "LoweredPart", "backend_for"]

# (stage, the profile's limits) -> the parts to run in order
Lower = Callable[[Stage, Backend], tuple[LoweredPart, ...]]
LOWERINGS: Mapping[str, Lower] = {"onnxruntime": onnxruntime.lower}


def backend_for(profile: Profile) -> Backend:
    """The first of the profile's backends we can lower to. Raises BadInput that says what the profile has."""
    for backend in profile.backends:
        if backend.name in LOWERINGS:
            return backend
    has = ", ".join(backend.name for backend in profile.backends)
    raise BadInput(
        f"profile {profile.name}: convert needs one of the backends {', '.join(LOWERINGS)}, this board has {has}"
    )
