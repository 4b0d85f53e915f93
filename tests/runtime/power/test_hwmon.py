from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.runtime.command import runner
from edgekit.runtime.power import Reading, open_sensor


def chip(root: Path, number: int, name: str, power_uw: int, address: str = "", label: str = "") -> None:
    folder = root / f"sys/class/hwmon/hwmon{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "power1_input").write_text(f"{power_uw}\n")
    if label:
        (folder / "power1_label").write_text(label + "\n")
    if address:
        device = root / "sys/bus/i2c/devices" / address
        device.mkdir(parents=True)
        (folder / "device").symlink_to(device)


def read(root: Path, name: str) -> Reading:
    return open_sensor(name, root, runner(root)).read()


def test_of_several_chips_of_one_kind_none_is_guessed_and_all_are_named(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina226", 1_000_000, "1-0040")
    chip(tmp_path, 1, "ina226", 2_000_000, "1-0041")

    reading = read(tmp_path, "hwmon")

    assert reading.power_mw is None
    assert reading.why == "several hwmon channels fit, name one: ina226@1-0040, ina226@1-0041"


@pytest.mark.parametrize(
    ("selector", "power_mw"), [("ina226@1-0040", 1000.0), ("ina226@1-0041", 2000.0), ("VIN", 3000.0)]
)
def test_the_selectors_it_offers_each_mean_one_channel(
    tmp_path: Path, selector: str, power_mw: float
) -> None:
    chip(tmp_path, 0, "ina226", 1_000_000, "1-0040")
    chip(tmp_path, 1, "ina226", 2_000_000, "1-0041")
    chip(tmp_path, 2, "ina219", 3_000_000, "1-0042", "VIN")

    assert read(tmp_path, f"hwmon:{selector}").power_mw == power_mw


def test_a_selector_that_fits_nothing_says_so(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina226", 1_000_000, "1-0040")

    assert read(tmp_path, "hwmon:ina219").why == "no hwmon chip here has ina219"


def test_any_power_input_will_do_where_it_is_the_only_one(tmp_path: Path) -> None:
    chip(tmp_path, 3, "some_psu", 4_500_000)

    assert read(tmp_path, "hwmon").power_mw == 4500.0


def test_a_second_chip_that_appears_later_does_not_change_what_is_read(tmp_path: Path) -> None:
    chip(tmp_path, 1, "ina226", 2_000_000, "1-0041")
    sensor = open_sensor("hwmon", tmp_path, runner(tmp_path))
    sensor.read()
    chip(tmp_path, 0, "ina226", 1_000_000, "1-0040")

    assert sensor.read().power_mw == 2000.0


def test_a_sensor_that_says_zero_is_zero_and_not_unknown(tmp_path: Path) -> None:
    chip(tmp_path, 0, "ina219", 0)

    assert read(tmp_path, "hwmon") == Reading(power_mw=0.0)
