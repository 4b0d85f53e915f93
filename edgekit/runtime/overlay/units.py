"""Turn a chain of layers and their foldings into the hardware units of an overlay, in stream order.

Between two layers stand what adapts the stream: a width unit where beats differ, a sliding-window unit, queues where a
layer would wait for another. Chooses no folding.
"""

from __future__ import annotations

import functools
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from edgekit.core.errors import BadInput
from edgekit.runtime.overlay.design import LARGEST_UNIT, Design, FoldedLayer, Folding, Unit
from edgekit.runtime.overlay.sources import overlay_sources
from edgekit.runtime.overlay.topology import DENSE, POOL, Chain, Layer

BUS = 64  # bits of the AXI streams
LANES = 8  # bytes that binarize takes at once: one word of the bus
SUM_BITS = 32
_LOADED = ("mvu", "pool", "binarize")  # units on the load bus


@dataclass(frozen=True)
class Stream:
    """What runs between two units: beats of an image and their width in bits."""

    width: int
    beats: int


def design_for(chain: Chain, foldings: Mapping[str, Folding], clock_mhz: float) -> Design:
    """The overlay of `chain` in which layer NAME is folded by foldings[NAME].

    Raises BadInput for a folding that does not divide its layer where it must, one that is missing or of no layer.
    """
    folded = tuple(_folded(chain.layers, index, foldings) for index in range(len(chain.layers)))
    names = {layer.name for layer in chain.layers if layer.has_weights}
    for name in foldings:
        if name not in names:
            raise BadInput(f"folding: the overlay has no layer {name}; it has {', '.join(sorted(names))}")
    units = tuple(_numbered(_units(chain, folded)))
    last = chain.layers[-1]
    return Design(
        layers=folded,
        units=units,
        input_beats=-(-chain.input_bytes * 8 // BUS),
        output_beats=output_beats(last),
        clock_mhz=clock_mhz,
        rtl=rtl_version(),
    )


@functools.cache
def rtl_version() -> str:
    """sha256 over the names and bytes of the Verilog sources, in the order of their names; read once."""
    digest = hashlib.sha256()
    folder = overlay_sources() / "rtl"
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.name.endswith((".v", ".vh")):
            content = entry.read_bytes()
            digest.update(f"{entry.name} {len(content)}\n".encode() + content)
    return digest.hexdigest()


def columns_may_be_padded(layer: Layer) -> bool:
    """Whether SIMD need not divide the layer's terms: a vector's end is filled up with zeros."""
    return layer.kind == DENSE


def rows_may_be_padded(layers: Sequence[Layer], index: int) -> bool:
    """Whether PE need not divide the layer's outputs: the surplus is dropped behind the last one of a vector."""
    alone = index == len(layers) - 1 or layers[index + 1].kind == DENSE
    return alone and layers[index].positions == 1


def accumulator_bits(layer: Layer) -> int:
    """Bits that a sum takes, and "never" beside it: popcounts of bits, signed sums of bytes."""
    if layer.input_bits == 1:
        return math.ceil(math.log2(layer.terms + 2))
    return 1 + math.ceil(math.log2(255 * layer.terms + 2))


def _folded(layers: Sequence[Layer], index: int, foldings: Mapping[str, Folding]) -> FoldedLayer:
    layer = layers[index]
    if layer.kind == POOL:
        return FoldedLayer(layer, None)
    folding = foldings.get(layer.name)
    if folding is None:
        raise BadInput(f"folding: layer {layer.name} has none: give its PE and SIMD")
    if not (0 < folding.pe < 2 * layer.out_c and 0 < folding.simd < 2 * layer.terms):
        raise BadInput(
            f"folding: {layer.name} has {layer.out_c} rows and {layer.terms} columns, got {folding}"
        )
    if not columns_may_be_padded(layer) and layer.in_c % folding.simd:
        raise BadInput(
            f"folding: {layer.name}'s SIMD must divide its {layer.in_c} input channels, got {folding.simd}"
        )
    if not rows_may_be_padded(layers, index) and layer.out_c % folding.pe:
        raise BadInput(f"folding: {layer.name}'s PE must divide its {layer.out_c} outputs, got {folding.pe}")
    return FoldedLayer(layer, folding)


def _units(chain: Chain, folded: Sequence[FoldedLayer]) -> list[Unit]:
    words = -(-chain.input_bytes * 8 // BUS)
    units = [Unit("stream_in", "stream_in", {"BEATS": words})]
    stream = Stream(BUS, words)
    if chain.binarize is not None:
        units.append(Unit("binarize", "binarize", {"LANES": LANES}, chain.binarize, frames=words))
        stream = Stream(LANES, words)
    interval = max([words, *(item.cycles for item in folded)])
    for item in folded:
        made, stream = layer_units(item, stream, interval)
        units += made
    made, stream = adapted("out", stream, Stream(BUS, output_beats(folded[-1].layer)), interval)
    units += [*made, Unit("stream_out", "stream_out", {"BEATS": stream.beats})]
    loaded = sum(unit.kind in _LOADED for unit in units)
    if len(units) > LARGEST_UNIT:
        raise BadInput(
            f"the overlay holds at most {LARGEST_UNIT} units, this network needs {len(units)} ({loaded} loaded)"
        )
    regs = {"INPUT_BEATS": words, "OUTPUT_BEATS": stream.beats, "UNITS": len(units)}
    return [*units, Unit("axil_regs", "registers", regs)]


def layer_units(item: FoldedLayer, stream: Stream, interval: int) -> tuple[list[Unit], Stream]:
    """The units of one layer behind `stream`, and the stream they give. interval: cycles an image may take."""
    layer = item.layer
    prefix = layer.name.lower()
    if item.folding is None:
        channels = math.gcd(stream.width, layer.in_c)
        folds = layer.in_c // channels
        units, stream = adapted(prefix, stream, Stream(channels, layer.in_h * layer.in_w * folds), interval)
        parameters = {"WIDTH": channels, "FOLDS": folds, "IN_H": layer.in_h, "IN_W": layer.in_w}
        parameters |= {"K_H": layer.kernel[0], "K_W": layer.kernel[1]}
        units.append(Unit("pool", f"{prefix}_pool", parameters, layer.operator))
        return [replace(unit, layer=layer.name) for unit in units], Stream(channels, layer.positions * folds)
    pe, simd = item.folding.pe, item.folding.simd
    wanted = Stream(simd * layer.input_bits, layer.in_h * layer.in_w * layer.in_c // simd)
    if layer.kind == DENSE:
        wanted = Stream(simd * layer.input_bits, item.columns // simd)
    units, stream = adapted(prefix, stream, wanted, interval)
    if layer.needs_windows:
        units.append(_windows(layer, simd))
    elif layer.kind == DENSE and item.rows > pe:
        depth = max(2, item.columns // simd)
        units.append(_fifo(f"{prefix}_wait", stream, depth))
    units.append(_mvu(item))
    width = pe * (SUM_BITS if layer.gives_sums else 1)
    stream = Stream(width, layer.positions * (item.rows // pe))
    units.append(_fifo(f"{prefix}_out", stream, 2))
    return [replace(unit, layer=layer.name) for unit in units], stream


def adapted(prefix: str, given: Stream, wanted: Stream, interval: int) -> tuple[list[Unit], Stream]:
    """What turns one stream into another: nothing, one width unit, or two through the widths' common divisor.

    Two small ones take the place of a gearbox wherever an image's beats between them are fewer than `interval`.
    """
    if given == wanted:
        return [], wanted
    common = math.gcd(given.width, wanted.width)
    between = Stream(common, min(given.width * given.beats, wanted.width * wanted.beats) // common)
    direct = common in {given.width, wanted.width}
    if direct or between.beats > interval:
        return [_width(f"{prefix}_width", given, wanted)], wanted
    return [_width(f"{prefix}_narrow", given, between), _width(f"{prefix}_widen", between, wanted)], wanted


def _width(name: str, given: Stream, wanted: Stream) -> Unit:
    frame_in, frame_out = given.beats, wanted.beats
    if given.width * given.beats == wanted.width * wanted.beats:
        common = math.lcm(given.width, wanted.width)
        frame_in, frame_out = common // given.width, common // wanted.width
    widths = {"IN_WIDTH": given.width, "OUT_WIDTH": wanted.width}
    frame = {"IN_BEATS": frame_in, "OUT_BEATS": frame_out}
    return Unit("width", name, {**widths, **frame}, frames=given.beats // frame_in)


def _windows(layer: Layer, simd: int) -> Unit:
    parameters = {"WIDTH": simd * layer.input_bits, "FOLDS": layer.in_c // simd}
    parameters |= {"IN_H": layer.in_h, "IN_W": layer.in_w, "K_H": layer.kernel[0], "K_W": layer.kernel[1]}
    parameters |= {"STRIDE_H": layer.stride[0], "STRIDE_W": layer.stride[1]}
    parameters |= dict(zip(("PAD_TOP", "PAD_LEFT", "PAD_BOTTOM", "PAD_RIGHT"), layer.pads, strict=True))
    parameters["PAD_ONE"] = int(layer.pad_one)
    return Unit("swu", f"{layer.name.lower()}_swu", parameters)


def _mvu(item: FoldedLayer) -> Unit:
    layer, folding = item.layer, item.folding or Folding(1, 1)
    parameters = {"IN_BITS": layer.input_bits, "SIMD": folding.simd, "PE": folding.pe}
    parameters |= {"MW": item.columns, "MH": item.rows, "TERMS": layer.terms, "ACCW": accumulator_bits(layer)}
    parameters |= {"THRESHOLDS": int(not layer.gives_sums), "BLOCK_RAM": int(folding.block_ram)}
    return Unit("mvu", f"{layer.name.lower()}_mvu", parameters, layer.operator, frames=layer.positions)


def _fifo(name: str, stream: Stream, depth: int) -> Unit:
    return Unit("fifo", name, {"WIDTH": stream.width, "DEPTH": depth}, frames=stream.beats)


def output_beats(last: Layer) -> int:
    """64-bit words that one image's sums take."""
    return -(-last.positions * last.out_c * SUM_BITS // BUS)


def _numbered(units: Sequence[Unit]) -> list[Unit]:
    return [
        replace(unit, parameters={"UNIT": index, **unit.parameters}) if unit.kind in _LOADED else unit
        for index, unit in enumerate(units)
    ]
