from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest
from overlay_plans import CNV_FOLDING, LFC_FOLDING, cnv, lfc, network, small_cnv

from edgekit.core.errors import BadInput
from edgekit.runtime.overlay.design import UNIT_KINDS, Design, Folding, Unit
from edgekit.runtime.overlay.sources import overlay_sources
from edgekit.runtime.overlay.topology import chain_of
from edgekit.runtime.overlay.units import Stream, accumulator_bits, adapted, design_for

SMALL = {"L0": Folding(4, 3), "L1": Folding(8, 8), "L2": Folding(1, 16), "L3": Folding(2, 1)}


def small(seed: int = 0, **changed: Folding) -> Design:
    return design_for(chain_of(small_cnv(seed=seed)), SMALL | changed, 100.0)


def published() -> list[Design]:
    pairs = ((cnv(), CNV_FOLDING), (lfc(), LFC_FOLDING))
    return [design_for(chain_of(plan), {k: Folding(*v) for k, v in of.items()}, 100.0) for plan, of in pairs]


def test_a_design_comes_back_from_its_json() -> None:
    for design in (small(), *published()):
        assert Design.parse(design.to_json()) == design
        assert Design.parse(design.to_json()).design_id == design.design_id


def test_the_same_network_with_other_weights_has_the_same_design() -> None:
    assert small(seed=1) == small(seed=2)
    assert small(seed=1).to_json() == small(seed=2).to_json()


def test_another_folding_memory_or_source_is_another_design() -> None:
    one = small()
    others = [
        small(L1=Folding(4, 8)),
        small(L1=Folding(8, 4)),
        small(L1=Folding(8, 8, block_ram=False)),
        replace(one, rtl="0" * 64),
        design_for(
            chain_of(network((12, 12, 3), (("conv", 8), ("dense", 10)))),
            {"L0": SMALL["L0"], "L1": Folding(2, 1)},
            100.0,
        ),
    ]
    assert len({design.design_id for design in (one, *others)}) == len(others) + 1


def test_the_assumed_clock_is_no_part_of_the_hardware() -> None:
    assert replace(small(), clock_mhz=50.0).design_id == small().design_id


def test_units_stand_in_stream_order_and_every_stream_fits() -> None:
    """The beats that one unit gives are those that the next one takes."""
    for design in (small(), *published()):
        assert [design.units[0].kind, design.units[-2].kind] == ["stream_in", "stream_out"]
        stream = Stream(64, design.units[0].parameters["BEATS"])
        for unit in design.units[1:-1]:
            taken, given = ends(unit, stream)
            assert taken == stream, unit.name
            stream = given


