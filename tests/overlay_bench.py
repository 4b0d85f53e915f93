"""Units of the overlay beside each other in one simulation: the harness's streams go to the one that a load selects."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgekit.runtime.overlay import registers as reg
from edgekit.runtime.overlay.simulation import Simulation, build

Array = NDArray[Any]
SELECT = 255  # the load bus's unit that chooses who is tried
LOADED = ("mvu", "pool", "binarize")
_LOAD = ("load_valid", "load_unit", "load_memory", "load_lane", "load_address", "load_data")


@dataclass(frozen=True)
class Tried:
    """A unit with its parameters; its beats are at most 64 bits wide."""

    kind: str
    parameters: Mapping[str, int]
    in_width: int
    out_width: int


class Bench:
    """One unit chosen in a new simulation."""

    def __init__(
        self, units: Sequence[Tried], index: int, seed: int, stalls: tuple[int, int] = (0, 0)
    ) -> None:
        self.unit = units[index]
        self.simulation = Simulation(_library(tuple(map(_verilog_key, units)), bench_top(units)), seed)
        self._index = index
        self.load(SELECT, 0, 0, [index])
        self.simulation.stall(*stalls)

    def load(self, unit: int, memory: int, lane: int, words: Sequence[int] | Array) -> None:
        """Write a lane of a unit's memory from entry 0 on."""
        select = unit | memory << reg.LOAD_SELECT_MEMORY_SHIFT | lane << reg.LOAD_SELECT_LANE_SHIFT
        content = np.asarray(words, np.int64).astype(np.uint32)
        for start in range(0, len(content), reg.LOAD_WINDOW_WORDS):
            self.simulation.write(reg.REG_LOAD_SELECT, np.array([select], np.uint32))
            self.simulation.write(reg.REG_LOAD_BASE, np.array([start], np.uint32))
            self.simulation.write(reg.LOAD_WINDOW, content[start : start + reg.LOAD_WINDOW_WORDS])

    def load_self(self, memory: int, lane: int, words: Sequence[int] | Array) -> None:
        """Write a memory of the unit that is tried."""
        self.load(self._index, memory, lane, words)

    def run(self, beats: Array, count: int, limit: int = 200_000) -> tuple[Array, Array]:
        """Send beats; the `count` that come back, and the cycle of each since the first could go in."""
        before = self.simulation.cycle
        self.simulation.send(np.ascontiguousarray(beats, np.uint64).view(np.uint8))
        data = np.zeros(count * 8, np.uint8)
        got = self.simulation.receive(data, limit)
        assert got == data.size, f"{got // 8} of {count} beats came within {limit} cycles"
        mask = np.uint64((1 << self.unit.out_width) - 1)
        return data.view(np.uint64) & mask, self.simulation.cycles_of.astype(np.int64) - before


def _verilog_key(unit: Tried) -> str:
    return f"{unit.kind} {sorted(unit.parameters.items())}"


@functools.cache
def _library(key: tuple[str, ...], text: str) -> Path:
    return build(text)


def bench_top(units: Sequence[Tried]) -> str:
    """The Verilog of a top module that holds all of them."""
    rows = [_instance(index, unit) for index, unit in enumerate(units)]
    valid = "".join(f"which == {index} ? valid{index} : " for index in range(len(units)))
    ready = "".join(f"which == {index} ? ready{index} : " for index in range(len(units)))
    data = "".join(f"which == {index} ? {{{_zeros(unit)}data{index}}} : " for index, unit in enumerate(units))
    return f"""
module edgekit_overlay (
    input aclk, input aresetn,
    input [12:0] s_axil_awaddr, input s_axil_awvalid, output s_axil_awready,
    input [31:0] s_axil_wdata, input [3:0] s_axil_wstrb, input s_axil_wvalid, output s_axil_wready,
    output [1:0] s_axil_bresp, output s_axil_bvalid, input s_axil_bready,
    input [12:0] s_axil_araddr, input s_axil_arvalid, output s_axil_arready,
    output [31:0] s_axil_rdata, output [1:0] s_axil_rresp, output s_axil_rvalid, input s_axil_rready,
    input [63:0] s_axis_tdata, input s_axis_tvalid, output s_axis_tready, input s_axis_tlast,
    output [63:0] m_axis_tdata, output [7:0] m_axis_tkeep, output m_axis_tvalid, input m_axis_tready,
    output m_axis_tlast, output irq);
    wire rst, enable, load_valid;
    wire [31:0] batch, load_data;
    wire [7:0] load_unit;
    wire [1:0] load_memory;
    wire [11:0] load_lane;
    wire [19:0] load_address;
    reg [7:0] which;
    always @(posedge aclk) if (load_valid && load_unit == {SELECT}) which <= load_data[7:0];
    axil_regs registers (.aclk(aclk), .aresetn(aresetn),
        .s_axil_awaddr(s_axil_awaddr), .s_axil_awvalid(s_axil_awvalid), .s_axil_awready(s_axil_awready),
        .s_axil_wdata(s_axil_wdata), .s_axil_wstrb(s_axil_wstrb), .s_axil_wvalid(s_axil_wvalid),
        .s_axil_wready(s_axil_wready), .s_axil_bresp(s_axil_bresp), .s_axil_bvalid(s_axil_bvalid),
        .s_axil_bready(s_axil_bready), .s_axil_araddr(s_axil_araddr), .s_axil_arvalid(s_axil_arvalid),
        .s_axil_arready(s_axil_arready), .s_axil_rdata(s_axil_rdata), .s_axil_rresp(s_axil_rresp),
        .s_axil_rvalid(s_axil_rvalid), .s_axil_rready(s_axil_rready), .irq(irq),
        .rst(rst), .enable(enable), .batch(batch), .load_valid(load_valid), .load_unit(load_unit),
        .load_memory(load_memory), .load_lane(load_lane), .load_address(load_address), .load_data(load_data),
        .image_begins(1'b0), .image_taken(1'b0), .misaligned(1'b0), .image_given(1'b0));
    assign m_axis_tkeep = 8'hff;
    assign m_axis_tlast = 1'b0;
{chr(10).join(rows)}
    assign s_axis_tready = {ready}1'b0;
    assign m_axis_tvalid = {valid}1'b0;
    assign m_axis_tdata = {data}64'b0;
endmodule
"""


def _zeros(unit: Tried) -> str:
    return f"{64 - unit.out_width}'b0, " if unit.out_width < 64 else ""


def _instance(index: int, unit: Tried) -> str:
    parameters = dict(unit.parameters) | ({"UNIT": index} if unit.kind in LOADED else {})
    given = ", ".join(f".{name}({value})" for name, value in parameters.items())
    bus = "".join(f", .{name}({name})" for name in _LOAD) if unit.kind in LOADED else ""
    return f"""
    wire valid{index}, ready{index};
    wire [{unit.out_width - 1}:0] data{index};
    {unit.kind} #({given}) unit{index} (.clk(aclk), .rst(rst),
        .s_valid(s_axis_tvalid & which == {index}), .s_ready(ready{index}),
        .s_data(s_axis_tdata[{unit.in_width - 1}:0]),
        .m_valid(valid{index}), .m_ready(m_axis_tready & which == {index}), .m_data(data{index}){bus});"""
