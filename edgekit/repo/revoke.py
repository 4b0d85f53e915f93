"""Take a published target back: boards stop running it. Pure; a revocation is never undone."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime

from tuf.api.metadata import Metadata, Targets

from edgekit.core.errors import BadInput
from edgekit.core.target import parse_label
from edgekit.repo.add import TARGETS_LIFE, with_state
from edgekit.repo.metadata import entries


def is_revoked(targets: Targets, label: str) -> bool:
    """Whether NAME/VERSION was revoked, for every use it was published for. Raises BadInput: no such target."""
    return set(_states(targets, label).values()) == {"revoked"}


def with_revoked(metadata: Metadata[Targets], label: str, now: datetime) -> Metadata[Targets]:
    """The next version of the targets metadata, unsigned, with NAME/VERSION revoked.

    Raises BadInput: no such target.
    """
    new = deepcopy(metadata.signed)
    for path in _states(new, label):
        new.targets[path] = with_state(new.targets[path], "revoked")
    new.version += 1
    new.expires = (now + TARGETS_LIFE).replace(microsecond=0)
    return Metadata(new)


def revoked_labels(targets: Targets) -> frozenset[str]:
    """All that was revoked."""
    return frozenset(e.target.label for e in entries(targets).values() if e.target.state == "revoked")


def _states(targets: Targets, label: str) -> dict[str, str]:
    """Target path -> state of what is called so."""
    name, version = parse_label(label, "NAME/VERSION")
    known = entries(targets)
    found = {
        p: e.target.state for p, e in known.items() if (e.target.name, e.target.version) == (name, version)
    }
    if not found:
        there = ", ".join(sorted(e.target.label for e in known.values() if e.target.name == name)) or "none"
        raise BadInput(
            f"{label} is not published, so there is nothing to revoke (versions of {name}: {there})"
        )
    return found
