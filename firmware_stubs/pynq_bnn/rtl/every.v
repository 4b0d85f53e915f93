// Marks every COUNT-th step: a counter of which only the end is of interest.
`default_nettype none
module every #(
    parameter COUNT = 8
) (
    input  wire clk,
    input  wire rst,
    input  wire step,
    output wire last
);
    localparam A = COUNT > 1 ? $clog2(COUNT) : 1;
    wire [A-1:0] at;
    wire unused = &{1'b0, at};
    counter #(.COUNT(COUNT)) steps (.clk(clk), .rst(rst), .step(step), .back(1'b0), .at(at), .last(last));
endmodule
`default_nettype wire
