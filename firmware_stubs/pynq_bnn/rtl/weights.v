// The weight memory of an mvu: WIDTH bits a word, loaded in lanes of 32 bits, read a clock later.
`default_nettype none
module weights #(
    parameter WIDTH = 64,
    parameter DEPTH = 512,
    parameter A = 9,  // address bits
    parameter BLOCK = 1
) (
    input  wire             clk,
    input  wire             read,
    input  wire [A-1:0]     address,
    output wire [WIDTH-1:0] word,
    input  wire             load,
    input  wire [11:0]      load_lane,
    input  wire [A-1:0]     load_address,
    input  wire [31:0]      load_data
);
    localparam LANES = (WIDTH + 31) / 32;
    wire unused = &{1'b0, load_data};
    genvar i;
    generate
        for (i = 0; i < LANES; i = i + 1) begin : g_lane
            localparam integer I = i;
            localparam BITS = WIDTH - 32 * i < 32 ? WIDTH - 32 * i : 32;
            memory #(.WIDTH(BITS), .DEPTH(DEPTH), .A(A), .BLOCK(BLOCK)) lane (
                .clk(clk),
                .write(load & load_lane == I[11:0]), .write_address(load_address), .write_data(load_data[BITS-1:0]),
                .read(read), .read_address(address), .read_data(word[32*i+:BITS])
            );
        end
    endgenerate
endmodule
`default_nettype wire
