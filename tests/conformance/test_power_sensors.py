"""What every power sensor must do: say the truth or say why not; never raise, never 0 or less for what it lost."""

from __future__ import annotations

import errno
import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from edgekit.core.errors import BadInput
from edgekit.runtime import sysfs
from edgekit.runtime.command import runner
from edgekit.runtime.power import SENSORS, PowerSensor, Reading, open_sensor

INA3221 = "sys/bus/i2c/drivers/ina3221/1-0040/hwmon"
JETPACK4 = "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0"
PMIC = """\
 3V7_WL_SW_A current(0)=0.09000000A
   VDD_CORE_A current(7)=2.00000000A
  3V7_WL_SW_V volt(8)=3.70000000V
   VDD_CORE_V volt(15)=0.80000000V
      EXT5V_V volt(24)=5.10000000V
       BATT_V volt(25)=0.00400000V
"""
VCGENCMD = '#!/bin/sh\n[ "$1" = pmic_read_adc ] && cat "${0%/*}/adc.txt"\n'


@dataclass(frozen=True)
class Case:
    """A healthy board: its files, the value its sensor must give, and the same board after another boot."""

    sensor: str
    files: Mapping[str, str]
    power_mw: float | None = None
    energy_mj: float | None = None
    renumbered: Mapping[str, str] = field(default_factory=dict)  # part of a path -> what it is called now


CASES = {
    "none": Case("none", {"proc/version": "Linux"}),
    "rapl": Case(
        "rapl",
        {
            "sys/class/powercap/intel-rapl:0/name": "package-0\n",
            "sys/class/powercap/intel-rapl:0/energy_uj": "5000000\n",
            "sys/class/powercap/intel-rapl:0/max_energy_range_uj": "262143328850\n",
            "sys/class/powercap/intel-rapl:1/name": "package-1\n",
            "sys/class/powercap/intel-rapl:1/energy_uj": "3000000\n",
            "sys/class/powercap/intel-rapl:1/max_energy_range_uj": "262143328850\n",
            "sys/class/powercap/intel-rapl:2/name": "psys\n",
            "sys/class/powercap/intel-rapl:2/energy_uj": "90000000\n",
            "sys/class/powercap/intel-rapl:0:0/name": "core\n",
            "sys/class/powercap/intel-rapl:0:0/energy_uj": "4000000\n",
        },
        energy_mj=8000.0,
        renumbered={"intel-rapl:1": "intel-rapl:7"},
    ),
    "hwmon": Case(
        "hwmon",
        {
            "sys/class/hwmon/hwmon0/name": "cpu_thermal\n",
            "sys/class/hwmon/hwmon0/temp1_input": "45000\n",
            "sys/class/hwmon/hwmon1/name": "irps5401\n",
            "sys/class/hwmon/hwmon1/power1_input": "900000\n",
            "sys/class/hwmon/hwmon2/name": "ina226\n",
            "sys/class/hwmon/hwmon2/power1_input": "7250000\n",
        },
        power_mw=7250.0,
        renumbered={"hwmon2": "hwmon9"},
    ),
    "hwmon by label": Case(
        "hwmon:VIN_12V",
        {
            "sys/class/hwmon/hwmon4/name": "ina226\n",
            "sys/class/hwmon/hwmon4/power1_input": "1000000\n",
            "sys/class/hwmon/hwmon5/name": "ina226\n",
            "sys/class/hwmon/hwmon5/power1_input": "12000000\n",
            "sys/class/hwmon/hwmon5/power1_label": "VIN_12V\n",
        },
        power_mw=12000.0,
        renumbered={"hwmon5": "hwmon1"},
    ),
    "rpi5_pmic": Case(
        "rpi5_pmic",
        {"usr/bin/vcgencmd": VCGENCMD, "usr/bin/adc.txt": PMIC},
        power_mw=0.09 * 3700 + 2.0 * 800,
    ),
    "ina3221 with a total": Case(
        "ina3221",
        {
            f"{INA3221}/hwmon3/in1_label": "VDD_IN\n",
            f"{INA3221}/hwmon3/in1_input": "5000\n",
            f"{INA3221}/hwmon3/curr1_input": "1200\n",
            f"{INA3221}/hwmon3/in2_label": "VDD_CPU_GPU_CV\n",
            f"{INA3221}/hwmon3/in2_input": "5000\n",
            f"{INA3221}/hwmon3/curr2_input": "400\n",
            f"{INA3221}/hwmon3/in3_label": "VDD_SOC\n",
            f"{INA3221}/hwmon3/in3_input": "5000\n",
            f"{INA3221}/hwmon3/curr3_input": "200\n",
        },
        power_mw=6000.0,
        renumbered={"hwmon3": "hwmon0"},
    ),
    "ina3221 with rails on two chips": Case(
        "ina3221",
        {
            f"{INA3221}/hwmon3/in1_label": "VDD_GPU_SOC\n",
            f"{INA3221}/hwmon3/in1_input": "19000\n",
            f"{INA3221}/hwmon3/curr1_input": "100\n",
            f"{INA3221}/hwmon3/in2_label": "VDD_CPU_CV\n",
            f"{INA3221}/hwmon3/in2_input": "19000\n",
            f"{INA3221}/hwmon3/curr2_input": "50\n",
            f"{INA3221}/hwmon3/in3_label": "NC\n",
            f"{INA3221}/hwmon3/in3_input": "19000\n",
            f"{INA3221}/hwmon3/curr3_input": "9000\n",
            f"{INA3221.replace('0040', '0041')}/hwmon4/in1_label": "VIN_SYS_5V0\n",
            f"{INA3221.replace('0040', '0041')}/hwmon4/in1_input": "5000\n",
            f"{INA3221.replace('0040', '0041')}/hwmon4/curr1_input": "600\n",
        },
        power_mw=1900.0 + 950.0 + 3000.0,
        renumbered={"hwmon3": "hwmon8"},
    ),
    "ina3221 of JetPack 4": Case(
        "ina3221",
        {
            f"{JETPACK4}/rail_name_0": "POM_5V_IN\n",
            f"{JETPACK4}/in_power0_input": "3100\n",
            f"{JETPACK4}/rail_name_1": "POM_5V_GPU\n",
            f"{JETPACK4}/in_power1_input": "120\n",
            f"{JETPACK4}/rail_name_2": "POM_5V_CPU\n",
            f"{JETPACK4}/in_power2_input": "900\n",
        },
        power_mw=3100.0,
        renumbered={"iio:device0": "iio:device2"},
    ),
}

