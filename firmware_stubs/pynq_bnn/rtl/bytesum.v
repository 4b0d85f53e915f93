// The sum of N unsigned bytes: a tree of adders.
`default_nettype none
module bytesum #(
    parameter N = 4
) (
    input  wire [8*N-1:0]         bytes,
    output wire [7+$clog2(N):0]   sum
);
    generate
        if (N == 1) begin : g_leaf
            assign sum = bytes;
        end else begin : g_tree
            localparam SUM_WIDTH = 8 + $clog2(N);
            localparam L = (N + 1) / 2;
            localparam R = N - L;
            wire [7+$clog2(L):0] left;
            wire [7+$clog2(R):0] right;
            bytesum #(.N(L)) left_half (.bytes(bytes[0+:8*L]), .sum(left));
            bytesum #(.N(R)) right_half (.bytes(bytes[8*L+:8*R]), .sum(right));
            assign sum = {{(SUM_WIDTH - 8 - $clog2(L)) {1'b0}}, left} + {{(SUM_WIDTH - 8 - $clog2(R)) {1'b0}}, right};
        end
    endgenerate
endmodule
`default_nettype wire
