"""What is wrong with the board itself: disk, clock, folders, swap, memory, the installed bundle. Changes nothing.

Every look says one line and what to do, and only where it knows: a file that is not there says nothing.
"""

from __future__ import annotations

import grp
import os
import re
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from edgekit.agent import clock
from edgekit.agent.config import Config
from edgekit.agent.slots import BUNDLE
from edgekit.agent.state import State
from edgekit.core.bundle import open_bundle
from edgekit.core.checks import parse_json
from edgekit.core.errors import BadInput, EdgekitError
from edgekit.core.manifest import Manifest
from edgekit.core.trust import near_expiry
from edgekit.runtime.detect import installed_version
from edgekit.runtime.sysfs import text_or_none

PACKAGES = {
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "litert": ("ai-edge-litert",),
    "tflite-runtime": ("tflite-runtime",),
}
UNIT = "etc/systemd/system/edgekit-agent.service"
_WEARS = {
    "sync": "every write waits for the card and costs whole blocks",
    "strictatime": "every read writes to the card",
    "data=journal": "everything is written to the card twice",
}


@dataclass(frozen=True)
class Problem:
    """what: the part of the set-up.

    exit_code: 3 the world fails, 2 the set-up is wrong, 1 it runs, but poorly, 0 nothing is wrong with it.
    """

    what: str
    detail: str
    exit_code: int


@dataclass(frozen=True)
class Machine:
    """What the looks ask besides files under the configured root. free_bytes: of the file system with that folder."""

    now: Callable[[], float] = time.time
    synchronized: Callable[[], bool] = clock.synchronized
    free_bytes: Callable[[Path], int] = lambda path: os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    installed: Callable[[str], str | None] = installed_version


def board_problems(config: Config, machine: Machine | None = None) -> Iterator[Problem]:
    """Everything that is wrong with the board, as it is found."""
    machine = machine or Machine()
    state = state_of(config)
    manifest = _active_manifest(config, state)
    yield from _folders(config)
    yield from _disk(config, machine, state)
    yield from _clock(config, machine, state)
    yield from _metadata(machine, state)
    yield from _runtime(machine, manifest)
    yield from _memory(config, manifest)
    yield from _swap(config)
    yield from _mount(config)
    yield from _unit(config)


def state_of(config: Config) -> State:
    """What the agent remembers; nothing where that cannot be read."""
    path = config.state_dir / "state.json"
    with suppress(BadInput, OSError):
        return State.parse(parse_json(path.read_bytes(), str(path)), str(path))
    return State()


def no_permission(why: str) -> str:
    """What to do about `no permission to read PATH`: which group may; nothing for any other reason."""
    found = re.search(r"no permission to read (/\S+)", why)
    if found is None:
        return ""
    try:
        status = Path(found.group(1)).stat()
        group = grp.getgrgid(status.st_gid).gr_name
    except (OSError, KeyError):
        return ""
    if status.st_mode & stat.S_IRGRP and status.st_gid:
        return f": its group may read it: usermod -aG {group} USER, and start again"
    return f": only {'root' if not status.st_uid else 'its owner'} may: a udev rule can give it to a group"


def _active_manifest(config: Config, state: State) -> Manifest | None:
    """Of the installed bundle. A slot that cannot be opened is the agent's affair: it repairs itself."""
    if state.active is None:
        return None
    try:
        path = config.state_dir / "slots" / state.active.content_id / BUNDLE
        return open_bundle(path, config.limits.max_bundle_bytes).manifest
    except EdgekitError:
        return None


def _folders(config: Config) -> Iterator[Problem]:
    for folder in dict.fromkeys((config.path.resolve().parent, config.state_dir)):
        with suppress(OSError):
            mode = stat.S_IMODE(folder.stat().st_mode)
            if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
                yield Problem(
                    "folder",
                    f"{folder}: mode is {mode:o}, everybody can put files there: chmod o-w {folder}",
                    1,
                )


def _disk(config: Config, machine: Machine, state: State) -> Iterator[Problem]:
    """Room for what the outbox may still take and for one more bundle like the present one."""
    folder = next(path for path in (config.state_dir, *config.state_dir.parents) if path.exists())
    held = sum(file.stat().st_size for file in config.state_dir.glob("outbox.db*"))
    wanted = max(0, config.telemetry.outbox_bytes - held) + _bundle_bytes(config, state)
    with suppress(OSError):
        free = machine.free_bytes(folder)
        if free < wanted:
            yield Problem(
                "disk",
                f"{folder}: {free / 2**20:.0f} MB free, {wanted / 2**20:.0f} MB may be needed by the outbox and the "
                "next bundle: free some, or lower telemetry.outbox_mb",
                1,
            )


def _bundle_bytes(config: Config, state: State) -> int:
    if state.active is not None:
        with suppress(OSError):
            return (config.state_dir / "slots" / state.active.content_id / BUNDLE).stat().st_size
    return 0


