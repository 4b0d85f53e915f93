"""Each hand-written unit in Verilator against numpy: random values, with and without pauses, cycles counted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from overlay_bench import Bench, Tried

from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.simulation import missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
Array = NDArray[Any]


def swu(width: int, folds: int, size: tuple[int, int], kernel: tuple[int, int], **more: int) -> Tried:
    parameters = {"WIDTH": width, "FOLDS": folds, "IN_H": size[0], "IN_W": size[1]}
    parameters |= {"K_H": kernel[0], "K_W": kernel[1]}
    return Tried("swu", parameters | {name.upper(): value for name, value in more.items()}, width, width)


def pads(top: int, left: int, bottom: int, right: int) -> dict[str, int]:
    return {"pad_top": top, "pad_left": left, "pad_bottom": bottom, "pad_right": right}


def mvu(
    bits: int, simd: int, pe: int, columns: int, rows: int, terms: int, *, sums: bool = False, block: int = 1
) -> Tried:
    least = terms + 2 if bits == 1 else 255 * terms + 2
    accumulator = (least - 1).bit_length() + (bits == 8)
    parameters = {"IN_BITS": bits, "SIMD": simd, "PE": pe, "MW": columns, "MH": rows, "TERMS": terms}
    parameters |= {"ACCW": accumulator, "THRESHOLDS": int(not sums), "BLOCK_RAM": block}
    return Tried("mvu", parameters, bits * simd, 32 * pe if sums else pe)


def pool(width: int, folds: int, size: tuple[int, int], kernel: tuple[int, int]) -> Tried:
    parameters = {"WIDTH": width, "FOLDS": folds, "IN_H": size[0], "IN_W": size[1]}
    return Tried("pool", parameters | {"K_H": kernel[0], "K_W": kernel[1]}, width, width)


def width(given: int, wanted: int, beats: int, made: int) -> Tried:
    parameters = {"IN_WIDTH": given, "OUT_WIDTH": wanted, "IN_BEATS": beats, "OUT_BEATS": made}
    return Tried("width", parameters, given, wanted)


UNITS = (
    swu(8, 1, (6, 6), (3, 3)),
    swu(5, 3, (7, 5), (3, 2)),
    swu(16, 2, (8, 9), (5, 5), stride_h=2, stride_w=2),
    swu(3, 1, (6, 6), (1, 1), stride_h=2, stride_w=2),
    swu(4, 2, (5, 5), (3, 3), **pads(1, 1, 1, 1)),
    swu(4, 1, (6, 7), (3, 3), stride_h=2, stride_w=2, pad_one=1, **pads(1, 1, 1, 1)),
    swu(2, 2, (4, 3), (3, 3), stride_h=1, stride_w=2, pad_one=1, **pads(2, 0, 1, 2)),
    swu(7, 1, (3, 3), (3, 3)),
    swu(1, 4, (1, 1), (1, 1)),
    mvu(1, 8, 4, 24, 12, 24),
    mvu(1, 64, 16, 128, 32, 100),
    mvu(1, 1, 1, 5, 3, 5),
    mvu(1, 8, 4, 8, 4, 5),
    mvu(1, 7, 3, 21, 6, 21, block=0),
    mvu(1, 32, 40, 64, 40, 64),
    mvu(1, 3, 2, 9, 10, 9, sums=True),
    mvu(8, 3, 16, 27, 32, 27),
    mvu(8, 1, 2, 9, 6, 9, block=0),
    mvu(8, 5, 2, 10, 4, 10, sums=True),
    mvu(1, 16, 1, 64, 1, 64, sums=True),
    pool(8, 2, (4, 6), (2, 2)),
    pool(33, 1, (5, 7), (2, 2)),
    pool(4, 3, (7, 8), (3, 3)),
    pool(5, 2, (6, 4), (1, 2)),
    pool(2, 1, (2, 2), (2, 2)),
    width(8, 8, 4, 4),
    width(64, 8, 2, 16),
    width(8, 64, 16, 2),
    width(8, 64, 98, 13),
    width(64, 8, 13, 98),
    width(64, 24, 3, 8),
    width(24, 10, 5, 12),
    width(12, 4, 1, 2),
    width(16, 16, 3, 2),
    width(4, 16, 10, 2),
    Tried("fifo", {"WIDTH": 9, "DEPTH": 2}, 9, 9),
    Tried("fifo", {"WIDTH": 64, "DEPTH": 12}, 64, 64),
    Tried("binarize", {"LANES": 8}, 64, 8),
)
STALLS = {"without pauses": (0, 0), "with pauses": (40, 40), "slow in": (80, 0), "slow out": (0, 80)}


def of_kind(kind: str) -> list[Any]:
    return [
        pytest.param(index, id=f"{kind} {' '.join(map(str, unit.parameters.values()))}")
        for index, unit in enumerate(UNITS)
        if unit.kind == kind
    ]


@pytest.fixture(params=sorted(STALLS))
def stalls(request: pytest.FixtureRequest) -> tuple[int, int]:
    return STALLS[request.param]


@pytest.mark.parametrize("index", of_kind("swu"))
def test_swu_gives_the_windows_of_every_image_in_order(index: int, stalls: tuple[int, int]) -> None:
    of = UNITS[index].parameters
    rng = np.random.default_rng(index)
    shape = (3, of["IN_H"], of["IN_W"], of["FOLDS"])
    images = rng.integers(0, 1 << of["WIDTH"], shape, np.uint64)
    wanted = np.concatenate([windows(image, of) for image in images])
    got, cycles = Bench(UNITS, index, seed=index, stalls=stalls).run(images.reshape(-1), len(wanted))
    np.testing.assert_array_equal(got, wanted)
    if stalls == (
        0,
        0,
    ):  # a beat a cycle from the second image on, as long as one comes in for each that goes out
        beats = len(wanted) // 3
        interval = max(beats, images[0].size)
        assert cycles[-1] - cycles[beats - 1] <= 2 * interval * 1.02 + 3


def windows(image: Array, of: Any) -> Array:
    edges = [of.get(f"PAD_{side}", 0) for side in ("TOP", "BOTTOM", "LEFT", "RIGHT")]
    outside = (1 << of["WIDTH"]) - 1 if of.get("PAD_ONE") else 0
    padded = np.pad(image, [edges[:2], edges[2:], (0, 0)], constant_values=outside)
    seen = np.lib.stride_tricks.sliding_window_view(padded, (of["K_H"], of["K_W"]), axis=(0, 1))
    seen = seen[:: of.get("STRIDE_H", 1), :: of.get("STRIDE_W", 1)]
    return seen.transpose(0, 1, 3, 4, 2).reshape(-1)


@pytest.mark.parametrize("index", of_kind("mvu"))
def test_mvu_multiplies_and_compares_exactly(index: int, stalls: tuple[int, int]) -> None:
    of = UNITS[index].parameters
    rng = np.random.default_rng(index)
    rows, columns, terms, simd, pe = (of[name] for name in ("MH", "MW", "TERMS", "SIMD", "PE"))
    bits, vectors = of["IN_BITS"], 5
    weights = rng.integers(0, 2, (rows, columns))
    weights[:, terms:] = 1
    values = rng.integers(0, 1 << bits, (vectors, columns))
    values[:, terms:] = 0
    if vectors > 2 and bits == 8:
        values[0], values[1] = 255, 0
    bench = Bench(UNITS, index, seed=index, stalls=stalls)
    load_weights(bench, weights)
    signs = 2 * weights[:, :terms] - 1
    sums = (values[:, :terms] if bits == 8 else 2 * values[:, :terms] - 1) @ signs.T
    beats = pack(values.reshape(vectors, columns // simd, simd), bits)
    if not of["THRESHOLDS"]:
        got, cycles = bench.run(beats.reshape(-1), vectors * rows // pe)
        values_got = (
            np.stack([got >> np.uint64(32 * p) for p in range(pe)], -1).astype(np.uint32).view(np.int32)
        )
        np.testing.assert_array_equal(values_got.reshape(vectors, rows), sums)
    else:
        thresholds = sums[rng.integers(0, vectors, rows), np.arange(rows)] + rng.integers(-1, 2, rows)
        load_thresholds(bench, thresholds)
        got, cycles = bench.run(beats.reshape(-1), vectors * rows // pe)
        wanted = pack((sums >= clamped(thresholds, of)).reshape(vectors, rows // pe, pe), 1)
        np.testing.assert_array_equal(got, wanted.reshape(-1))
    if stalls == (0, 0):
        folds = columns // simd * (rows // pe)
        per_vector = rows // pe
        assert (np.diff(cycles[per_vector - 1 :: per_vector]) == folds).all()


def clamped(thresholds: Array, of: Any) -> Array:
    limit = of["TERMS"] if of["IN_BITS"] == 1 else 255 * of["TERMS"]
    return np.clip(thresholds, -limit, limit + 1)


def load_weights(bench: Bench, weights: Array) -> None:
    of = bench.unit.parameters
    simd, pe = of["SIMD"], of["PE"]
    folds = (
        weights.reshape(of["MH"] // pe, pe, of["MW"] // simd, simd)
        .transpose(0, 2, 1, 3)
        .reshape(-1, pe * simd)
    )
    for lane in range(-(-pe * simd // 32)):
        bench.load_self(reg.MEMORY_WEIGHTS, lane, pack(folds[:, 32 * lane : 32 * lane + 32], 1))


def load_thresholds(bench: Bench, thresholds: Array) -> None:
    of = bench.unit.parameters
    values = clamped(thresholds, of)
    if of["IN_BITS"] == 1:
        values = (values + of["TERMS"] + 1) // 2
    for lane in range(of["PE"]):
        bench.load_self(reg.MEMORY_THRESHOLDS, lane, values[lane :: of["PE"]])


@pytest.mark.parametrize("bits", [1, 8])
def test_mvu_decides_every_sum_at_every_threshold(bits: int) -> None:
    index = next(i for i, u in enumerate(UNITS) if u.kind == "mvu" and u.parameters["TERMS"] == 5)
    if bits == 8:
        index = next(
            i for i, u in enumerate(UNITS) if u.parameters.get("IN_BITS") == 8 and u.parameters["PE"] == 2
        )
    of = UNITS[index].parameters
    rows, terms = of["MH"], of["TERMS"]
    limit = terms if bits == 1 else 255 * terms
    rng = np.random.default_rng(0)
    weights = np.ones((rows, of["MW"]), np.int64)
    bench = Bench(UNITS, index, seed=0)
    load_weights(bench, weights)
    values = ascending(terms, of["MW"], bits)
    sums = (values[:, :terms] if bits == 8 else 2 * values[:, :terms] - 1).sum(1)
    candidates = np.concatenate(
        [
            np.arange(-limit - 2, limit + 3)
            if bits == 1
            else np.concatenate([rng.choice(sums, 20), [-limit, 0, 1, limit, limit + 1, -(2**31), 2**31 - 1]])
        ]
    )
    beats = pack(values.reshape(len(values), -1, of["SIMD"]), bits).reshape(-1)
    for start in range(0, len(candidates), rows):
        thresholds = np.resize(candidates[start : start + rows], rows)
        load_thresholds(bench, thresholds)
        got, _ = bench.run(beats, len(values) * rows // of["PE"])
        wanted = pack((sums[:, None] >= thresholds).reshape(-1, of["PE"]), 1)
        np.testing.assert_array_equal(got, wanted)


def ascending(terms: int, columns: int, bits: int) -> Array:
    """Vectors whose sums take every value (of bytes: steps of 15 and their neighbours)."""
    if bits == 1:
        return np.array([[int(k < n) for k in range(columns)] for n in range(terms + 1)])
    totals = [t + d for t in range(0, 255 * terms, 45) for d in (0, 1)] + [255 * terms]
    made = np.zeros((len(totals), columns), np.int64)
    for row, total in zip(made, totals, strict=True):
        for k in range(terms):
            row[k] = min(255, total - row.sum())
    return made


def pack(values: Array, bits: int) -> Array:
    """The last axis in one word, the first value lowest."""
    shifts = np.arange(values.shape[-1], dtype=np.uint64) * np.uint64(bits)
    packed: Array = (values.astype(np.uint64) << shifts).sum(-1, dtype=np.uint64)
    return packed


@pytest.mark.parametrize("index", of_kind("pool"))
def test_pool_takes_the_largest_or_where_masked_the_smallest(index: int, stalls: tuple[int, int]) -> None:
    of = UNITS[index].parameters
    rng = np.random.default_rng(index)
    channels, k_h, k_w = of["WIDTH"] * of["FOLDS"], of["K_H"], of["K_W"]
    out_h, out_w = of["IN_H"] // k_h, of["IN_W"] // k_w
    images = rng.random((4, of["IN_H"], of["IN_W"], channels)) < rng.choice([0.2, 0.8], (4, 1, 1, channels))
    smallest = rng.random(channels) < 0.5
    bench = Bench(UNITS, index, seed=index, stalls=stalls)
    mask = smallest.reshape(of["FOLDS"], of["WIDTH"])
    for lane in range(-(-of["WIDTH"] // 32)):
        bench.load_self(reg.MEMORY_MASK, lane, pack(mask[:, 32 * lane : 32 * lane + 32], 1))
    cut = images[:, : out_h * k_h, : out_w * k_w].reshape(4, out_h, k_h, out_w, k_w, channels)
    wanted = np.where(smallest, cut.all((2, 4)), cut.any((2, 4)))
    got, cycles = bench.run(pack(images.reshape(-1, of["WIDTH"]), 1), 4 * out_h * out_w * of["FOLDS"])
    np.testing.assert_array_equal(got, pack(wanted.reshape(-1, of["WIDTH"]), 1))
    if stalls == (0, 0):
        assert cycles[-1] < 4 * of["IN_H"] * of["IN_W"] * of["FOLDS"] + 5


@pytest.mark.parametrize("index", of_kind("width"))
def test_width_keeps_the_bits_of_each_frame(index: int, stalls: tuple[int, int]) -> None:
    of = UNITS[index].parameters
    rng = np.random.default_rng(index)
    frames = 5
    bits = rng.integers(0, 2, (frames, of["IN_BEATS"] * of["IN_WIDTH"]))
    size = of["OUT_BEATS"] * of["OUT_WIDTH"]
    wanted = np.pad(bits, [(0, 0), (0, max(0, size - bits.shape[1]))])[:, :size]
    bench = Bench(UNITS, index, seed=index, stalls=stalls)
    got, cycles = bench.run(pack(bits.reshape(-1, of["IN_WIDTH"]), 1), frames * of["OUT_BEATS"])
    np.testing.assert_array_equal(got, pack(wanted.reshape(-1, of["OUT_WIDTH"]), 1))
    if stalls == (0, 0):
        common = np.gcd(of["IN_WIDTH"], of["OUT_WIDTH"]) in (of["IN_WIDTH"], of["OUT_WIDTH"])
        interval = max(of["IN_BEATS"], of["OUT_BEATS"])
        if common:
            assert cycles[-1] <= frames * interval + 1
        else:  # by way of the common multiple: the last word of a frame costs its filling once
            assert cycles[-1] <= frames * interval * 1.5 + 8


@pytest.mark.parametrize("index", of_kind("fifo"))
def test_fifo_gives_what_it_took_in_order_and_waits_when_full(index: int, stalls: tuple[int, int]) -> None:
    of = UNITS[index].parameters
    rng = np.random.default_rng(index)
    beats = rng.integers(0, 1 << min(of["WIDTH"], 63), 200, np.uint64)
    bench = Bench(UNITS, index, seed=index, stalls=stalls)
    bench.simulation.send(beats.view(np.uint8))
    bench.simulation.tick(600)
    held = bench.simulation.beats_taken
    assert of["DEPTH"] <= held < 2 * of["DEPTH"]
    data = np.zeros(200 * 8, np.uint8)
    assert bench.simulation.receive(data, 10_000) == data.size
    np.testing.assert_array_equal(data.view(np.uint64), beats)
    if stalls == (0, 0):
        assert (np.diff(bench.simulation.cycles_of.astype(np.int64)) == 1).all()


@pytest.mark.parametrize("threshold", [0, 1, 128, 255, 256])
def test_binarize_compares_every_byte(threshold: int) -> None:
    index = next(index for index, unit in enumerate(UNITS) if unit.kind == "binarize")
    bench = Bench(UNITS, index, seed=threshold)
    bench.load_self(reg.MEMORY_THRESHOLDS, 0, [threshold])
    values = np.arange(256, dtype=np.uint8)
    got, _ = bench.run(values.view(np.uint64), 32)
    np.testing.assert_array_equal(got, pack((values >= threshold).reshape(-1, 8), 1))
