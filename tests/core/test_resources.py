"""The data files that ship with edgekit are found, wherever it is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekit.core import resources
from edgekit.core.errors import BadInput

ROOT = Path(__file__).parent.parent.parent


def test_every_profile_of_the_checkout_is_found_by_name_and_nothing_else() -> None:
    wanted = {path.stem: path.read_bytes() for path in (ROOT / "device_profiles").glob("*.toml")}
    assert "raspberrypi4b" in wanted
    assert {name: file.read_bytes() for name, file in resources.device_profile_files().items()} == wanted


def test_profiles_come_sorted_by_name() -> None:
    names = list(resources.device_profile_files())
    assert names == sorted(names)


@pytest.mark.skipif(
    not (ROOT / "models" / resources.DEMO_MODEL).exists(), reason="the demo model is not trained yet"
)
def test_the_demo_model_is_the_one_of_the_checkout() -> None:
    assert resources.demo_model_file().read_bytes() == (ROOT / "models" / resources.DEMO_MODEL).read_bytes()


def test_a_demo_model_that_was_not_packaged_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resources, "DEMO_MODEL", "no_such.onnx")
    with pytest.raises(BadInput, match=r"models/no_such\.onnx is not part of this installation"):
        resources.demo_model_file()
