from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.runtime.command import runner
from edgekit.runtime.power import Reading, open_sensor


def rail(root: Path, number: int, label: str | None, mv: int, ma: int, chip: str = "1-0040") -> None:
    folder = root / f"sys/bus/i2c/drivers/ina3221/{chip}/hwmon/hwmon5"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"in{number}_input").write_text(f"{mv}\n")
    (folder / f"curr{number}_input").write_text(f"{ma}\n")
    if label is not None:
        (folder / f"in{number}_label").write_text(label + "\n")


def read(root: Path) -> Reading:
    return open_sensor("ina3221", root, runner(root)).read()


def test_the_total_is_not_counted_twice_with_its_parts(tmp_path: Path) -> None:
    rail(tmp_path, 1, "VDD_IN", 5000, 1000)
    rail(tmp_path, 2, "VDD_SOC", 5000, 300)

    assert read(tmp_path).power_mw == pytest.approx(5000.0)


def test_a_rail_that_is_not_connected_is_left_out(tmp_path: Path) -> None:
    rail(tmp_path, 1, "VDD_GPU_SOC", 19000, 100)
    rail(tmp_path, 2, "NC", 19000, 1000)

    assert read(tmp_path).power_mw == pytest.approx(1900.0)


def test_without_a_label_it_is_unknown_whether_a_rail_is_the_total(tmp_path: Path) -> None:
    rail(tmp_path, 1, None, 5000, 1000)
    rail(tmp_path, 2, "VDD_SOC", 5000, 300)

    reading = read(tmp_path)

    assert reading.power_mw is None
    assert (reading.why or "").endswith("in1_label is not there")


def test_a_missing_label_does_not_matter_beside_the_total(tmp_path: Path) -> None:
    rail(tmp_path, 1, "VDD_IN", 5000, 1000)
    rail(tmp_path, 2, None, 5000, 300)

    assert read(tmp_path).power_mw == pytest.approx(5000.0)


def test_one_label_on_two_channels_is_not_added_up(tmp_path: Path) -> None:
    rail(tmp_path, 1, "VDD_IN", 5000, 1000)
    rail(tmp_path, 1, "VDD_IN", 5000, 1000, chip="1-0041")

    assert read(tmp_path).why == "two INA3221 channels are labelled VDD_IN"


def test_when_the_total_vanishes_its_parts_do_not_stand_in_for_it(tmp_path: Path) -> None:
    rail(tmp_path, 1, "VDD_IN", 5000, 1000)
    rail(tmp_path, 2, "VDD_SOC", 5000, 300)
    sensor = open_sensor("ina3221", tmp_path, runner(tmp_path))
    sensor.read()
    for path in tmp_path.rglob("*1_*"):
        path.unlink()

    assert sensor.read().why == "VDD_IN no longer there"
