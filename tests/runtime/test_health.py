from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from edgekit.runtime.command import runner
from edgekit.runtime.health import Health, read_health

FIRMWARE = "sys/devices/platform/soc/soc:firmware/get_throttled"


def health(root: Path, files: Mapping[str, str]) -> Health:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755 if content.startswith("#!") else 0o644)
    return read_health(root, runner(root))


def test_a_board_that_says_nothing_is_unknown_and_not_fine(tmp_path: Path) -> None:
    assert health(tmp_path, {}) == Health(None, None, None, (), None)


@pytest.mark.parametrize(
    ("bits", "throttled", "under_voltage", "flags"),
    [
        ("0", False, False, ()),
        ("1", False, True, ("under-voltage",)),
        ("2", True, False, ("frequency-capped",)),
        ("4", True, False, ("throttled",)),
        ("8", True, False, ("soft-temperature-limit",)),
        ("50000", False, False, ("throttled-has-happened", "under-voltage-has-happened")),
        (
            "50005",
            True,
            True,
            ("throttled", "throttled-has-happened", "under-voltage", "under-voltage-has-happened"),
        ),
    ],
)
@pytest.mark.parametrize("way", ["file", "file elsewhere", "vcgencmd"])
def test_the_firmwares_bits_are_read_from_the_file_or_the_program(
    tmp_path: Path, way: str, bits: str, throttled: bool, under_voltage: bool, flags: tuple[str, ...]
) -> None:
    files = {
        "file": {FIRMWARE: f"{bits}\n"},
        "file elsewhere": {FIRMWARE.replace("soc/soc:", "soc@107c000000:"): f"0x{bits}\n"},
        "vcgencmd": {"usr/bin/vcgencmd": f'#!/bin/sh\n[ "$1" = get_throttled ] && echo throttled=0x{bits}\n'},
    }[way]

    found = health(tmp_path, files)

    assert (found.throttled, found.under_voltage, found.flags) == (throttled, under_voltage, flags)


@pytest.mark.parametrize("script", ["exit 255", "echo nonsense", "true"])
def test_a_program_that_fails_or_talks_nonsense_is_unknown(tmp_path: Path, script: str) -> None:
    found = health(tmp_path, {"usr/bin/vcgencmd": f"#!/bin/sh\n{script}\n"})

    assert (found.throttled, found.under_voltage, found.flags) == (None, None, ())


@pytest.mark.parametrize("number", [0, 7])
def test_the_voltage_alarm_is_found_by_the_chips_name(tmp_path: Path, number: int) -> None:
    chip = f"sys/class/hwmon/hwmon{number}"

    low = health(tmp_path, {f"{chip}/name": "rpi_volt\n", f"{chip}/in0_lcrit_alarm": "1\n"})
    good = health(tmp_path, {f"{chip}/in0_lcrit_alarm": "0\n"})

    assert (low.under_voltage, low.flags, low.throttled) == (True, ("under-voltage",), None)
    assert (good.under_voltage, good.flags) == (False, ())


def test_jetsons_over_current_events_are_counted(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon2"
    files = {f"{chip}/name": "soctherm_oc\n", f"{chip}/oc1_event_cnt": "0\n", f"{chip}/oc2_event_cnt": "0\n"}

    calm = health(tmp_path, files)
    busy = health(tmp_path, {f"{chip}/oc2_event_cnt": "3\n"})
    broken = health(tmp_path, {f"{chip}/oc1_event_cnt": "nan\n"})

    assert (calm.over_current_events, calm.flags) == (0, ())
    assert (busy.over_current_events, busy.flags) == (3, ("over-current-has-happened",))
    assert broken.over_current_events is None


def zone(number: int, kind: str, temperature: str) -> dict[str, str]:
    folder = f"sys/class/thermal/thermal_zone{number}"
    return {f"{folder}/type": kind + "\n", f"{folder}/temp": temperature + "\n"}


@pytest.mark.parametrize(
    ("files", "celsius"),
    [
        (zone(0, "cpu-thermal", "48312"), 48.312),
        ({**zone(0, "GPU-therm", "30000"), **zone(5, "CPU-therm", "41500")}, 41.5),
        ({**zone(0, "cpu-thermal", "41000"), **zone(1, "tj-thermal", "45000")}, 45.0),
        ({**zone(0, "x86_pkg_temp", "60000"), **zone(1, "acpitz", "27800")}, 60.0),
        (zone(0, "PMIC-Die", "100000"), None),
        (zone(0, "cpu-thermal", "nan"), None),
        ({"sys/class/thermal/thermal_zone0/temp": "39000\n"}, 39.0),
    ],
    ids=["pi", "jetson", "hottest", "x86", "a sensor that always says 100", "nan", "no type"],
)
def test_the_processors_temperature_is_found_by_the_zones_type(
    tmp_path: Path, files: Mapping[str, str], celsius: float | None
) -> None:
    assert health(tmp_path, files).temperature_c == celsius


def test_zynq_has_its_own_converter(tmp_path: Path) -> None:
    device = "sys/bus/iio/devices/iio:device0"
    files = {
        f"{device}/name": "xadc\n",
        f"{device}/in_temp0_raw": "2500\n",
        f"{device}/in_temp0_offset": "-2219\n",
        f"{device}/in_temp0_scale": "123.040771484\n",
    }

    assert health(tmp_path, files).temperature_c == pytest.approx((2500 - 2219) * 123.040771484 / 1e3)
    (tmp_path / device / "in_temp0_scale").unlink()
    assert health(tmp_path, {}).temperature_c is None


def test_available_memory_is_what_linux_calls_available(tmp_path: Path) -> None:
    meminfo = "MemTotal:  1024000 kB\nMemFree:  100 kB\nMemAvailable:  524288 kB\n"

    assert health(tmp_path, {"proc/meminfo": meminfo}).memory_available_mb == 512.0
    assert health(tmp_path, {"proc/meminfo": "MemTotal: 5 kB\n"}).memory_available_mb is None
