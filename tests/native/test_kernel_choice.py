"""What is chosen from the kernel table on CPUs that this machine is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from c_programs import ROOT, require, run

PLAIN = {"reference": "reference", "portable": "portable"}
AVX2 = ("popcnt", "avx2", "fma")
AVX512 = (*AVX2, "avx512f", "avx512bw", "avx512vl", "avx512vpopcntdq")

# features -> what each family takes for the name of a set; "-": for none
CHOICES = {
    (): ({**PLAIN, "-": "portable"}, {**PLAIN, "-": "portable"}),
    AVX2: ({**PLAIN, "avx2": "avx2", "-": "avx2"}, {**PLAIN, "avx2": "avx2", "-": "avx2"}),
    (*AVX512, "avx512vnni"): (
        {**PLAIN, "avx2": "avx2", "avx512": "avx512", "-": "avx512"},
        {**PLAIN, "avx2": "avx2", "avx512": "avx512", "-": "avx512"},
    ),
    AVX512: (  # no VNNI: bytes take the next slower set
        {**PLAIN, "avx2": "avx2", "avx512": "avx512", "-": "avx512"},
        {**PLAIN, "avx2": "avx2", "avx512": "avx2", "-": "avx2"},
    ),
    (*AVX2, "avx512f", "avx512bw", "avx512vnni"): (  # no VPOPCNTDQ: not our AVX-512
        {**PLAIN, "avx2": "avx2", "-": "avx2"},
        {**PLAIN, "avx2": "avx2", "-": "avx2"},
    ),
    ("neon",): ({**PLAIN, "neon": "neon", "-": "neon"}, {**PLAIN, "neon": "neon", "-": "neon"}),
    ("neon", "dotprod", "fp16"): (
        {**PLAIN, "neon": "neon", "-": "neon"},
        {**PLAIN, "neon": "neon_dotprod", "-": "neon_dotprod"},
    ),
}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    require("cc")
    made = tmp_path_factory.mktemp("choice") / "check_choice"
    source = ROOT / "tests" / "native" / "check_choice.c"
    run("cc", "-std=c11", "-I", ROOT / "edgekit" / "native", source, "-o", made)
    return made


@pytest.mark.parametrize("features", CHOICES, ids=lambda features: "+".join(features) or "none")
def test_a_cpu_gets_the_fastest_kernels_that_it_can_run(program: Path, features: tuple[str, ...]) -> None:
    said = dict(line.split(": ") for line in run(program, *features).splitlines())
    xnor, dot8 = CHOICES[features]
    wanted = {f"xnor {name}": kernel for name, kernel in xnor.items()}
    wanted |= {f"dot8 {name}": kernel for name, kernel in dot8.items()}
    assert said == wanted