def ends(unit: Unit, before: Stream) -> tuple[Stream, Stream]:
    """What a unit takes and gives of one image, from its parameters alone."""
    of = unit.parameters
    if unit.kind == "width":
        return Stream(of["IN_WIDTH"], of["IN_BEATS"] * unit.frames), Stream(
            of["OUT_WIDTH"], of["OUT_BEATS"] * unit.frames
        )
    if unit.kind == "swu":
        out_h, out_w = of["IN_H"] - of["K_H"] + 1, of["IN_W"] - of["K_W"] + 1
        windows = out_h * out_w * of["K_H"] * of["K_W"] * of["FOLDS"]
        return Stream(of["WIDTH"], of["IN_H"] * of["IN_W"] * of["FOLDS"]), Stream(of["WIDTH"], windows)
    if unit.kind == "mvu":
        width = of["PE"] * (1 if of["THRESHOLDS"] else 32)
        folds = unit.frames * of["MW"] // of["SIMD"]
        return Stream(of["SIMD"] * of["IN_BITS"], folds), Stream(width, unit.frames * of["MH"] // of["PE"])
    if unit.kind == "pool":
        pixels = (of["IN_H"] // of["K_H"]) * (of["IN_W"] // of["K_W"])
        return Stream(of["WIDTH"], of["IN_H"] * of["IN_W"] * of["FOLDS"]), Stream(
            of["WIDTH"], pixels * of["FOLDS"]
        )
    if unit.kind == "binarize":
        return Stream(8 * of["LANES"], unit.frames), Stream(of["LANES"], unit.frames)
    return Stream(of.get("WIDTH", 64), unit.frames if unit.kind == "fifo" else of["BEATS"]), before


def test_loaded_units_carry_their_index_and_their_operator() -> None:
    plan = lfc()
    design = published()[1]
    loaded = [(index, unit) for index, unit in enumerate(design.units) if unit.operator is not None]
    assert [unit.operator for _, unit in loaded] == list(range(len(plan.operators)))
    assert all(unit.parameters["UNIT"] == index for index, unit in loaded)


@pytest.mark.parametrize("terms", [1, 2, 6, 7, 27, 254, 255, 784, 2304])
def test_an_accumulator_holds_every_sum_and_never(terms: int) -> None:
    layer = chain_of(network((1, 1, terms), (("dense", 2),))).layers[0]
    assert 2 ** (accumulator_bits(layer) - 1) >= 255 * terms + 2
    bits = accumulator_bits(replace(layer, input_bits=1))
    assert 2**bits >= terms + 2 > 2 ** (bits - 1)


@pytest.mark.parametrize("given", [1, 3, 8, 20, 64])
@pytest.mark.parametrize("wanted", [1, 4, 24, 64])
def test_a_frame_that_is_not_whole_is_short_of_less_than_one_beat(given: int, wanted: int) -> None:
    for bits in (7, 64, 784):
        before = Stream(given, math.ceil(bits / given))
        units, after = adapted("x", before, Stream(wanted, math.ceil(bits / wanted)), 10**6)
        assert after == Stream(wanted, math.ceil(bits / wanted))
        for unit in units:
            of = unit.parameters
            missing = of["OUT_BEATS"] * of["OUT_WIDTH"] - of["IN_BEATS"] * of["IN_WIDTH"]
            assert missing < of["OUT_WIDTH"]


REFUSED = [
    (SMALL | {"L1": Folding(3, 8)}, "L1's PE must divide its 16 outputs, got 3"),
    (SMALL | {"L0": Folding(4, 2)}, "L0's SIMD must divide its 3 input channels, got 2"),
    (SMALL | {"L2": Folding(40, 8)}, "L2 has 16 rows and 144 columns, got PE 40, SIMD 8"),
    (SMALL | {"L9": Folding(1, 1)}, "the overlay has no layer L9; it has L0, L1, L2, L3"),
    ({"L0": SMALL["L0"]}, "layer L1 has none"),
]


@pytest.mark.parametrize(("foldings", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_a_folding_that_does_not_divide_is_refused(foldings: dict[str, Folding], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        design_for(chain_of(small_cnv()), foldings, 100.0)


BROKEN = [
    ({"format": 2}, "format 2 is newer than this edgekit reads"),
    ({"units": 3}, "design.units must be a list"),
    ({"design_id": "0" * 32}, "design.design_id must be"),
    ({"clock_mhz": 0}, "design.clock_mhz must be a number"),
    ({"layers": [{}]}, "design.layers"),
]


@pytest.mark.parametrize(("changes", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_a_broken_design_is_refused_by_its_key(changes: dict[str, object], said: str) -> None:
    data = json.loads(small().to_json()) | changes
    with pytest.raises(BadInput, match=said):
        Design.parse(json.dumps(data))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"name": "x; endmodule"}, r"design\.units\[3\]\.name must be an identifier of Verilog"),
        (
            {"parameters": {"A(1), .B": 1}},
            r"design\.units\[3\]\.parameters must be those of swu \(WIDTH, FOLDS",
        ),
        ({"kind": "$finish"}, r"design\.units\[3\]\.kind must be one of stream_in"),
        ({"frames": 0}, r"design\.units\[3\]\.frames must be a whole number"),
    ],
    ids=["name", "parameters", "kind", "frames"],
)
def test_a_unit_that_is_no_module_of_ours_is_refused(changes: dict[str, object], said: str) -> None:
    """A design's names become Verilog that is compiled."""
    data = json.loads(small().to_json())
    assert data["units"][3]["kind"] == "swu"
    data["units"][3] |= changes
    with pytest.raises(BadInput, match=said):
        Design.parse(json.dumps(data))


def test_a_size_of_zero_is_refused() -> None:
    data = json.loads(small().to_json())
    data["units"][4]["parameters"]["SIMD"] = 0
    with pytest.raises(BadInput, match=r"units\[4\]\.parameters\.SIMD must be a whole number from 1"):
        Design.parse(json.dumps(data))


def test_the_modules_have_the_parameters_that_designs_give() -> None:
    for kind, names in UNIT_KINDS.items():
        text = (overlay_sources() / "rtl" / f"{kind}.v").read_text("utf-8")
        found = re.findall(r"^    parameter (?:integer |\[[^]]*\] )?(\w+) =", text, re.MULTILINE)
        assert set(found) - {"DESIGN_ID"} == set(names), kind
