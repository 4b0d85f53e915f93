"""Boards made of files: the sensor trees of a Raspberry Pi 5, a Jetson Orin Nano and a Raspberry Pi 4.

The agent reads them with the drivers it uses on real boards; only what stands in the files is made up.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

_VCGENCMD = '#!/bin/sh\nexec cat "$(dirname "$0")/../../$1"\n'
_FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"
_INA3221 = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon/hwmon4"
_ZONE = "sys/class/thermal/thermal_zone0"
_THROTTLED = 0x4  # throttled now
_NORMAL_C, _THROTTLED_C = 52.0, 84.0
_UPDATE_S = 0.1


@dataclass(frozen=True)
class SimulatedBoard:
    """name and profile; idle and busy power in W that the made-up sensor swings between; write: puts them in files."""

    name: str
    profile: str
    idle_w: float
    busy_w: float
    write: Callable[[Path, float], Mapping[Path, str]]


def _put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(text)
    temporary.replace(path)


def _pi5(root: Path, watts: float) -> Mapping[Path, str]:
    rails = {
        "VDD_CORE": (0.80, 0.7),
        "DDR_VDD2": (1.10, 0.2),
        "3V3_SYS": (3.30, 0.1),
    }  # volts, share of the power
    lines = []
    for index, (rail, (volts, share)) in enumerate(rails.items()):
        lines.append(f"{rail}_A current({index})={watts * share / volts:.5f}A")
        lines.append(f"{rail}_V volt({index + 8})={volts:.5f}V")
    return {root / "pmic_read_adc": "\n".join([*lines, "EXT5V_V volt(24)=5.12000V", ""])}


def _orin(root: Path, watts: float) -> Mapping[Path, str]:
    chip, volts = root / _INA3221, 5.0
    rails = {"1": ("VDD_IN", watts), "2": ("VDD_CPU_GPU_CV", 0.3 * watts), "3": ("VDD_SOC", 0.2 * watts)}
    files = {}
    for channel, (label, power) in rails.items():
        files[chip / f"in{channel}_label"] = f"{label}\n"
        files[chip / f"in{channel}_input"] = f"{1000 * volts:.0f}\n"
        files[chip / f"curr{channel}_input"] = f"{1000 * power / volts:.0f}\n"
    return files


def _pi4(root: Path, watts: float) -> Mapping[Path, str]:
    del root, watts  # a Raspberry Pi 4 cannot measure its power
    return {}


BOARDS = (
    SimulatedBoard("orin", "jetson-orin-nano", 4.5, 9.0, _orin),
    SimulatedBoard("pi4", "raspberrypi4b", 2.7, 6.4, _pi4),
    SimulatedBoard("pi5", "raspberrypi5", 2.6, 6.8, _pi5),
)


class Sensors:
    """Keeps one board's files alive: power swings, temperature follows, the throttle flag is set from outside."""

    def __init__(self, board: SimulatedBoard, root: Path) -> None:
        self.board, self.root = board, root
        self._throttled, self._stop = threading.Event(), threading.Event()
        self._writing = threading.Lock()  # the sensors' thread and whoever throttles write the same files
        self._write(0.0)
        script = root / "usr/bin/vcgencmd"
        if board.profile == "raspberrypi5":
            _put(script, _VCGENCMD)
            script.chmod(0o755)
        self._thread = threading.Thread(target=self._live, name=f"sensors of {board.name}", daemon=True)
        self._thread.start()

    def throttle(self, on: bool) -> None:
        """Make the firmware say that it slows the CPU down, or that it no longer does."""
        (self._throttled.set if on else self._throttled.clear)()
        self._write(time.monotonic())

    def stop(self) -> None:
        """Stop changing files."""
        self._stop.set()
        self._thread.join()

    def _live(self) -> None:
        while not self._stop.wait(_UPDATE_S):
            self._write(time.monotonic())

    def _write(self, now: float) -> None:
        throttled = self._throttled.is_set()
        load = 0.3 if throttled else 0.7 + 0.2 * math.sin(now)
        watts = self.board.idle_w + load * (self.board.busy_w - self.board.idle_w)
        files = dict(self.board.write(self.root, watts))
        if self.board.profile.startswith("raspberrypi"):
            files[self.root / _FIRMWARE] = f"{_THROTTLED if throttled else 0:x}\n"
        files[self.root / _ZONE / "type"] = "cpu-thermal\n"
        files[self.root / _ZONE / "temp"] = (
            f"{1000 * (_THROTTLED_C if throttled else _NORMAL_C + 4 * load):.0f}\n"
        )
        with self._writing:
            for path, text in files.items():
                _put(path, text)