Fail = Callable[[Path, int], None]
pytestmark = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def plant(root: Path, files: Mapping[str, str]) -> None:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755 if content.startswith("#!") else 0o644)


@pytest.fixture
def root(tmp_path: Path, case: Case) -> Path:
    plant(tmp_path, case.files)
    return tmp_path


@pytest.fixture
def sensor(root: Path, case: Case) -> PowerSensor:
    return open_sensor(case.sensor, root, runner(root))


@pytest.fixture
def fail(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fail]:
    """Make reading one file fail with an errno: root may read everything, so permissions alone would not do."""
    failing: dict[Path, int] = {}
    content = sysfs._content

    def read(path: Path) -> str:
        if failing.get(path):
            raise OSError(failing[path], "as asked", str(path))
        return content(path)

    monkeypatch.setattr(sysfs, "_content", read)
    yield failing.__setitem__
    failing.clear()


def is_right(reading: Reading, case: Case) -> bool:
    """The very value of the healthy board."""
    return reading.why is None and (reading.power_mw, reading.energy_mj) == (
        case.power_mw if case.power_mw is None else pytest.approx(case.power_mw),
        case.energy_mj if case.energy_mj is None else pytest.approx(case.energy_mj),
    )


def is_unknown(reading: Reading) -> bool:
    """No value, and a reason in one line."""
    return (
        reading.power_mw is None
        and reading.energy_mj is None
        and bool(reading.why)
        and "\n" not in (reading.why or "")
    )


