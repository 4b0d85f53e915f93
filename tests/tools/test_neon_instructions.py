"""The counting of instructions in NEON's innermost loops."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from c_programs import require, run

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "neon_instructions.py"
ASSEMBLY = """
0000000000000000 <ek_xnor_block_2>:
       0:\tmov\tx0, #0x0
       4:\tldp\tq0, q1, [x2]
       8:\teor\tv0.16b, v0.16b, v9.16b
       c:\tcnt\tv0.16b, v0.16b
      10:\tadd\tv2.16b, v2.16b, v0.16b
      14:\tcmp\tx3, x23
      18:\tb.ne\t4 <ek_xnor_block_2+0x4>  // b.any
      1c:\tcbnz\tw1, 0 <ek_xnor_block_2>
      20:\tret
"""


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("neon_instructions", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["neon_instructions"] = module
    spec.loader.exec_module(module)
    return module


def test_only_the_innermost_loop_is_counted(script: ModuleType) -> None:
    (loop,) = script.loops(ASSEMBLY)
    assert (loop.function, len(loop.body)) == ("ek_xnor_block_2", 6)
    assert sum(bool(script.ARITHMETIC.match(text)) for text in loop.body) == 3


@pytest.mark.slow
def test_the_inner_loops_arithmetic_is_within_a_tenth_of_three_instructions_for_128_products() -> None:
    require("aarch64-linux-gnu-gcc", "arm-linux-gnueabihf-gcc")
    said = json.loads(run(sys.executable, SCRIPT))
    met = {line["name"]: line["met"] for line in said["targets"] if line["target"]}
    assert met == {"aarch64: arithmetic instructions": True, "armv7: arithmetic instructions": True}
