"""The systemd unit of an agent: what it may touch follows from its config. Writes nothing.

Every key is described in systemd.service(5), systemd.exec(5) and systemd.resource-control(5).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from edgekit.agent.config import Config

STATE = Path("/var/lib/edgekit")
WATCHDOG_S = 120
_HOMES = (Path("/home"), Path("/root"))


@dataclass(frozen=True)
class Service:
    """start: the command. user: who it runs as. root: the supervisor's folder, None without one.

    memory_high, memory_max: as systemd writes them, "60%" of the board's memory or "400M".
    """

    start: Sequence[str]
    user: str
    root: Path | None
    memory_high: str = "60%"
    memory_max: str = "75%"


def base_python() -> str:
    """The interpreter that virtual environments are made of: it outlives each of them."""
    return str(getattr(sys, "_base_executable", None) or sys.executable)


def unit(config: Config, service: Service) -> str:
    """The unit file's text."""
    devices = tuple(dict.fromkeys(_devices(config)))
    overlay = _has_overlay(config)
    writable = tuple(dict.fromkeys(_writable(config, service)))
    lines = [
        "[Unit]",
        f"Description=edgekit agent {_plain(config.address)}",
        "Documentation=man:systemd.exec(5)",
        "After=network.target time-sync.target",
        "StartLimitIntervalSec=0",
        "",
        "[Service]",
        "Type=notify",
        "NotifyAccess=main",
        f"ExecStart={_command(service.start)}",
        f"WatchdogSec={WATCHDOG_S}",
        "Restart=always",
        "RestartSec=2",
        "TimeoutStartSec=15min" if service.root else "TimeoutStartSec=3min",
        "TimeoutStopSec=10",
        "KillMode=mixed",
        f"User={'root' if overlay else service.user}",
        *([f"StateDirectory={STATE.name}", "StateDirectoryMode=0700"] if _under(STATE, writable) else ()),
        "UMask=0077",
        "LimitCORE=0",  # a core holds the board's password and key
        "",
        "# A child that takes too much is ended alone; the agent goes on.",
        f"MemoryHigh={service.memory_high}",
        f"MemoryMax={service.memory_max}",
        "OOMPolicy=continue",
        "",
        "# Files: all is read-only but what the config names.",
        "ProtectSystem=strict",
        f"ProtectHome={'read-only' if _at_home(config, service) else 'yes'}",
        *(f"ReadWritePaths={_path(path)}" for path in writable),
        "PrivateTmp=yes",
        "",
        "# Devices: what its sensors, its camera and its accelerator need, nothing else.",
        *(["DevicePolicy=closed", *(f"DeviceAllow={device} rw" for device in devices)] if devices else ()),
        *(["SupplementaryGroups=video"] if devices and not overlay else ()),
        *([] if devices else ["PrivateDevices=yes"]),
        "",
        "# Rights: none beyond a plain process's.",
        "NoNewPrivileges=yes",
        f"CapabilityBoundingSet={'CAP_SYS_RAWIO CAP_DAC_OVERRIDE' if overlay else ''}",
        "AmbientCapabilities=",
        "SystemCallArchitectures=native",
        "SystemCallFilter=@system-service" + (" @raw-io" if overlay else ""),
        "SystemCallErrorNumber=EPERM",
        "RestrictAddressFamilies=AF_INET AF_INET6 AF_UNIX AF_NETLINK",
        *(
            f"{key}=yes"
            for key in (
                "RestrictNamespaces",
                "RestrictRealtime",
                "RestrictSUIDSGID",
                "LockPersonality",
                "ProtectClock",
                "ProtectControlGroups",
                "ProtectHostname",
                "ProtectKernelLogs",
                "ProtectKernelModules",
                "ProtectKernelTunables",
                "RemoveIPC",
            )
        ),
        "ProtectProc=invisible",
        "",
        "[Install]",
        "WantedBy=multi-user.target",
    ]
    return "\n".join(lines) + "\n"


def _devices(config: Config) -> Iterator[str]:
    if config.profile.name.startswith("raspberrypi"):  # vcgencmd: throttling, and the Pi 5's power
        yield from ("/dev/vcio", "/dev/vchiq")
    device = config.source.device
    if config.source.kind == "camera" and (isinstance(device, int) or str(device).startswith("/dev/")):
        yield f"/dev/video{device}" if isinstance(device, int) else str(device)
        yield "char-video4linux"
    for backend in config.profile.backends:
        if any(provider.startswith(("CUDA", "Tensorrt")) for provider in backend.providers):
            yield from ("char-nv*", "/dev/nvmap")
    if _has_overlay(config):
        yield from ("/dev/mem", "char-uio", "char-drm", "/dev/xlnk")


def _has_overlay(config: Config) -> bool:
    """The driver maps physical memory: as root, and only where the config takes bundles with bitstreams."""
    return config.limits.accepts_code and any(b.name == "overlay" for b in config.profile.backends)


def _writable(config: Config, service: Service) -> Iterator[Path]:
    yield config.state_dir
    if service.root is not None:
        yield service.root
    for sink in config.sinks:
        if sink.path is not None:
            yield sink.path.parent
    if config.api is not None and config.api.path is not None:
        yield config.api.path.parent
    if config.identity is not None:  # renewed by the agent
        yield from (config.identity.certificate.parent, config.identity.key.parent)
    if config.source.kind == "folder" and config.source.path is not None:
        if config.source.delete or config.source.move_to is not None:
            yield config.source.path
        if config.source.move_to is not None:
            yield config.source.move_to


def _under(folder: Path, paths: Sequence[Path]) -> bool:
    return any(path == folder or folder in path.parents for path in paths)


def _at_home(config: Config, service: Service) -> bool:
    used = [
        config.path.resolve(),
        config.state_dir,
        *(Path(word) for word in service.start if word.startswith("/")),
    ]
    return any(_under(home, used) for home in _HOMES)


def _plain(text: str) -> str:
    return text.replace("%", "%%")


def _path(path: Path) -> str:
    """A path as a list of paths has it; "-": it may not be there yet."""
    return "-" + _quoted(str(path))


def _command(words: Sequence[str]) -> str:
    return " ".join(_quoted(word).replace("$", "$$") for word in words)


def _quoted(word: str) -> str:
    word = _plain(word)
    if word and not set(word) & set(" \t\"'\\;"):
        return word
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
