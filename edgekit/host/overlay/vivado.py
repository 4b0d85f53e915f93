"""The texts of a Vivado project around the overlay, with $names to fill in. Tcl's own dollar signs are doubled."""

from __future__ import annotations

BUILD_TCL = """\
# Build the overlay of edgekit design $design_id for $board:
#     vivado -mode batch -source build.tcl
# Gives edgekit_overlay.bit and edgekit_overlay.hwh beside this file. Needs Vivado with the board files of $board.
set here [file dirname [file normalize [info script]]]
set project edgekit_overlay
set clock_mhz $clock_mhz

create_project $$project $$here/vivado -part $part -force
# the board's preset holds the memory's timing: without it the processor would not boot
if {[llength [get_board_parts -quiet $board_part]] == 0} {
    error "the board files of $board_part are not installed"
}
set_property board_part $board_part [current_project]
add_files -norecurse [concat [glob $$here/rtl/*.v] [glob -nocomplain $$here/rtl/*.vh] [list $$here/$top.v]]
foreach header [get_files -quiet *.vh] {
    set_property file_type {Verilog Header} $$header
}
add_files -fileset constrs_1 -norecurse $$here/bitstream.xdc
update_compile_order -fileset sources_1

create_bd_design overlay
set ps [create_bd_cell -type ip -vlnv xilinx.com:ip:processing_system7:5.5 ps7]
apply_bd_automation -rule xilinx.com:bd_rule:processing_system7 \\
    -config {make_external "FIXED_IO, DDR" apply_board_preset "1" Master "Disable" Slave "Disable"} $$ps
set_property -dict [list \\
    CONFIG.PCW_FPGA0_PERIPHERAL_FREQMHZ $$clock_mhz \\
    CONFIG.PCW_USE_M_AXI_GP0 1 \\
    CONFIG.PCW_USE_S_AXI_HP0 1 \\
    CONFIG.PCW_S_AXI_HP0_DATA_WIDTH 64 \\
    CONFIG.PCW_USE_FABRIC_INTERRUPT 1 \\
    CONFIG.PCW_IRQ_F2P_INTR 1 \\
] $$ps
set reset [create_bd_cell -type ip -vlnv xilinx.com:ip:proc_sys_reset:5.0 reset]
set dma [create_bd_cell -type ip -vlnv xilinx.com:ip:axi_dma:7.1 axi_dma_0]
set_property -dict [list \\
    CONFIG.c_include_sg 0 \\
    CONFIG.c_sg_include_stscntrl_strm 0 \\
    CONFIG.c_sg_length_width 26 \\
    CONFIG.c_m_axi_mm2s_data_width 64 \\
    CONFIG.c_m_axis_mm2s_tdata_width 64 \\
    CONFIG.c_m_axi_s2mm_data_width 64 \\
    CONFIG.c_s_axis_s2mm_tdata_width 64 \\
    CONFIG.c_mm2s_burst_size 16 \\
    CONFIG.c_s2mm_burst_size 16 \\
] $$dma
set overlay [create_bd_cell -type module -reference $top edgekit_overlay_0]
set control [create_bd_cell -type ip -vlnv xilinx.com:ip:axi_interconnect:2.1 control]
set_property -dict [list CONFIG.NUM_SI 1 CONFIG.NUM_MI 2] $$control
set memory [create_bd_cell -type ip -vlnv xilinx.com:ip:axi_interconnect:2.1 memory]
set_property -dict [list CONFIG.NUM_SI 2 CONFIG.NUM_MI 1] $$memory
set interrupts [create_bd_cell -type ip -vlnv xilinx.com:ip:xlconcat:2.1 interrupts]
set_property CONFIG.NUM_PORTS 3 $$interrupts

connect_bd_net [get_bd_pins ps7/FCLK_CLK0] \\
    [get_bd_pins ps7/M_AXI_GP0_ACLK] [get_bd_pins ps7/S_AXI_HP0_ACLK] [get_bd_pins reset/slowest_sync_clk] \\
    [get_bd_pins control/ACLK] [get_bd_pins control/S00_ACLK] [get_bd_pins control/M00_ACLK] \\
    [get_bd_pins control/M01_ACLK] [get_bd_pins memory/ACLK] [get_bd_pins memory/S00_ACLK] \\
    [get_bd_pins memory/S01_ACLK] [get_bd_pins memory/M00_ACLK] [get_bd_pins axi_dma_0/s_axi_lite_aclk] \\
    [get_bd_pins axi_dma_0/m_axi_mm2s_aclk] [get_bd_pins axi_dma_0/m_axi_s2mm_aclk] \\
    [get_bd_pins edgekit_overlay_0/aclk]
connect_bd_net [get_bd_pins ps7/FCLK_RESET0_N] [get_bd_pins reset/ext_reset_in]
connect_bd_net [get_bd_pins reset/interconnect_aresetn] [get_bd_pins control/ARESETN] [get_bd_pins memory/ARESETN]
connect_bd_net [get_bd_pins reset/peripheral_aresetn] \\
    [get_bd_pins control/S00_ARESETN] [get_bd_pins control/M00_ARESETN] [get_bd_pins control/M01_ARESETN] \\
    [get_bd_pins memory/S00_ARESETN] [get_bd_pins memory/S01_ARESETN] [get_bd_pins memory/M00_ARESETN] \\
    [get_bd_pins axi_dma_0/axi_resetn] [get_bd_pins edgekit_overlay_0/aresetn]

foreach {from to} {
    ps7/M_AXI_GP0 control/S00_AXI
    control/M00_AXI edgekit_overlay_0/s_axil
    control/M01_AXI axi_dma_0/S_AXI_LITE
    axi_dma_0/M_AXI_MM2S memory/S00_AXI
    axi_dma_0/M_AXI_S2MM memory/S01_AXI
    memory/M00_AXI ps7/S_AXI_HP0
    axi_dma_0/M_AXIS_MM2S edgekit_overlay_0/s_axis
    edgekit_overlay_0/m_axis axi_dma_0/S_AXIS_S2MM
} {
    connect_bd_intf_net [get_bd_intf_pins $$from] [get_bd_intf_pins $$to]
}
connect_bd_net [get_bd_pins edgekit_overlay_0/irq] [get_bd_pins interrupts/In0]
connect_bd_net [get_bd_pins axi_dma_0/mm2s_introut] [get_bd_pins interrupts/In1]
connect_bd_net [get_bd_pins axi_dma_0/s2mm_introut] [get_bd_pins interrupts/In2]
connect_bd_net [get_bd_pins interrupts/dout] [get_bd_pins ps7/IRQ_F2P]
assign_bd_address
validate_bd_design
save_bd_design

make_wrapper -files [get_files overlay.bd] -top -import
set_property top overlay_wrapper [current_fileset]
update_compile_order -fileset sources_1
launch_runs impl_1 -to_step write_bitstream -jobs 2
wait_on_run impl_1
if {[get_property PROGRESS [get_runs impl_1]] ne "100%"} {
    error "the implementation failed: see $$here/vivado"
}
open_run impl_1
report_utilization -file $$here/utilization.txt
report_timing_summary -file $$here/timing.txt
if {[get_property STATS.WNS [get_runs impl_1]] < 0} {
    error "timing is not met at $$clock_mhz MHz: see timing.txt; convert with a profile of a lower fpga.clock_mhz"
}
file copy -force [lindex [glob $$here/vivado/$$project.runs/impl_1/overlay_wrapper.bit] 0] $$here/$$project.bit
set handoff [glob -nocomplain $$here/vivado/$$project.{gen,srcs}/sources_1/bd/overlay/hw_handoff/overlay.hwh]
file copy -force [lindex $$handoff 0] $$here/$$project.hwh
puts "edgekit design $design_id: $$here/$$project.bit and .hwh"
"""

