from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from edgekit.core.errors import WorldFailed
from edgekit.runtime.power import PowerSensor, open_sensor

HEALTHY = """\
   VDD_CORE_A current(7)=2.00000000A
    DDR_VDD2_A current(5)=0.10000000A
   VDD_CORE_V volt(15)=0.80000000V
    DDR_VDD2_V volt(13)=1.10000000V
      EXT5V_V volt(24)=5.10000000V
"""


class Board:
    def __init__(self, text: str) -> None:
        self.text = text

    def run(self, command: Sequence[str]) -> str:
        assert list(command) == ["vcgencmd", "pmic_read_adc"]
        return self.text


@pytest.fixture
def board() -> Board:
    return Board(HEALTHY)


@pytest.fixture
def sensor(board: Board, tmp_path: Path) -> PowerSensor:
    return open_sensor("rpi5_pmic", tmp_path, board.run)


def test_rails_are_paired_by_name_and_a_voltage_alone_does_not_count(sensor: PowerSensor) -> None:
    assert sensor.read().power_mw == pytest.approx(2.0 * 800 + 0.1 * 1100)


def test_a_rail_that_vanishes_is_named_and_not_left_out(board: Board, sensor: PowerSensor) -> None:
    sensor.read()
    board.text = "\n".join(line for line in HEALTHY.splitlines() if "DDR_VDD2" not in line)

    assert (sensor.read().power_mw, sensor.read().why) == (None, "DDR_VDD2 no longer there")
    board.text = HEALTHY
    assert sensor.read().power_mw is not None


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("=2.00000000A", "=nanA", "vcgencmd pmic_read_adc says 'nan' for VDD_CORE_A"),
        ("=0.80000000V", "=V", "vcgencmd pmic_read_adc says '' for VDD_CORE_V"),
        (
            "   VDD_CORE_V volt(15)=0.80000000V\n",
            "",
            "VDD_CORE has a current and no voltage",
        ),
        (HEALTHY, 'error=1 error_msg="Command not registered"\n', "vcgencmd pmic_read_adc names no current"),
        (HEALTHY, "", "vcgencmd pmic_read_adc names no current"),
    ],
)
def test_what_it_cannot_add_up_is_unknown_with_the_reason(
    board: Board, sensor: PowerSensor, old: str, new: str, why: str
) -> None:
    board.text = HEALTHY.replace(old, new)

    reading = sensor.read()

    assert reading.power_mw is None
    assert (reading.why or "").startswith(why)


def test_a_program_that_fails_is_the_reason(tmp_path: Path) -> None:
    def run(command: Sequence[str]) -> str:
        raise WorldFailed("vcgencmd: ended with code 255: Can't open device file: /dev/vcio")

    reading = open_sensor("rpi5_pmic", tmp_path, run).read()

    assert reading.why == "vcgencmd: ended with code 255: Can't open device file: /dev/vcio"