def has_value(case: Case) -> bool:
    return case.power_mw is not None or case.energy_mj is not None


def test_every_sensor_of_the_table_has_a_case(case: Case) -> None:
    assert {each.sensor.partition(":")[0] for each in CASES.values()} == set(SENSORS)


def test_a_healthy_board_gives_exactly_its_value(sensor: PowerSensor, case: Case) -> None:
    reading = sensor.read()

    assert is_right(reading, case) if has_value(case) else is_unknown(reading)


def test_it_keeps_the_name_it_was_opened_by(sensor: PowerSensor, case: Case) -> None:
    assert sensor.name == case.sensor


def test_a_board_without_such_a_sensor_is_unknown_and_opening_it_is_no_error(
    tmp_path: Path, case: Case
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()

    assert is_unknown(open_sensor(case.sensor, empty, runner(empty)).read())


def test_any_file_that_cannot_be_read_makes_it_unknown_and_never_less(
    root: Path, case: Case, fail: Fail
) -> None:
    for name, code in itertools.product(case.files, (errno.EACCES, errno.ENODATA, errno.ENODEV, errno.EIO)):
        sensor = open_sensor(case.sensor, root, runner(root))
        before = sensor.read()
        fail(root / name, code)
        reading, fresh = sensor.read(), open_sensor(case.sensor, root, runner(root)).read()
        fail(root / name, 0)
        assert reading == before or is_unknown(reading), (name, errno.errorcode[code])
        assert fresh == before or is_unknown(fresh), (name, errno.errorcode[code])


def test_no_permission_is_said_in_these_words(root: Path, case: Case, fail: Fail) -> None:
    values = [name for name in case.files if name.endswith(("_input", "energy_uj"))]
    for name in values:
        fail(root / name, errno.EACCES)

    if values:
        assert "no permission to read" in (open_sensor(case.sensor, root, runner(root)).read().why or "")


@pytest.mark.parametrize("content", ["nan\n", "inf\n", "\n", "-\n", "<unsupported>\n"])
def test_a_file_that_says_no_number_makes_it_unknown_and_never_less(
    root: Path, case: Case, content: str
) -> None:
    for name in case.files:
        sensor = open_sensor(case.sensor, root, runner(root))
        before = sensor.read()
        if not name.endswith(("_label", "name", "vcgencmd")) and "rail_name" not in name:
            (root / name).write_text(content)
        reading = sensor.read()
        plant(root, case.files)
        assert reading == before or is_unknown(reading), name


def test_a_file_that_vanishes_between_two_readings_makes_it_unknown_and_never_less(
    root: Path, case: Case
) -> None:
    for name in case.files:
        sensor = open_sensor(case.sensor, root, runner(root))
        before = sensor.read()
        (root / name).unlink()
        reading, fresh = sensor.read(), open_sensor(case.sensor, root, runner(root)).read()
        plant(root, case.files)
        assert reading == before or is_unknown(reading), name
        assert fresh == before or is_unknown(fresh), name
        assert sensor.read() == before, name


def test_it_reads_on_after_the_devices_got_other_numbers(root: Path, sensor: PowerSensor, case: Case) -> None:
    before = sensor.read()
    folders = [path for path in root.rglob("*") if path.is_dir() and path.name in case.renumbered]
    for folder in folders:
        folder.rename(folder.with_name(case.renumbered[folder.name]))

    assert len(folders) == len(case.renumbered)
    assert sensor.read() == before
    assert open_sensor(case.sensor, root, runner(root)).read() == before


def test_the_whole_board_vanishing_is_unknown(root: Path, sensor: PowerSensor) -> None:
    sensor.read()
    for folder in root.iterdir():
        shutil.rmtree(folder)

    assert is_unknown(sensor.read())


def test_a_selector_is_refused_where_there_is_nothing_to_select(root: Path, case: Case) -> None:
    kind = case.sensor.partition(":")[0]
    if kind != "hwmon":
        with pytest.raises(BadInput, match=f"power sensor {kind} takes nothing after a colon"):
            open_sensor(f"{kind}:x", root, runner(root))
