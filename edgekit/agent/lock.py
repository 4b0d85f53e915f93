"""The state folder's lock: one agent at a time. It goes with the process that holds it."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from edgekit.core.errors import BadInput, WorldFailed
from edgekit.core.files import make_folder, remove_interrupted

_NAME = "lock"


def hold(state_dir: Path) -> int:
    """Hold the state folder for this process alone. Raises BadInput when another agent has it, WorldFailed."""
    try:
        make_folder(state_dir)
        descriptor = os.open(state_dir / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as err:
        raise WorldFailed(f"{state_dir}: the state folder cannot be used: {err.strerror}") from err
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as err:
        os.close(descriptor)
        raise BadInput(f"{state_dir}: another agent is running with this state folder") from err
    remove_interrupted(state_dir)
    return descriptor


def is_held(state_dir: Path) -> bool:
    """Whether an agent is running with this state folder. False where that cannot be seen."""
    try:
        descriptor = os.open(state_dir / _NAME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False
