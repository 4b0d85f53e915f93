"""One signed entry of the repository, as it stands in TUF's targets metadata. No keys, no network."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from edgekit.core import checks
from edgekit.core.errors import BadInput

SUFFIXES = {"run": "edge", "measure": "edge", "agent": "env"}
"""What a target may be used for (a bundle to run, a round to measure, the agent's environment) -> its file's ending."""
USES = tuple(SUFFIXES)
STATES = ("current", "allowed", "revoked")
_GLIBC = re.compile(r"2\.\d{1,3}")
_LABEL = re.compile(rf"({checks.NAME.pattern})/([1-9]\d{{0,9}})")


@dataclass(frozen=True)
class Target:
    """name/version of a bundle, the profiles it is for, what it may be used for and whether it still may.

    content_id: sha256 of the bundle's canonical manifest. executes_code: some part runs code from the bundle.
    pythons, machines, glibc: of an environment, as core.environment describes them.
    """

    name: str
    version: int
    profiles: tuple[str, ...]
    use: str
    state: str
    content_id: str
    executes_code: bool = False
    pythons: tuple[str, ...] = ()
    machines: tuple[str, ...] = ()
    glibc: str | None = None

    @property
    def label(self) -> str:
        """`name/version`."""
        return f"{self.name}/{self.version}"

    @property
    def path(self) -> str:
        """The target path in the repository."""
        return target_path(self.name, self.version, self.use)

    def to_custom(self) -> dict[str, Any]:
        """TUF's `custom` field."""
        custom: dict[str, Any] = {
            "name": self.name,
            "version": self.version,
            "profiles": list(self.profiles),
            "use": self.use,
            "state": self.state,
            "content_id": self.content_id,
            "executes_code": self.executes_code,
        }
        if self.use == "agent":
            custom |= {"pythons": list(self.pythons), "machines": list(self.machines), "glibc": self.glibc}
        return custom

    @classmethod
    def parse(cls, value: object, where: str) -> Target:
        """Read TUF's `custom` field. Raises BadInput."""
        data: Mapping[str, Any] = checks.table(value, where)
        return cls(
            name=checks.name(data.get("name"), f"{where}.name"),
            version=checks.integer(data.get("version"), f"{where}.version", 1, 2**31),
            profiles=checks.rows(data.get("profiles"), f"{where}.profiles", checks.name),
            use=checks.choice(data.get("use"), f"{where}.use", USES),
            state=checks.choice(data.get("state"), f"{where}.state", STATES),
            content_id=checks.sha256(data.get("content_id"), f"{where}.content_id"),
            executes_code=checks.flag(data.get("executes_code", False), f"{where}.executes_code"),
            pythons=checks.rows(data.get("pythons", []), f"{where}.pythons", checks.text),
            machines=checks.rows(data.get("machines", []), f"{where}.machines", checks.text),
            glibc=checks.optional(data.get("glibc"), f"{where}.glibc", glibc_version),
        )


def target_path(name: str, version: int, use: str = "run") -> str:
    """Where a target lies in the repository: `run/NAME/VERSION.edge`, `measure/...` or `agent/NAME/VERSION.env`."""
    return f"{use}/{name}/{version}.{SUFFIXES[use]}"


def parse_label(value: object, where: str) -> tuple[str, int]:
    """Split `name/version`. Raises BadInput."""
    match = _LABEL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise checks.wrong(where, "NAME/VERSION of a bundle", value)
    version = int(match[2])
    if version > 2**31:
        raise BadInput(f"{where}: version {version} is too large")
    return match[1], version


def glibc_version(value: object, where: str) -> str:
    """`2.28`. Raises BadInput."""
    if not isinstance(value, str) or not _GLIBC.fullmatch(value):
        raise checks.wrong(where, "a version of glibc such as 2.28", value)
    return value
