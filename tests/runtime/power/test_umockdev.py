"""Sensors against umockdev's /sys: the real paths and links as the kernel lays them out, not a tree under another root.

umockdev knows classes, not drivers: INA3221 (found under bus/i2c/drivers) and the XADC (bus/iio) stay with the
trees of tests/conformance/test_power_sensors.py and tests/runtime/test_health.py.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(
    shutil.which("umockdev-run") is None, reason="needs umockdev-run (Debian package umockdev)"
)

ZCU104 = """\
P: /devices/platform/i2c0/i2c-1/1-0040/hwmon/hwmon7
E: SUBSYSTEM=hwmon
A: name=ina226\\n
A: power1_input=12500000\\n
A: update_interval=2\\n

P: /devices/platform/i2c0/i2c-2/2-0043/hwmon/hwmon3
E: SUBSYSTEM=hwmon
A: name=irps5401\\n
A: power1_input=900000\\n
A: power1_label=pout1\\n
"""
X86 = """\
P: /devices/virtual/powercap/intel-rapl/intel-rapl:0
E: SUBSYSTEM=powercap
A: name=package-0\\n
A: energy_uj=262143000000\\n
A: max_energy_range_uj=262143328850\\n

P: /devices/virtual/powercap/intel-rapl/intel-rapl:1
E: SUBSYSTEM=powercap
A: name=psys\\n
A: energy_uj=5\\n
A: max_energy_range_uj=262143328850\\n

P: /devices/virtual/thermal/thermal_zone3
E: SUBSYSTEM=thermal
A: type=x86_pkg_temp\\n
A: temp=61000\\n
"""
PI = """\
P: /devices/platform/soc/soc:firmware/raspberrypi-hwmon/hwmon/hwmon5
E: SUBSYSTEM=hwmon
A: name=rpi_volt\\n
A: in0_lcrit_alarm=1\\n
"""
SCRIPT = """
import json, os, pathlib, sys
from edgekit.core.errors import WorldFailed
from edgekit.runtime.health import read_health
from edgekit.runtime.power import open_sensor

def no_program(command):
    raise WorldFailed("no such program on this board")

root, bed = pathlib.Path("/"), pathlib.Path(os.environ["UMOCKDEV_DIR"])
sensor, said = open_sensor(sys.argv[1], root, no_program), []
for step in json.loads(sys.argv[2]):
    for name, content in step.items():
        (path,) = bed.glob(f"sys/devices/**/{name}")
        if content is None:
            path.unlink()
        else:
            path.write_text(content)
    reading, health = sensor.read(), read_health(root, no_program)
    said.append([reading.power_mw, reading.energy_mj, reading.why, reading.period_s])
said.append([health.temperature_c, health.under_voltage, list(health.flags)])
print(json.dumps(said))
"""


def readings(folder: Path, devices: str, sensor: str, *steps: dict[str, str | None]) -> list[Any]:
    """What the sensor says at each step, after so many files were changed; last what the health is."""
    description = folder / "board.umockdev"
    description.write_text(devices)
    command = ["umockdev-run", f"--device={description}", "--", sys.executable, "-c", SCRIPT]
    done = subprocess.run(
        [*command, sensor, json.dumps(steps)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ":".join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


def test_a_zcu104s_total_is_the_ina226_and_not_a_rail(tmp_path: Path) -> None:
    first, garbage, gone, _ = readings(
        tmp_path, ZCU104, "hwmon", {}, {"hwmon7/power1_input": "nan\n"}, {"hwmon7/power1_input": None}
    )
    assert first == [12500.0, None, None, 0.002]
    assert (garbage[0], "not a number" in garbage[2]) == (None, True)
    assert (gone[0], "is not there" in gone[2]) == (None, True), "never the rail that is left"


def test_rapl_counts_packages_and_unwraps(tmp_path: Path) -> None:
    name = "intel-rapl:0/energy_uj"
    first, wrapped, nothing, health = readings(tmp_path, X86, "rapl", {}, {name: "671150\n"}, {name: None})
    assert first[1] == 262143000.0
    assert wrapped[1] - first[1] == pytest.approx(1000.0), "671.15 mJ after the wrap and 328.85 before it"
    assert (nothing[1], "is not there" in nothing[2]) == (None, True)
    assert health[0] == 61.0


def test_a_pis_voltage_alarm_is_found_and_its_power_unknown(tmp_path: Path) -> None:
    reading, health = readings(tmp_path, PI, "rpi5_pmic", {})
    assert reading == [None, None, "no such program on this board", None]
    assert health[1:] == [True, ["under-voltage"]]
