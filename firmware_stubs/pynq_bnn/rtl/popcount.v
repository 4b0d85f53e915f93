// How many of N bits are set: a tree of adders over leaves of up to six bits, which are one LUT deep.
`default_nettype none
module popcount #(
    parameter N = 64
) (
    input  wire [N-1:0]           bits,
    output wire [$clog2(N+1)-1:0] count
);
    localparam COUNT_WIDTH = $clog2(N + 1);
    generate
        if (N <= 6) begin : g_leaf
            integer i;
            reg [COUNT_WIDTH-1:0] total;
            always @* begin
                total = 0;
                for (i = 0; i < N; i = i + 1) total = total + {{(COUNT_WIDTH - 1) {1'b0}}, bits[i]};
            end
            assign count = total;
        end else begin : g_tree
            localparam L = N <= 36 ? (N + 11) / 12 * 6 : N / 2;
            localparam R = N - L;
            wire [$clog2(L+1)-1:0] left;
            wire [$clog2(R+1)-1:0] right;
            popcount #(.N(L)) left_half (.bits(bits[L-1:0]), .count(left));
            popcount #(.N(R)) right_half (.bits(bits[N-1:L]), .count(right));
            assign count = {{(COUNT_WIDTH - $clog2(L + 1)) {1'b0}}, left} + {{(COUNT_WIDTH - $clog2(R + 1)) {1'b0}}, right};
        end
    endgenerate
endmodule
`default_nettype wire
