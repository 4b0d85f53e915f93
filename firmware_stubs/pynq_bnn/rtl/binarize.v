// Unsigned bytes become bits: x >= threshold, one threshold for all, 0 to 256.
`default_nettype none
`include "registers.vh"
module binarize #(
    parameter UNIT = 0,  // what the load bus calls it
    parameter LANES = 8
) (
    input  wire               clk,
    input  wire               rst,
    input  wire               s_valid,
    output wire               s_ready,
    input  wire [8*LANES-1:0] s_data,
    output wire               m_valid,
    input  wire               m_ready,
    output wire [LANES-1:0]   m_data,
    input  wire               load_valid,
    input  wire [7:0]         load_unit,
    input  wire [1:0]         load_memory,
    input  wire [11:0]        load_lane,
    input  wire [19:0]        load_address,
    input  wire [31:0]        load_data
);
    localparam integer N_UNIT = UNIT;
    wire unused = &{1'b0, rst, load_lane, load_address, load_data};
    reg [8:0] threshold;
    assign m_valid = s_valid;
    assign s_ready = m_ready;
    always @(posedge clk)
        if (load_valid & load_unit == N_UNIT[7:0] & load_memory == `EK_MEMORY_THRESHOLDS) threshold <= load_data[8:0];
    genvar i;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : g_lane
            assign m_data[i] = {1'b0, s_data[8*i+:8]} >= threshold;
        end
    endgenerate
endmodule
`default_nettype wire
