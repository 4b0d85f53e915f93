// A memory with one port to write and one to read a clock later (simple dual port), as block RAM or LUT RAM.
// What is read while it is written is not defined: no unit does so.
`default_nettype none
module memory #(
    parameter WIDTH = 32,
    parameter DEPTH = 512,
    parameter A = 9,     // address bits
    parameter BLOCK = 1  // 0: LUT RAM with a register behind it
) (
    input  wire             clk,
    input  wire             write,
    input  wire [A-1:0]     write_address,
    input  wire [WIDTH-1:0] write_data,
    input  wire             read,
    input  wire [A-1:0]     read_address,
    output reg  [WIDTH-1:0] read_data
);
    generate
        if (BLOCK != 0) begin : g_block
            (* ram_style = "block" *) reg [WIDTH-1:0] words[0:DEPTH-1];
            always @(posedge clk) begin
                if (write) words[write_address] <= write_data;
                if (read) read_data <= words[read_address];
            end
        end else begin : g_distributed
            (* ram_style = "distributed" *) reg [WIDTH-1:0] words[0:DEPTH-1];
            always @(posedge clk) begin
                if (write) words[write_address] <= write_data;
                if (read) read_data <= words[read_address];
            end
        end
    endgenerate
endmodule
`default_nettype wire
