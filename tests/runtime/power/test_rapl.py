from __future__ import annotations

import errno
from pathlib import Path

import pytest

from edgekit.runtime import sysfs
from edgekit.runtime.command import runner
from edgekit.runtime.power import PowerSensor, open_sensor

RANGE_UJ = 262_143_328_850


@pytest.fixture
def zone(tmp_path: Path) -> Path:
    zone = tmp_path / "sys/class/powercap/intel-rapl:0"
    zone.mkdir(parents=True)
    (zone / "name").write_text("package-0\n")
    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    (zone / "energy_uj").write_text("1000\n")
    return zone


@pytest.fixture
def sensor(tmp_path: Path, zone: Path) -> PowerSensor:
    return open_sensor("rapl", tmp_path, runner(tmp_path))


def energies_mj(sensor: PowerSensor, zone: Path, counters_uj: list[int]) -> list[float | None]:
    energies = []
    for counter in counters_uj:
        (zone / "energy_uj").write_text(f"{counter}\n")
        energies.append(sensor.read().energy_mj)
    return energies


def test_a_counter_that_wraps_goes_on_growing(sensor: PowerSensor, zone: Path) -> None:
    energies = energies_mj(sensor, zone, [RANGE_UJ - 2000, 3000, 1000, 5000])

    assert energies == [
        pytest.approx((RANGE_UJ - 2000) / 1e3),
        pytest.approx((RANGE_UJ + 3000) / 1e3),
        pytest.approx((2 * RANGE_UJ + 1000) / 1e3),
        pytest.approx((2 * RANGE_UJ + 5000) / 1e3),
    ]


def test_a_wrap_while_the_counter_could_not_be_read_is_still_counted(
    sensor: PowerSensor, zone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = energies_mj(sensor, zone, [RANGE_UJ - 2000])[0]

    def refuse(path: Path) -> str:
        raise PermissionError(errno.EACCES, "denied", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(sysfs, "_content", refuse)
        assert sensor.read().energy_mj is None
    after = energies_mj(sensor, zone, [1000])[0]

    assert before is not None
    assert after == pytest.approx(before + 3.0)


def test_a_wrap_of_unknown_size_is_unknown_and_counted_once_the_size_is_known(
    sensor: PowerSensor, zone: Path
) -> None:
    before = energies_mj(sensor, zone, [RANGE_UJ - 2000])[0]
    (zone / "max_energy_range_uj").unlink()

    assert energies_mj(sensor, zone, [1000]) == [None]

    (zone / "max_energy_range_uj").write_text(f"{RANGE_UJ}\n")
    assert before is not None
    assert energies_mj(sensor, zone, [2000]) == [pytest.approx(before + 4.0)]