# Stands in the header of the .bit file: convert compares it before it packs one.
BITSTREAM_XDC = """\
set_property BITSTREAM.CONFIG.USERID 0x$user_id [current_design]
"""

README = """\
# Overlay of edgekit design $design_id

For $board at an assumed clock of $clock_mhz MHz. The cycle model says $interval cycles an image in a stream ($rate
images/s at that clock) and $latency for a single one; no such clock was measured, nothing here was placed or routed.

    vivado -mode batch -source build.tcl

writes `edgekit_overlay.bit` and `edgekit_overlay.hwh` beside `build.tcl`, with the reports of Vivado's own use of
resources (`utilization.txt`) and timing (`timing.txt`); it ends with an error where the clock is not met. Board files
of $board must be installed in Vivado.

- `edgekit_overlay.v`: the generated top, wiring only. `rtl/`: the units, written by hand. `design.json`: the folding.
- Weights and thresholds are not in the bitstream: the driver loads them from the bundle. A network trained again with
  the same shapes and folding has the same design_id and needs no new bitstream.
- `edgekit convert MODEL --profile $board --backend overlay --bit edgekit_overlay.bit --hwh edgekit_overlay.hwh ...`
  packs them into a bundle; repeat the --throughput of this design, if it had one, or give --recipe. It refuses a .bit
  whose UserID is not design_id's first 32 bits (`bitstream.xdc` sets it). Without --bit the bundle holds no bitstream,
  and the board's agent needs the file's path in EDGEKIT_OVERLAY_BIT.
- A board loads a bitstream only where its agent.toml says `accepts_code = true` under `[limits]`.
- The driver compares the registers DESIGN_ID_0 to DESIGN_ID_3 with the bundle's design_id before it runs anything.
"""
