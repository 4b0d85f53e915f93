"""One TOML file says what the registers are: the generated files are its, and the Verilog does what it says."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import overlay_plans
import pytest
from overlay_foldings import SMALL, with_design

from edgekit.core.toml import read_toml
from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.design import Design
from edgekit.runtime.overlay.simulation import missing, simulate

TOOL = Path(__file__).parents[3] / "tools" / "make_registers.py"


def tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_registers", TOOL)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def table() -> Any:
    return copy.deepcopy(read_toml(tool().SOURCE))


def test_the_committed_constants_are_those_of_the_toml_file() -> None:
    made = tool().files(table())
    assert len(made) == 3
    for path, text in made.items():
        assert path.read_text("utf-8") == text, f"{path.name}: run tools/make_registers.py"


def test_a_changed_offset_changes_all_three_files() -> None:
    changed = table()
    changed["register"][-1]["offset"] = 0x800
    before, after = tool().files(table()), tool().files(changed)
    assert all(before[path] != after[path] for path in before)


@pytest.mark.parametrize("offset", [0x000, 0x003, 0x1004, 0x2000])
def test_an_offset_that_is_taken_misaligned_or_too_large_is_refused(offset: int) -> None:
    changed = table()
    changed["register"][-1]["offset"] = offset
    with pytest.raises(ValueError, match="LOAD_"):
        tool().files(changed)


def test_fields_that_overlap_are_refused() -> None:
    changed = table()
    next(row for row in changed["register"] if row["name"] == "STATUS")["fields"]["BUSY"] = [0, 2]
    with pytest.raises(ValueError, match="STATUS"):
        tool().files(changed)


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
def test_the_verilog_gives_every_register_the_access_it_says() -> None:
    plan = with_design(overlay_plans.small_cnv(), SMALL)
    simulation = simulate(Design.parse(plan.design))

    def written(offset: int, value: int) -> int:
        simulation.write(offset, np.array([value], np.uint32))
        return simulation.read(offset)

    keeps = {
        "CONTROL": (0x1, 0x1),
        "IRQ_ENABLE": (0xFFFFFFFF, 0x7),
        "BATCH": (0xDEADBEEF, 0xDEADBEEF),
        "LOAD_SELECT": (0x12345678, 0x12345678),
        "LOAD_BASE": (0xFFFFFFFF, 0xFFFFF),
    }
    for row in table()["register"]:
        before = simulation.read(row["offset"])
        if row["access"] == "rw":
            value, kept = keeps.pop(row["name"])
            assert written(row["offset"], value) == kept, row["name"]
        else:  # nothing has happened: nothing to clear
            assert written(row["offset"], 0xFFFFFFFF) == before, row["name"]
    assert not keeps
    assert simulation.read(reg.REG_MAGIC) == reg.MAGIC
    assert simulation.read(reg.REG_VERSION) == reg.VERSION
    assert simulation.read(reg.LOAD_WINDOW) == 0
