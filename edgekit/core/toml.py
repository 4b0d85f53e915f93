"""Read TOML from disk or text; what is wrong is one line. Knows no format. The one place that imports a TOML parser."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgekit.core.errors import BadInput, WorldFailed, one_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_MAX_BYTES = 2**20


def read_toml(path: Path) -> Mapping[str, Any]:
    """The file's tables. Raises BadInput (no file, not TOML, above 1 MiB), WorldFailed (the disk does not give it)."""
    try:
        data = path.read_bytes()
    except (FileNotFoundError, IsADirectoryError) as err:
        raise BadInput(f"{path}: must be an existing TOML file") from err
    except OSError as err:
        raise WorldFailed(f"{path}: could not be read: {err.strerror or err}") from err
    if len(data) > _MAX_BYTES:
        raise BadInput(f"{path}: must be a TOML file of at most {_MAX_BYTES} bytes, got {len(data)}")
    return parse_toml(data, str(path))


def parse_toml(data: bytes | str, where: str) -> Mapping[str, Any]:
    """TOML text as tables. Raises BadInput that names `where`."""
    try:
        tables: Mapping[str, Any] = tomllib.loads(data if isinstance(data, str) else data.decode("utf-8"))
    except (ValueError, RecursionError) as err:
        raise BadInput(f"{where}: must be a TOML file: {one_line(err)}") from err
    return tables
