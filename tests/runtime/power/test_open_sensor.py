from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path

import pytest

from edgekit.core.errors import BadInput
from edgekit.runtime import power
from edgekit.runtime.command import CommandRunner, runner
from edgekit.runtime.power import Reading, known_sensors, open_sensor


class Outside:
    name = "coulomb"

    def read(self) -> Reading:
        return Reading(power_mw=42.0)


def open_outside(root: Path, run: CommandRunner, selector: str) -> Outside:
    return Outside()


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Pretend that a package brings the sensor `name` as the object `value`."""

    def pretend(name: str, value: str) -> None:
        entry = EntryPoint(name, value, power.ENTRY_POINTS)
        monkeypatch.setattr(power, "entry_points", lambda group: EntryPoints([entry]).select(group=group))

    return pretend


def test_an_unknown_sensor_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        open_sensor("wattmeter", tmp_path, runner(tmp_path))

    wanted = "unknown power sensor 'wattmeter'; known: hwmon, ina3221, none, rapl, rpi5_pmic"
    assert str(caught.value) == wanted


def test_a_package_can_bring_a_sensor(
    install: Callable[[str, str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "open_outside", open_outside, raising=False)
    install("coulomb", "edgekit.runtime.power:open_outside")

    assert "coulomb" in known_sensors()
    assert open_sensor("coulomb", tmp_path, runner(tmp_path)).read().power_mw == 42.0


def test_a_package_cannot_replace_a_sensor_of_ours(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    install("none", "no.such.module:thing")

    assert open_sensor("none", tmp_path, runner(tmp_path)).read().power_mw is None


def test_a_sensor_that_cannot_be_loaded_is_one_line(
    install: Callable[[str, str], None], tmp_path: Path
) -> None:
    install("coulomb", "no.such.module:thing")

    with pytest.raises(BadInput, match=r"power sensor coulomb: no\.such\.module:thing cannot be loaded: "):
        open_sensor("coulomb", tmp_path, runner(tmp_path))