def _clock(config: Config, machine: Machine, state: State) -> Iterator[Problem]:
    now = machine.now()
    if clock.trusted(now, state.good_time) is None:
        shown, known = (
            time.strftime("%Y-%m-%d", time.gmtime(value))
            for value in (now, max(clock.EARLIEST, state.good_time))
        )
        yield Problem(
            "clock",
            f"it says {shown}, and it was {known} already: Records carry no time; set it, or let NTP (timedatectl "
            "set-ntp true)",
            1,
        )
    elif _is_this_machine(config) and not machine.synchronized():
        yield Problem(
            "clock", "not synchronized by NTP: timedatectl set-ntp true, or ask for UDP port 123", 1
        )


def _metadata(machine: Machine, state: State) -> Iterator[Problem]:
    now = clock.trusted(machine.now(), state.good_time)
    for role, expires in sorted(state.metadata_expires.items()):
        if now is not None and near_expiry(role, expires, now):
            day = time.strftime("%Y-%m-%d", time.gmtime(expires))
            ends = "ended" if expires <= now else "ends"
            yield Problem(
                "metadata",
                f"the repository's {role} {ends} on {day}, after which no update is taken: the server renews it "
                "(edgekit repo refresh), unless this board does not reach it",
                1,
            )


def _runtime(machine: Machine, manifest: Manifest | None) -> Iterator[Problem]:
    """Stages have parts for several runtimes at times: one that is here is enough."""
    for stage in manifest.stages if manifest is not None else ():
        wanted = [part.backend for part in stage.parts]
        if all(name in PACKAGES and not any(map(machine.installed, PACKAGES[name])) for name in wanted):
            packages = " or ".join(dict.fromkeys(PACKAGES[name][0] for name in wanted))
            yield Problem(
                "runtime", f"the installed bundle needs a runtime that is missing: pip install {packages}", 2
            )
            return


def _memory(config: Config, manifest: Manifest | None) -> Iterator[Problem]:
    wanted = None if manifest is None else manifest.limits.memory_mb
    total = _meminfo_mb(config.sensors.sysroot, "MemTotal")
    if wanted is not None and total is not None and wanted > total / 2:
        yield Problem(
            "memory",
            f"the installed bundle may take {wanted:g} MB, more than half of the board's {total:.0f} MB: convert it "
            "for less (--max-size-kb), or use a larger board",
            1,
        )


def _meminfo_mb(root: Path, key: str) -> float | None:
    found = re.search(rf"^{key}:\s+(\d+) kB", text_or_none(root / "proc/meminfo") or "", re.MULTILINE)
    return None if found is None else int(found.group(1)) / 1024


def _swap(config: Config) -> Iterator[Problem]:
    """Swap in compressed memory is fine; on a card it wears it out, and a page that comes back takes milliseconds."""
    for line in (text_or_none(config.sensors.sysroot / "proc/swaps") or "").splitlines()[1:]:
        name, _kind, _size, used, *_ = [*line.split(), "0", "0", "0"]
        if used.isdigit() and int(used) > 0 and "zram" not in name and _is_card(config, name):
            yield Problem(
                "swap",
                f"{int(used) / 1024:.0f} MB lie in {name}, on a card: that wears it out and makes answers late: "
                f"swapoff {name}, or zram instead",
                1,
            )


def _is_card(config: Config, name: str) -> bool:
    """A partition of a card, or a file where the root is on one."""
    if "mmcblk" in name:
        return True
    root = next((entry for entry in _mounts(config) if entry[1] == "/"), None)
    return not name.startswith("/dev/") and root is not None and "mmcblk" in root[0]


def _mounts(config: Config) -> list[list[str]]:
    """Device, place, type, options of what is mounted."""
    text = text_or_none(config.sensors.sysroot / "proc/self/mounts") or ""
    return [fields for line in text.splitlines() if len(fields := line.split()) >= 4]


def _mount(config: Config) -> Iterator[Problem]:
    """The options of the file system that holds the state folder, where they wear a card out."""
    folder = str(config.state_dir.resolve())
    holding = [entry for entry in _mounts(config) if f"{folder}/".startswith(entry[1].rstrip("/") + "/")]
    if not holding:
        return
    device, place, _, options, *_ = max(holding, key=lambda entry: len(entry[1]))
    for option in options.split(","):
        if option in _WEARS and device.startswith("/dev/"):
            yield Problem(
                "mount", f"{place} is mounted with {option}: {_WEARS[option]}: take it out of /etc/fstab", 1
            )


def _unit(config: Config) -> Iterator[Problem]:
    unit = text_or_none(config.sensors.sysroot / UNIT)
    if unit is not None and not re.search(r"^\s*WatchdogSec\s*=\s*[1-9]", unit, re.MULTILINE):
        yield Problem(
            "unit",
            f"/{UNIT}: has no WatchdogSec, so an agent that hangs is not started again: write it anew with "
            "edgekit agent unit",
            1,
        )


def _is_this_machine(config: Config) -> bool:
    return config.sensors.sysroot == Path("/") and not config.sensors.simulated
