"""Make a board's supervisor: its folder, its program, and the environment that runs now as the first one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from edgekit.agent import supervisor as files
from edgekit.agent.unit import base_python
from edgekit.core.checks import canonical_json
from edgekit.core.errors import WorldFailed
from edgekit.core.files import make_folder, write_atomic

FIRST = "first"
PROGRAM = "supervisor.py"


def set_up(root: Path) -> None:
    """Fill `root`; run again, it replaces the program and what the first environment is. Raises WorldFailed.

    What was installed by updates stays, and goes on running. The first environment is this very Python: it is where
    the board ends up when all else is lost, so it must stay where it is.
    """
    first = root / files.FOLDER / FIRST
    try:
        make_folder(first)
        program = Path(files.__file__).read_bytes()
    except OSError as err:
        raise WorldFailed(f"{root}: could not be set up: {err.strerror}") from err
    write_atomic(root / PROGRAM, program)
    manifest = {"v": 1, "entry": "edgekit", "python": sys.executable}
    write_atomic(first / files.MANIFEST, canonical_json(manifest))


def start_command(root: Path | None, config: Path) -> Sequence[str]:
    """What starts the agent on `config`: under the supervisor in `root`, or alone where there is none."""
    agent = ("agent", "--config", str(config))
    if root is None:
        return (sys.executable, "-m", "edgekit", *agent)
    return (base_python(), str(root / PROGRAM), str(root), "--", *agent)
